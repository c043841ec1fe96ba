"""The story of a step for one stack of equal matrices, from top to bottom.

    G, M -> N -> B -> U -> W          momentum, clip, orthogonalize, (normalize), decay and apply

Each arrow is a file of `stages`. A new stage is called here; its state joins `STATE`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from lightning_root.coefficients import Coefficients
from lightning_root.functional.outliers import clamp_each
from lightning_root.kernels.triton.tiles import Tuning
from lightning_root.optim.blocks import BlockStep, Group, MatrixBlock, state_dtype
from lightning_root.optim.stages import adamw, momentum, normalize, orthogonalize
from lightning_root.optim.stages.apply import apply_by_kernels_, apply_update_
from lightning_root.optim.stages.clip import Clip, bounds_by_kernels, plan_clip
from lightning_root.optim.stages.momentum import look_ahead, look_ahead_by_kernels

STATE: Final = (*momentum.STATE, *normalize.STATE, *adamw.STATE)
"""All that parameters can have of state; `state` makes, saves, loads and cuts it by this table."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one size in the middle of a step, as hooks see them; not to be modified.

    Every tensor has the shape (k, m, n) with m <= n: what is taller than wide is seen transposed.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        momentum: N, the momentum after the look-ahead.
        clipped: B, what is orthogonalized: N held within its outlier threshold.
        update: U, orthogonalized, before it is normalized and scaled.
        scales: Factor on the learning rate, for each of the k.
        coefficients: What it was orthogonalized with.
        group: The options of the parameter group.
        neurons: State of optional stages with one number per row or column of the longer side,
            (k, n), by its key in the optimizer's state.
    """

    names: tuple[tuple[str, int], ...]
    momentum: Tensor
    clipped: Tensor
    update: Tensor
    scales: tuple[float, ...]
    coefficients: Coefficients
    group: Mapping[str, Any]
    neurons: Mapping[str, Tensor] = field(default_factory=dict)


StackHook: TypeAlias = Callable[[Stack], None]
"""A function that `ROOT.register_stack_hook` takes."""


@dataclass(frozen=True, slots=True, eq=False)
class StackPlan:
    """Equal blocks that are updated together, and how."""

    members: tuple[int, ...]  # their places among the blocks that were planned together
    block: MatrixBlock  # one of them
    in_place: bool  # whether the targets are the matrices themselves; else U goes there as it is
    dtype: torch.dtype  # of N: float32, or float64 for float64 parameters
    clip: Clip | None  # None without a threshold
    orthogonalization: orthogonalize.Orthogonalization  # form, dtype and kernels
    normalizes: bool  # whether U is normalized neuron by neuron
    may_fuse: bool  # whether Triton's kernels do all that comes before and after the iteration


def plan_stack(
    members: Sequence[int], like: BlockStep, group: Group, in_place: bool, threads: int
) -> StackPlan:
    """Settle how blocks like this one are updated, by operations of so many threads."""
    how = orthogonalize.plan_orthogonalization(like.block, like.momentum, group, threads)
    return StackPlan(
        tuple(members),
        like.block,
        in_place,
        state_dtype(like.momentum),
        plan_clip(group),
        how,
        normalize.is_on(group),
        have_kernels(like.momentum, group, how.tuning),
    )


def have_kernels(momentum: Tensor, group: Group, tuning: Tuning | None) -> bool:
    """Return whether Triton's kernels do all that comes before and after the iteration."""
    if tuning is None or not tuning.passes or group["ns_form"] not in ("auto", "standard"):
        return False
    rounded = momentum.dtype == torch.bfloat16 and tuning.rounds
    return rounded or momentum.dtype == torch.float32


def update_stack_(
    plan: StackPlan, steps: Sequence[BlockStep], group: Group, keep: bool
) -> Stack | None:
    """Update equal blocks; return what happened where that is to be kept, for hooks."""
    how, scale = plan.orthogonalization, plan.block.scale
    fused = plan.may_fuse and are_readable(steps)
    if fused:
        direction, bounds = look_ahead_by_kernels(steps, group)  # N (k, m, n), max |N| (k,)
        bounds = bounds_by_kernels(direction, bounds, group)
        clipped = clamp_each(direction, bounds, out=None) if keep else direction
        update = orthogonalize.orthogonalize_by_kernels(direction, bounds, how)
    else:
        direction = look_ahead(steps, plan.dtype, group)  # N (k, m, n)
        clipped, largest = direction, None
        if plan.clip is not None:
            clipped, largest = plan.clip(direction, keep=keep)  # B (k, m, n), max |B| (k,)
        update = how.run(clipped, largest=largest)  # U (k, m, n)
    normalized = update
    if plan.normalizes:
        neurons, flags = [one.neurons for one in steps], [one.finite for one in steps]
        normalized = normalize.normalize(update, neurons, plan.block.by_rows, flags)
    targets = [one.target for one in steps]  # W, or the places of U: k of (m, n)
    if not plan.in_place:
        torch._foreach_copy_(targets, list(normalized))
    elif fused:
        apply_by_kernels_(steps, normalized, scale, group)
    else:
        finite = [one.finite for one in steps] if group["capturable"] else None
        apply_update_(targets, list(normalized), scale, group, finite)
    return _stack_of(steps, group, direction, clipped, update) if keep else None


def are_readable(steps: Sequence[BlockStep]) -> bool:
    """Return whether Triton's kernels can read gradients and momentum as they lie."""
    given = [tensor for one in steps for tensor in (one.gradient, one.momentum)]
    if all(one.gradient is None for one in steps):
        return True
    return all(tensor is not None and tensor.is_contiguous() for tensor in given)


def _stack_of(
    steps: Sequence[BlockStep], group: Group, direction: Tensor, clipped: Tensor, update: Tensor
) -> Stack:
    """Return what hooks see of blocks that have been updated: wide matrices."""
    update, blocks = update.to(direction.dtype), [one.block for one in steps]
    if direction.shape[1] > direction.shape[2]:
        direction, clipped, update = direction.mT, clipped.mT, update.mT
    names = tuple((block.name, block.number) for block in blocks)
    scales = tuple(block.scale for block in blocks)
    neurons = {key: torch.stack([one.neurons[key] for one in steps]) for key in steps[0].neurons}
    coefficients = blocks[0].coefficients
    return Stack(names, direction, clipped, update, scales, coefficients, group, neurons)
