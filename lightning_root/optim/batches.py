"""Matrices of one size, gathered from wherever they lie in parameters, and updated together."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from lightning_root.coefficients import Coefficients, lookup
from lightning_root.functional import outlier_threshold
from lightning_root.kernels import orthogonalize
from lightning_root.optim.options import iteration_dtype

SMALL: Final = 1 << 17
"""Elements of a matrix below which a CPU is faster with several at a time."""

BATCH_ELEMENTS: Final = {"cpu": 1 << 18}
"""So many elements of small matrices are orthogonalized at a time: what a core's cache holds."""

OTHER_BATCH_ELEMENTS: Final = 1 << 25
"""The same for accelerators, which want few, large operations: 128 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one size in the middle of a step, as hooks see them; not to be modified.

    Every tensor has the shape (k, m, n) with m <= n: what is taller than wide is seen transposed.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        momentum: N, the momentum after the look-ahead.
        clipped: B, what is orthogonalized: N held within its outlier threshold.
        update: U, orthogonalized, before the scale.
        scales: Factor on the learning rate, for each of the k.
        coefficients: What it was orthogonalized with.
        group: The options of the parameter group.
    """

    names: tuple[tuple[str, int], ...]
    momentum: Tensor
    clipped: Tensor
    update: Tensor
    scales: tuple[float, ...]
    coefficients: Coefficients
    group: Mapping[str, Any]


StackHook: TypeAlias = Callable[[Stack], None]


@dataclass(frozen=True, slots=True)
class Block:
    """One matrix of a parameter: where it is read and where its update goes.

    Args:
        name: Parameter and number of the matrix within it.
        gradient: G; None where `momentum` is already N.
        momentum: M, before this step.
        target: The matrix itself, or a place for its update U.
        direct: Whether `target` is the matrix itself.
        scale: Factor on the learning rate.
    """

    name: tuple[str, int]
    gradient: Tensor | None
    momentum: Tensor
    target: Tensor
    direct: bool
    scale: float


