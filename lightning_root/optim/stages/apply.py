"""Decay and descent, the last stage of a matrix.

    W <- (1 - lr weight_decay) W - lr scale U          `weight_decay_mode="decoupled"`
    only entries of W with U W > 0 decay               "cautious"

W of low precision is computed in float32 and rounded once. No state. Cost: two passes over W.
Sources: I. Loshchilov, F. Hutter, arXiv:1711.05101; cautious: arXiv:2510.12402; the scale is
`functional.update_scale`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_root.optim.blocks import BlockStep, Group, state_dtype


def apply_twin(
    value: Tensor,
    update: Tensor,
    lr: float,
    weight_decay: float,
    scale: float,
    cautious: bool = False,
) -> Tensor:
    """Return W after the step, as the formula has it."""
    decaying = (update * value > 0) if cautious else torch.ones_like(value)
    return (1.0 - lr * weight_decay * decaying) * value - lr * scale * update


def apply_update_(
    values: list[Tensor],
    updates: list[Tensor],
    scale: float,
    group: Group,
    finite: Sequence[Tensor | None] | None = None,
) -> None:
    """Apply U to each W, all of one dtype; where its flag is False W stays as it is."""
    dtype = state_dtype(values[0])
    rounded = values[0].dtype != dtype
    exact = [value.to(dtype) for value in values] if rounded else values
    lr, decay = group["lr"], group["weight_decay"]
    if group["weight_decay_mode"] == "cautious" and decay:
        for number, value in enumerate(exact):
            flag = finite[number] if finite is not None else None
            rate = lr if flag is None else lr * flag
            decaying = updates[number].to(dtype).sign().mul_(value.sign()).clamp_(min=0.0)
            value.addcmul_(value, decaying.mul_(rate * decay), value=-1.0)
        decay = 0.0
    if isinstance(lr, Tensor) or finite is not None:
        flags = [None] * len(exact) if finite is None else finite
        for value, update, flag in zip(exact, updates, flags, strict=True):
            rate = lr if flag is None else lr * flag  # it stays on its device
            value.mul_(1.0 - rate * decay).sub_(update.to(dtype) * (rate * scale))
    else:
        torch._foreach_mul_(exact, 1.0 - lr * decay)
        torch._foreach_add_(exact, updates, alpha=-lr * scale)
    if rounded:
        torch._foreach_copy_(values, exact)


def apply_by_kernels_(
    steps: Sequence[BlockStep], update: Tensor, scale: float, group: Group
) -> None:
    """Do as `apply_update_` by Triton; by torch where W is not contiguous, or float64."""
    from lightning_root.kernels.triton import passes

    lr, decay = group["lr"], group["weight_decay"]
    plain = group["weight_decay_mode"] == "decoupled"
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = float(lr)  # no kernel can read it there
    for one, values in zip(steps, update, strict=True):
        in_single = state_dtype(one.target) == torch.float32
        if in_single and plain and one.target.is_contiguous() and values.is_contiguous():
            passes.apply_update_(one.target, values, lr, decay, scale, one.finite)
        else:
            flags = None if one.finite is None else [one.finite]
            apply_update_([one.target], [values], scale, group, flags)
