"""What a step does to every entry on its own: momentum, look-ahead, clipping, weights.

As few passes over memory as there can be; each gives the same bits however a matrix is cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root.distributed import is_sharded
from lightning_root.optim.items import state_dtype
from lightning_root.optim.rounding import keep_

CACHED_ELEMENTS: Final = 1 << 17
"""So many stay in a core's cache from one pass over them to the next."""


def look_ahead_(
    gradient: Tensor,
    momentum: Tensor,
    out: Tensor,
    group: Mapping[str, Any],
    finite: Tensor | None = None,
) -> None:
    """M <- mu M + G and N <- G + mu M, or M.

    Args:
        gradient: G, of any dtype.
        momentum: M, which is changed.
        out: N.
        group: With `momentum`, `nesterov` and `maximize`, for which G counts negative.
        finite: Where it is False, M stays as it is and G counts as zero; no dimensions.
    """
    for some_gradient, some_momentum, some_out in _rows_in_cache(gradient, momentum, out):
        counted, exact = advance_(some_gradient, some_momentum, group, finite)
        if group["nesterov"]:
            torch.add(counted, exact, alpha=float(group["momentum"]), out=some_out)
        else:
            some_out.copy_(exact)


def _rows_in_cache(
    gradient: Tensor, momentum: Tensor, out: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Where M is rounded by many passes on a CPU, as many rows as stay in its cache; else all."""
    rounded = momentum.dtype != state_dtype(momentum)
    if not rounded or momentum.device.type != "cpu" or is_sharded(momentum):
        yield gradient, momentum, out
        return
    length = max(1, len(momentum))
    rows = max(1, CACHED_ELEMENTS * length // max(1, momentum.numel()))
    for start in range(0, length, rows):
        some = slice(start, start + rows)
        yield gradient[some], momentum[some], out[some]


def advance_(
    gradient: Tensor, momentum: Tensor, group: Mapping[str, Any], finite: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """M <- mu M + G; return G as it counted, and M before it was rounded."""
    dtype = state_dtype(momentum)
    exact = momentum if momentum.dtype == dtype else momentum.to(dtype)
    if gradient.dtype != dtype:
        gradient = gradient.to(dtype)
    if group["maximize"]:
        gradient = gradient.neg()
    if finite is None:
        torch.add(gradient, exact, alpha=float(group["momentum"]), out=exact)
    else:
        gradient = torch.where(finite, gradient, 0.0)
        factor = torch.where(finite, exact.new_full((), float(group["momentum"])), 1.0)
        torch.addcmul(gradient, exact, factor, out=exact)
    if exact is not momentum:
        keep_(momentum, exact)
    return gradient, exact


def clamped(matrices: Tensor, bounds: Tensor, out: Tensor | None) -> Tensor:
    """Each matrix held within its own bound.

    Args:
        matrices: Shape (k, m, n).
        bounds: Shape (k,).
        out: Where the result goes, which may be `matrices`; None for fresh memory.
    """
    if bounds.device.type != "cpu":
        limits = bounds[:, None, None].to(matrices.dtype)
        return torch.clamp(matrices, -limits, limits, out=out)
    if out is None:
        out = matrices.clone()
    elif out is not matrices:
        out.copy_(matrices)
    for matrix, bound in zip(out.unbind(), bounds.tolist(), strict=True):
        matrix.clamp_(-bound, bound)  # three times as fast as with tensors
    return out


def decay_and_descend_(
    values: list[Tensor],
    updates: list[Tensor],
    scale: float,
    group: Mapping[str, Any],
    finite: Sequence[Tensor | None] | None = None,
) -> None:
    """W <- (1 - lr wd) W - lr scale U, for each of some tensors, in place; none that is not finite.

    Args:
        values: W of each, all of one dtype; of low precision it is computed in float32 and rounded
            once.
        updates: U of each.
        scale: Factor on the learning rate.
        group: With `lr` and `weight_decay`.
        finite: Whether W may change, on the device; None where it may.
    """
    dtype = state_dtype(values[0])
    rounded = values[0].dtype != dtype
    exact = [value.to(dtype) for value in values] if rounded else values
    lr, decay = group["lr"], group["weight_decay"]
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
