"""The story of a step for one stack of equal matrices, from top to bottom.

    G, M -> N -> B -> U -> W    momentum, clip, (precondition), orthogonalize, (normalize), apply

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
from lightning_root.optim.stages import (
    adamw,
    clip_gradient,
    momentum,
    normalize,
    orthogonalize,
    precondition,
)
from lightning_root.optim.stages.apply import apply_by_kernels_, apply_update_
from lightning_root.optim.stages.clip import Clip, bounds_by_kernels, plan_clip
from lightning_root.optim.stages.momentum import look_ahead, look_ahead_by_kernels

STATE: Final = (
    *clip_gradient.STATE,
    *momentum.STATE,
    *precondition.STATE,
    *normalize.STATE,
    *adamw.STATE,
)
"""All that parameters can have of state; `state` makes, saves, loads and cuts it by this table."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one size in the middle of a step, as hooks see them; not to be modified.

    Every tensor has the shape (k, m, n) with m <= n: what is taller than wide is seen transposed.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        momentum: N, the momentum after the look-ahead.
        clipped: B, N held within its outlier threshold.
        update: U, orthogonalized, before it is normalized and scaled.
        scales: Of the update, for each of the k.
        coefficients: What it was orthogonalized with.
        group: The options of the parameter group, with the learning rate and the decay of these.
        neurons: State of optional stages with one number per row or column of the longer side,
            (k, n), by its key in the optimizer's state.
        preconditioned: B as it is orthogonalized where it is preconditioned first, else None.
        conditions: Of the damped covariances, (k,), where there are any, else None.
        ages: How many steps ago the preconditioner's roots were renewed, for each of the k.
    """

    names: tuple[tuple[str, int], ...]
    momentum: Tensor
    clipped: Tensor
    update: Tensor
    scales: tuple[float, ...]
    coefficients: Coefficients
    group: Mapping[str, Any]
    neurons: Mapping[str, Tensor] = field(default_factory=dict)
    preconditioned: Tensor | None = None
    conditions: Tensor | None = None
    ages: tuple[int, ...] = ()

    @property
    def orthogonalized(self) -> Tensor:
        """Argument of the orthogonalization, (k, m, n): B, preconditioned where that is on."""
        return self.clipped if self.preconditioned is None else self.preconditioned


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
    preconditioner: precondition.Preconditioner | None  # None where there is none
    orthogonalization: orthogonalize.Orthogonalization  # form, dtype and kernels
    normalizes: bool  # whether U is normalized neuron by neuron
    may_fuse: bool  # whether Triton's kernels do all that comes before and after the iteration


def plan_stack(
    members: Sequence[int], like: BlockStep, group: Group, in_place: bool, threads: int
) -> StackPlan:
    """Settle how blocks like this one are updated, by operations of so many threads."""
    how = orthogonalize.plan_orthogonalization(like.block, like.momentum, group, threads)
    preconditioner = precondition.plan_preconditioner(like.block.shape, group)
    return StackPlan(
        tuple(members),
        like.block,
        in_place,
        state_dtype(like.momentum),
        plan_clip(group),
        preconditioner,
        how,
        normalize.is_on(group),
        preconditioner is None and have_kernels(like.momentum, group, how.tuning),
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
    how, scale, preconditioned = plan.orthogonalization, plan.block.scale, None
    rates = group if plan.block.rates is None else plan.block.rates.of(group)
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
        given = clipped
        if plan.preconditioner is not None:
            given = preconditioned = preconditioned_by(plan, steps, clipped)
            largest = None
        update = how.run(given, largest=largest)  # U (k, m, n)
    normalized = update
    if plan.normalizes:
        neurons, flags = [one.state for one in steps], [one.finite for one in steps]
        normalized = normalize.normalize(update, neurons, plan.block.by_rows, flags)
    targets = [one.target for one in steps]  # W, or the places of U: k of (m, n)
    if not plan.in_place:
        torch._foreach_copy_(targets, list(normalized))
    elif fused:
        apply_by_kernels_(steps, normalized, scale, rates)
    else:
        finite = [one.finite for one in steps] if group["capturable"] else None
        apply_update_(targets, list(normalized), scale, rates, finite)
    if not keep:
        return None
    return _stack_of(plan, steps, rates, (direction, clipped, update, preconditioned))


def preconditioned_by(plan: StackPlan, steps: Sequence[BlockStep], clipped: Tensor) -> Tensor:
    """Return B, (k, m, n), preconditioned by covariances of G, or of B itself."""
    assert plan.preconditioner is not None
    first = steps[0]
    if any([one.age != first.age for one in steps]):  # some joined, or were frozen, later
        alone = [
            preconditioned_by(plan, steps[i : i + 1], clipped[i : i + 1]) for i in range(len(steps))
        ]
        return torch.cat(alone)
    source = clipped if first.measures else None
    gradients = [one.source.to(plan.dtype) for one in steps if one.source is not None]
    if gradients:
        source = torch.stack(gradients)
        if plan.clip is not None:
            source = plan.clip(source, keep=False)[0]
    state = [one.state for one in steps]
    return precondition.precondition(clipped, source, plan.preconditioner, state, first.age == 0)


def are_readable(steps: Sequence[BlockStep]) -> bool:
    """Return whether Triton's kernels can read gradients and momentum as they lie."""
    given = [tensor for one in steps for tensor in (one.gradient, one.momentum)]
    if all(one.gradient is None for one in steps):
        return True
    return all(tensor is not None and tensor.is_contiguous() for tensor in given)


def _stack_of(
    plan: StackPlan,
    steps: Sequence[BlockStep],
    group: Group,
    seen: tuple[Tensor, Tensor, Tensor, Tensor | None],  # N, B, U, and B preconditioned
) -> Stack:
    """Return what hooks see of blocks that have been updated: wide matrices."""
    direction, clipped, update, preconditioned = seen
    update, blocks = update.to(direction.dtype), [one.block for one in steps]
    if direction.shape[1] > direction.shape[2]:
        direction, clipped, update = direction.mT, clipped.mT, update.mT
        preconditioned = preconditioned.mT if preconditioned is not None else None
    key = normalize.KEY
    neurons = {key: torch.stack([one.state[key] for one in steps])} if plan.normalizes else {}
    conditions, ages = None, [one.age for one in steps]
    if plan.preconditioner is not None:
        own = torch.stack([one.state[precondition.KEY] for one in steps])
        conditions = precondition.condition_numbers(plan.preconditioner, own)
    return Stack(
        tuple((block.name, block.number) for block in blocks),
        direction,
        clipped,
        update,
        tuple(block.scale for block in blocks),
        blocks[0].coefficients,
        group,
        neurons,
        preconditioned,
        conditions,
        tuple(ages),
    )