def batches(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks that are alike, as many at a time as is fastest; the most work first.

    What is first finishes last where threads share the work, so that they end together.
    """
    alike: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        matrix = block.momentum
        key = (*matrix.shape, matrix.dtype, matrix.device, block.direct, block.scale)
        alike[key].append(block)
    found = [batch for equal in alike.values() for batch in _parts(equal)]
    return sorted(found, key=work, reverse=True)


def work(batch: Sequence[Block]) -> int:
    """Multiplications of one product of each matrix with its own transpose."""
    rows, columns = batch[0].momentum.shape
    return len(batch) * rows * columns * min(rows, columns)


def _parts(blocks: list[Block]) -> Iterator[list[Block]]:
    size, device = blocks[0].momentum.numel(), blocks[0].momentum.device.type
    count = max(1, BATCH_ELEMENTS.get(device, OTHER_BATCH_ELEMENTS) // size)
    if device == "cpu":
        fair = math.ceil(len(blocks) / torch.get_num_threads())  # something for every thread
        count = 1 if size >= SMALL else min(count, fair)
    for start in range(0, len(blocks), count):
        yield blocks[start : start + count]


def update_batch_(batch: Sequence[Block], group: Mapping[str, Any], keep: bool) -> Stack | None:
    """One step of matrices of one size; of those that are not direct only U is computed.

    M <- mu M + G; N <- G + mu M (Nesterov) or M; B <- clamp(N, -eps, eps); U <- orthogonalize(B);
    W <- (1 - lr wd) W - lr scale U.

    Args:
        batch: What `batches` put together.
        group: The options of their parameter group.
        keep: Return what happened, for hooks.
    """
    momentum = _directions(batch, group)
    clipped, largest = momentum, None
    if group["outlier_quantile"] is not None:
        mode = group["outlier_quantile_mode"]
        largest = outlier_threshold(momentum, group["outlier_quantile"], mode=mode)
        clipped = _clamped(momentum, largest, out=None if keep else momentum)
    coefficients = lookup(momentum.shape[-2:], group["coefficients"], group["ns_steps"])
    dtype = iteration_dtype(group["ns_dtype"], momentum)
    update = orthogonalize(
        clipped, coefficients.triples, form=group["ns_form"], dtype=dtype, largest=largest
    )
    _apply_(batch, update, group)
    if not keep:
        return None
    names = tuple(block.name for block in batch)
    scales = tuple(block.scale for block in batch)
    if momentum.shape[1] > momentum.shape[2]:
        momentum, clipped, update = momentum.mT, clipped.mT, update.mT
    return Stack(names, momentum, clipped, update, scales, coefficients, group)


def _directions(batch: Sequence[Block], group: Mapping[str, Any]) -> Tensor:  # (k, rows, columns)
    """Advance the momentum of each matrix and return N, in fresh memory; G stays as it is."""
    matrix = batch[0].momentum
    out = torch.empty(len(batch), *matrix.shape, dtype=matrix.dtype, device=matrix.device)
    for block, direction in zip(batch, out, strict=True):
        if block.gradient is None:
            direction.copy_(block.momentum)
        else:
            look_ahead_(block.gradient, block.momentum, direction, group)
    return out


def look_ahead_(gradient: Tensor, momentum: Tensor, out: Tensor, group: Mapping[str, Any]) -> None:
    """M <- mu M + G and N <- G + mu M, or M: as few passes over memory as there can be.

    Args:
        gradient: G, of any dtype.
        momentum: M, which is changed.
        out: N.
        group: With `momentum`, `nesterov` and `maximize`, for which G counts negative.
    """
    gradient = _advance_(gradient, momentum, group)
    if group["nesterov"]:
        torch.add(gradient, momentum, alpha=float(group["momentum"]), out=out)
    else:
        out.copy_(momentum)


def advance_(blocks: Iterable[Block], group: Mapping[str, Any]) -> None:
    """M <- mu M + G alone, for matrices that are orthogonalized elsewhere."""
    for block in blocks:
        if block.gradient is not None:
            _advance_(block.gradient, block.momentum, group)


def _advance_(gradient: Tensor, momentum: Tensor, group: Mapping[str, Any]) -> Tensor:
    """M <- mu M + G; return G as it counted."""
    gradient = gradient.to(momentum.dtype)
    if group["maximize"]:
        gradient = gradient.neg()
    torch.add(gradient, momentum, alpha=float(group["momentum"]), out=momentum)
    return gradient


def _clamped(matrices: Tensor, bounds: Tensor, out: Tensor | None) -> Tensor:
    """Each matrix held within its own bound."""
    if bounds.device.type != "cpu":
        limits = bounds[:, None, None].to(matrices.dtype)
        return torch.clamp(matrices, -limits, limits, out=out)
    out = torch.empty_like(matrices) if out is None else out
    for matrix, bound, place in zip(matrices, bounds.tolist(), out, strict=True):
        torch.clamp(matrix, -bound, bound, out=place)  # three times as fast as with tensors
    return out


def _apply_(batch: Sequence[Block], update: Tensor, group: Mapping[str, Any]) -> None:
    """Into the matrices, or as it is to where the targets are."""
    targets, parts = [block.target for block in batch], list(update)
    if batch[0].direct:
        decay_and_descend_(targets, parts, batch[0].scale, group)
    else:
        torch._foreach_copy_(targets, parts)


def decay_and_descend_(
    values: list[Tensor], updates: list[Tensor], scale: float, group: Mapping[str, Any]
) -> None:
    """W <- (1 - lr wd) W - lr scale U, for each of some tensors, in place."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        torch._foreach_mul_(values, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(values, updates, alpha=-lr * scale)
        return
    for value, update in zip(values, updates, strict=True):  # the number stays on its device
        value.mul_(1.0 - lr * group["weight_decay"]).sub_(update * (lr * scale))
