"""One process updates all matrices: the plainest answer to the question who computes what.

`ddp` and `fsdp` give the others. All three have one protocol: `start(plan, parameters)`
begins the step of some parameters of a group, and what it returns ends it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import call
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from lightning_root.distributed import gather
from lightning_root.distributed.collectives import local_part, pieces_of, scatter_like
from lightning_root.distributed.replicas import cut_by_size
from lightning_root.kernels import run_in_order
from lightning_root.optim.blocks import (
    NO_STATE,
    BlockStep,
    BoundParameter,
    GroupPlan,
    MatrixBlock,
    state_dtype,
)
from lightning_root.optim.stages.apply import apply_update_
from lightning_root.optim.stages.momentum import in_float8, whole_look_ahead
from lightning_root.optim.step import Stack, StackPlan, plan_stack, update_stack_

Finish: TypeAlias = Callable[[], None]

SMALL_ELEMENTS: Final = 1 << 17
"""Of a matrix; below it a CPU is faster with several at a time."""

STACK_ELEMENTS: Final = {"cpu": 1 << 18}
"""So many elements of small matrices are orthogonalized at a time: what a core's cache holds."""

OTHER_STACK_ELEMENTS: Final = 1 << 25
"""Of small matrices at a time on accelerators, which want few, large operations: 128 MiB."""

WHOLE_ELEMENTS: Final = 1 << 25
"""Of parameters that are not updated in place, so many have a whole update at a time."""

AHEAD_ELEMENTS: Final = 1 << 20
"""Of parameters whose momentum is kept in 8 bits, so many have a whole N for each CPU thread."""

MAX_SCHEDULES: Final = 64
"""Remembered for a group, of whose parameters others may have a gradient in each step."""


class Local:
    """Every matrix is updated here, where it lies if its memory allows."""

    def start(self, plan: GroupPlan, parameters: Sequence[BoundParameter]) -> Finish:
        """Begin the step of parameters that are not sharded; what is returned ends it."""
        in_place: list[BoundParameter] = []
        copied: list[BoundParameter] = []
        for bound in parameters:
            (in_place if bound.is_in_place() else copied).append(bound)
        finish: Finish = nothing
        if in_float8(plan.group):  # each has a whole N until it is updated
            for portion in portions(in_place, _ahead_elements(in_place)):
                self.start_blocks(plan, self.steps_in_place(plan, portion))()
        elif in_place:
            finish = self.start_blocks(plan, self.steps_in_place(plan, in_place))
        if copied:
            for portion in portions(copied, WHOLE_ELEMENTS):
                self.update_whole_(plan, portion)
        return finish

    def start_blocks(
        self, plan: GroupPlan, steps: Sequence[BlockStep], in_place: bool = True
    ) -> Finish:
        """Begin the step of blocks, or of their updates alone; what is returned ends it."""
        update_blocks_(plan, steps, in_place)
        return nothing

    def steps_in_place(
        self, plan: GroupPlan, parameters: Sequence[BoundParameter]
    ) -> list[BlockStep]:
        """Return the blocks of parameters, to be updated where they lie."""
        return [step for b in parameters for step in self.steps_of(plan, b, b.parameter)]

    def steps_of(
        self, plan: GroupPlan, bound: BoundParameter, target: Tensor, whole: bool = False
    ) -> list[BlockStep]:
        """Return the blocks of a parameter; with `whole` its N is made before it is cut."""
        gradients, momenta = self.sources(plan, bound, whole)
        targets = bound.cut(target)
        state = self.states(plan, bound) if plan.of_matrices else None
        sources = None
        if plan.wants_source and bound.measures:
            given = gather(bound.gradient) if gradients is None else bound.gradient
            sources = bound.cut(given)
        return [
            BlockStep(
                block,
                gradients[number] if gradients is not None else None,
                momenta[number],
                targets[number],
                bound.finite,
                state[number] if state is not None else NO_STATE,
                sources[number] if sources is not None else None,
                bound.age,
                bound.measures,
            )
            for number, block in enumerate(bound.blocks)
        ]

    def sources(
        self, plan: GroupPlan, bound: BoundParameter, whole: bool
    ) -> tuple[Sequence[Tensor] | None, Sequence[Tensor]]:
        """Return G and M of each block; None and N where that is made of the whole parameter."""
        if whole or in_float8(plan.group):
            return None, bound.cut(gather(whole_look_ahead(bound, plan.group)))
        return bound.cut(bound.gradient), bound.cut(bound.state["momentum_buffer"])

    def states(self, plan: GroupPlan, bound: BoundParameter) -> Sequence[Mapping[str, Tensor]]:
        """Return what each block has of state that is kept by matrices: views."""
        return states_of(plan, bound, [block.shape for block in bound.blocks])

    def update_whole_(self, plan: GroupPlan, parameters: Sequence[BoundParameter]) -> None:
        """Update parameters that are copied, or gathered from shards: all U, then each W."""
        steps: list[BlockStep] = []
        updates: list[tuple[BoundParameter, Tensor]] = []
        for bound in parameters:
            dtype = state_dtype(bound.parameter)
            whole = torch.empty(bound.parameter.shape, dtype=dtype, device=bound.gradient.device)
            updates.append((bound, whole))
            steps += self.steps_of(plan, bound, whole, whole=True)
        self.start_blocks(plan, steps, in_place=False)()
        for bound, whole in updates:
            scale = _common_scale_(bound, whole)
            update = local_part(scatter_like(whole, bound.parameter))
            flags = None if bound.finite is None else [bound.finite]
            group = plan.group if bound.rates is None else bound.rates.of(plan.group)
            apply_update_([local_part(bound.parameter)], [update], scale, group, flags)


