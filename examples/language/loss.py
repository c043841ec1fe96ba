"""Cross-entropy over a large vocabulary without all logits in memory at once.

With 128,256 tokens and 16,384 positions the float32 logits alone are 8.4 GB, and their gradient as
much again. Here a chunk of positions at a time goes through: its logits, its loss, and, while they
are there, its share of the gradients. Nothing is computed twice; what is kept for the backward pass
has the size of the inputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**28
"""Logits at a time: one GiB in float32."""


def chunked_cross_entropy(
    hidden: Tensor,  # (positions, dimension)
    weight: Tensor,  # (vocabulary, dimension)
    targets: Tensor,  # (positions,) int64
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` against `targets`, in nats.

    Args:
        hidden: What the head is applied to.
        weight: The head's matrix.
        targets: The right token of each position.
        chunk_elements: How many logits may exist at a time; no fewer than one position's.

    Returns:
        A 0-dim tensor, float32; the softmax is computed in float32 whatever the inputs are.
    """
    positions, vocabulary = len(targets), len(weight)
    chunk = max(1, chunk_elements // vocabulary)
    if positions <= chunk:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets)
    # Autocast chooses a dtype for the products: one row tells which. Cast once, not in every chunk.
    dtype = F.linear(hidden[:1], weight[:1]).dtype
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled():
        total: Tensor = _CrossEntropySum.apply(hidden, weight, targets, chunk)
    else:
        total = _sum_in_chunks(hidden, weight, targets, chunk, None, None)
    return total / positions


def _sum_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    hidden_gradient: Tensor | None,  # as `hidden`; filled
    weight_gradient: Tensor | None,  # as `weight`, float32; added to
) -> Tensor:
    """The sum over all positions; gradients of that sum go where there is a place for them."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        logits = F.linear(hidden[rows], weight).float()  # (chunk, vocabulary)
        target = targets[rows, None]
        normalizer = logits.logsumexp(-1, keepdim=True)
        total += (normalizer - logits.gather(-1, target)).sum()
        if hidden_gradient is None and weight_gradient is None:
            continue
        gradient = logits.sub_(normalizer).exp_()  # softmax, in the place of the logits
        gradient.scatter_add_(-1, target, torch.full_like(normalizer, -1.0))
        gradient = gradient.to(hidden.dtype)
        if hidden_gradient is not None:
            hidden_gradient[rows] = gradient @ weight
        if weight_gradient is not None:
            weight_gradient += gradient.T @ hidden[rows]
    return total


class _CrossEntropySum(torch.autograd.Function):
    """The sum over all positions, whose gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wanted = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        total = _sum_in_chunks(hidden, weight, targets, chunk, hidden_gradient, weight_gradient)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if part is None else part * scale.to(part.dtype) for part in ctx.saved_tensors
        )
        return (*scaled, None, None)
