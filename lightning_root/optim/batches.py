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
from lightning_root.kernels import orthogonalize, tuning_for
from lightning_root.optim.elementwise import (
    advance_,
    clamped,
    decay_and_descend_,
    look_ahead_,
)
from lightning_root.optim.fused import can_be_fused, fused_descent_, fused_updates
from lightning_root.optim.items import state_dtype
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
        finite: Whether G may be used, on the device; None where it may.
    """

    name: tuple[str, int]
    gradient: Tensor | None
    momentum: Tensor
    target: Tensor
    direct: bool
    scale: float
    finite: Tensor | None = None


def batches(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks that are alike, as many at a time as is fastest; the most work first.

    What is first finishes last where threads share the work, so that they end together.
    """
    alike: dict[tuple[object, ...], list[Block]] = defaultdict(list)
    for block in blocks:
        matrix = block.momentum
        dtypes = (matrix.dtype, block.target.dtype)
        key = (*matrix.shape, *dtypes, matrix.device, block.direct, block.scale)
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
    shape, device = batch[0].momentum.shape, batch[0].momentum.device
    coefficients = lookup(shape, group["coefficients"], group["ns_steps"])
    dtype = iteration_dtype(group["ns_dtype"], batch[0].momentum)
    tuning = tuning_for(group["kernels"], device, dtype)
    apply_ = _apply_
    if tuning is not None and can_be_fused(batch, group, tuning):
        momentum, bounds, update = fused_updates(batch, group, coefficients.triples, dtype, tuning)
        clipped = clamped(momentum, bounds, out=None) if keep else momentum
        if batch[0].direct:
            apply_ = fused_descent_
    else:
        momentum = _directions(batch, group)
        clipped, largest = momentum, None
        if group["outlier_quantile"] is not None:
            mode = group["outlier_quantile_mode"]
            largest = outlier_threshold(momentum, group["outlier_quantile"], mode=mode)
            clipped = clamped(momentum, largest, out=None if keep else momentum)
        update = orthogonalize(
            clipped,
            coefficients.triples,
            form=group["ns_form"],
            dtype=dtype,
            largest=largest,
            tuning=tuning,
        )
    apply_(batch, update, group)
    if not keep:
        return None
    update = update.to(momentum.dtype)
    names = tuple(block.name for block in batch)
    scales = tuple(block.scale for block in batch)
    if momentum.shape[1] > momentum.shape[2]:
        momentum, clipped, update = momentum.mT, clipped.mT, update.mT
    return Stack(names, momentum, clipped, update, scales, coefficients, group)


def _directions(batch: Sequence[Block], group: Mapping[str, Any]) -> Tensor:  # (k, rows, columns)
    """Advance the momentum of each matrix and return N, in fresh memory; G stays as it is."""
    matrix = batch[0].momentum
    out = torch.empty(len(batch), *matrix.shape, dtype=state_dtype(matrix), device=matrix.device)
    for block, direction in zip(batch, out.unbind(), strict=True):
        if block.gradient is None:
            direction.copy_(block.momentum)
        else:
            look_ahead_(block.gradient, block.momentum, direction, group, block.finite)
    return out


def advance_all_(blocks: Iterable[Block], group: Mapping[str, Any]) -> None:
    """M <- mu M + G alone, for matrices that are orthogonalized elsewhere."""
    for block in blocks:
        if block.gradient is not None:
            advance_(block.gradient, block.momentum, group, block.finite)


def _apply_(batch: Sequence[Block], update: Tensor, group: Mapping[str, Any]) -> None:
    """Into the matrices, or as it is to where the targets are."""
    targets, parts = [block.target for block in batch], list(update)
    if batch[0].direct:
        flags = [block.finite for block in batch] if group["capturable"] else None
        decay_and_descend_(targets, parts, batch[0].scale, group, flags)
    else:
        torch._foreach_copy_(targets, parts)