def states_of(
    plan: GroupPlan, bound: BoundParameter, shapes: Sequence[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """Cut state that is kept by matrices, of matrices of these shapes, into that of each: views."""
    found: list[dict[str, Tensor]] = [{} for _ in shapes]
    for spec in plan.of_matrices:
        flat = local_part(bound.state[spec.key]).view(-1)
        sizes = [spec.size(shape, plan.group) for shape in shapes]
        for own, values in zip(found, pieces_of(flat, sizes), strict=True):
            own[spec.key] = values
    return found


def nothing() -> None:
    """Do what is left of a step that has been taken."""


def run_all(finish: Sequence[Finish]) -> None:
    """End what has been begun, in that order."""
    for end in finish:
        end()


def portions(parameters: Sequence[BoundParameter], elements: int) -> list[list[BoundParameter]]:
    """Cut into consecutive parts of at most so many elements together, at least one at a time."""
    return cut_by_size(parameters, [bound.parameter.numel() for bound in parameters], elements)


def _ahead_elements(parameters: Sequence[BoundParameter]) -> int:
    on_cpu = bool(parameters) and parameters[0].parameter.device.type == "cpu"
    return AHEAD_ELEMENTS * torch.get_num_threads() if on_cpu else WHOLE_ELEMENTS


def _common_scale_(bound: BoundParameter, update: Tensor) -> float:
    """Return the scale of all blocks; where they differ, put it into the update and return 1."""
    if len({block.scale for block in bound.blocks}) == 1:
        return bound.blocks[0].scale
    for block, part in zip(bound.blocks, bound.cut(update), strict=True):
        part.mul_(block.scale)
    return 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Stacks, the most work first, and how many threads share them."""

    stacks: tuple[StackPlan, ...]
    workers: int


def update_blocks_(plan: GroupPlan, steps: Sequence[BlockStep], in_place: bool) -> None:
    """Update blocks here, on several threads where the matrices are on a CPU."""
    key = (in_place, torch.get_num_threads(), *[id(one.block) for one in steps])
    schedule: Schedule | None = plan.schedules.get(key)
    if schedule is None:
        if len(plan.schedules) >= MAX_SCHEDULES:
            plan.schedules.clear()
        schedule = plan.schedules[key] = _scheduled(plan, steps, in_place)
    keep = bool(plan.hooks)
    jobs = [
        partial(update_stack_, stack, [steps[i] for i in stack.members], plan.group, keep)
        for stack in schedule.stacks
    ]
    if schedule.workers == 1:
        done: Iterable[Stack | None] = map(call, jobs)
    else:
        done = run_in_order(jobs, schedule.workers, schedule.workers if keep else None)
    for seen in done:
        for hook in plan.hooks:
            assert seen is not None
            hook(seen)


def _scheduled(plan: GroupPlan, steps: Sequence[BlockStep], in_place: bool) -> Schedule:
    """Put blocks that are alike into stacks and those in order."""
    # What is first finishes last where threads share the work, so that they end together.
    alike: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(steps):
        kind = one.momentum.dtype, one.target.dtype, one.momentum.device, one.block.scale
        by_rows = bool(plan.of_matrices) and one.block.by_rows
        alike[*one.block.shape, *kind, one.block.rates, by_rows].append(number)
    stacks = [part for equal in alike.values() for part in _parts(equal, steps[equal[0]].momentum)]
    stacks.sort(key=lambda part: _work(steps[part[0]].block, len(part)), reverse=True)
    on_cpu = all(steps[part[0]].momentum.device.type == "cpu" for part in stacks)
    work = [_work(steps[part[0]].block, len(part)) for part in stacks]
    workers = _workers(work) if on_cpu else 1
    threads = torch.get_num_threads() if workers == 1 else 1  # of one operation
    planned = [plan_stack(p, steps[p[0]], plan.group, in_place, threads) for p in stacks]
    return Schedule(tuple(planned), workers)


def _work(block: MatrixBlock, count: int) -> int:
    """Return the multiplications of one product of each matrix with its own transpose."""
    return count * block.shape[0] * block.shape[1] * min(block.shape)


def _parts(members: Sequence[int], like: Tensor) -> Iterator[Sequence[int]]:
    """Yield as many equal blocks at a time as is fastest."""
    size, device = like.numel(), like.device.type
    count = max(1, STACK_ELEMENTS.get(device, OTHER_STACK_ELEMENTS) // size)
    if device == "cpu":
        fair = math.ceil(len(members) / torch.get_num_threads())  # something for every thread
        count = 1 if size >= SMALL_ELEMENTS else min(count, fair)
    for start in range(0, len(members), count):
        yield members[start : start + count]


def _workers(work: Sequence[int]) -> int:
    """Return how many threads share stacks of so much work: all, unless one is most of it."""
    threads = torch.get_num_threads()
    balanced = len(work) > 1 and max(work) <= 2.0 * sum(work) / threads
    return min(threads, len(work)) if balanced else 1
