"""A step of matrices by Triton's kernels: from G and M to U and W, in four passes and the products.

The plain twin is what `batches.update_batch_` does otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_root.functional import Triple, outlier_threshold
from lightning_root.kernels.orthogonalize import orthogonalize_unit
from lightning_root.kernels.triton.tiles import Tuning
from lightning_root.optim.elementwise import decay_and_descend_
from lightning_root.optim.items import state_dtype

if TYPE_CHECKING:
    from lightning_root.optim.batches import Block


def can_be_fused(batch: Sequence[Block], group: Mapping[str, Any], tuning: Tuning) -> bool:
    """Whether there are kernels for matrices like these.

    Args:
        batch: Matrices of one size.
        group: The options of their parameter group.
        tuning: From `tuning_for`.
    """
    dtype = batch[0].momentum.dtype
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and tuning.rounds)
    if not (known and tuning.passes and group["ns_form"] in ("auto", "standard")):
        return False
    if all(block.gradient is None for block in batch):
        return True
    tensors = [tensor for block in batch for tensor in (block.gradient, block.momentum)]
    return all(tensor is not None and tensor.is_contiguous() for tensor in tensors)


def fused_updates(
    batch: Sequence[Block],
    group: Mapping[str, Any],
    triples: Sequence[Triple],
    dtype: torch.dtype,
    tuning: Tuning,
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance the momentum of each matrix and orthogonalize.

    Args:
        batch: For which `can_be_fused` is true.
        group: The options of their parameter group.
        triples: One per step.
        dtype: Of the iteration.
        tuning: From `tuning_for`.

    Returns:
        N, shape (k, rows, columns); the bounds that clip it, shape (k,); U, like N, in `dtype`.
    """
    from lightning_root.kernels.triton import passes

    directions, largest = _directions(batch, group)
    bounds = _bounds(directions, largest, group)
    unit = passes.clipped_unit(directions, bounds, dtype)
    return directions, bounds, orthogonalize_unit(unit, triples, tuning)


def fused_descent_(batch: Sequence[Block], update: Tensor, group: Mapping[str, Any]) -> None:
    """W <- (1 - lr wd) W - lr scale U; by torch where W is not contiguous, or float64.

    Args:
        batch: Which are direct.
        update: From `fused_updates`.
        group: The options of their parameter group.
    """
    from lightning_root.kernels.triton import passes

    lr, decay, scale = group["lr"], group["weight_decay"], batch[0].scale
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = float(lr)  # no kernel can read it there
    for block, one in zip(batch, update, strict=True):
        in_single = state_dtype(block.target) == torch.float32
        if in_single and block.target.is_contiguous() and one.is_contiguous():
            passes.decay_and_descend_(block.target, one, lr, decay, scale, block.finite)
        else:
            flags = None if block.finite is None else [block.finite]
            decay_and_descend_([block.target], [one], scale, group, flags)


def _directions(batch: Sequence[Block], group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """N, shape (k, rows, columns), and its largest magnitudes, shape (k,)."""
    from lightning_root.kernels.triton import passes

    matrix = batch[0].momentum
    shape = (len(batch), *matrix.shape)
    directions = torch.empty(shape, dtype=torch.float32, device=matrix.device)
    if batch[0].gradient is None:
        torch._foreach_copy_(list(directions), [block.momentum for block in batch])
        return directions, torch.linalg.vector_norm(directions, math.inf, dim=(1, 2))
    peaks = directions.new_empty(len(batch), passes.blocks(matrix))
    for block, direction, peak in zip(batch, directions, peaks, strict=True):
        assert block.gradient is not None
        passes.look_ahead_(
            block.gradient,
            block.momentum,
            direction,
            group["momentum"],
            peak,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            finite=block.finite,
        )
    return directions, peaks.amax(dim=1)


def _bounds(directions: Tensor, largest: Tensor, group: Mapping[str, Any]) -> Tensor:  # (k,)
    """The outlier threshold of each matrix; its largest magnitude where there is none."""
    quantile, mode = group["outlier_quantile"], group["outlier_quantile_mode"]
    if quantile is None or quantile == 1.0:
        return largest
    if mode == "exact" or quantile == "auto":
        return outlier_threshold(directions, quantile, mode=mode)
    from lightning_root.kernels.triton.threshold import sampled_threshold

    bounds = sampled_threshold(directions, quantile)
    return torch.where(bounds > 0, bounds, largest)
