"""Ranks that hold the same parameters share the work: each computes for all what it owns.

Of a matrix its update travels, and with it what else the owner has made (state by matrices), in one
asynchronous collective for 16 MiB, while the next are computed. Momentum advances on all ranks that
have it. Where each rank keeps a part of the state, AdamW's parameters travel likewise.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed import Matrices, Replicas, replicas
from lightning_root.distributed.collectives import Stream, all_gather, pieces_of, send_streams
from lightning_root.distributed.replicas import Bucket
from lightning_root.optim.blocks import (
    NO_STATE,
    BlockStep,
    BoundParameter,
    Group,
    GroupPlan,
    shared_dtype,
    state_dtype,
    travelling,
    travelling_sizes,
)
from lightning_root.optim.local import Finish, Local, run_all, states_of, update_blocks_
from lightning_root.optim.stages.adamw import adamw_update_
from lightning_root.optim.stages.apply import apply_update_
from lightning_root.optim.stages.momentum import advance_momentum_, in_float8, look_ahead_float8
from lightning_root.optim.state import StateParts


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """Blocks of one dtype and device, and how their updates travel."""

    numbers: list[int]  # their places among the blocks of the step
    buckets: list[Bucket]  # who owns which of these, and what travels together
    sizes: list[tuple[int, ...]]  # elements of the update of each, and of what travels with it
    dtype: torch.dtype  # in which updates travel


class Replicated(Local):
    """Each rank updates its share of the matrices for all ranks, which hold the same."""

    def __init__(self, ranks: Replicas) -> None:
        self._group, self._owners = ranks.group, ranks.owners
        self._ranks, self._me, self._size = ranks, ranks.rank, ranks.size

    def start_blocks(
        self, plan: GroupPlan, steps: Sequence[BlockStep], in_place: bool = True
    ) -> Finish:
        """Compute what this rank owns and send it; what is returned applies the updates of all."""
        finish = []
        for shared in self._shared(plan, steps):
            some = [steps[number] for number in shared.numbers]
            finish.append(self._start(plan, shared, some, in_place))
        return partial(run_all, finish)

    def _shared(self, plan: GroupPlan, steps: Sequence[BlockStep]) -> list[_Shared]:
        """Return who owns what, planned when these blocks are first updated together."""
        key = ("shared", *[(id(one.block), one.measures) for one in steps])
        if key not in plan.schedules:
            kinds: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
            for number, one in enumerate(steps):
                kind = one.momentum.dtype, state_dtype(one.target), one.momentum.device
                kinds[kind].append(number)
            plan.schedules[key] = [self._plan(plan, steps, alike) for alike in kinds.values()]
        found: list[_Shared] = plan.schedules[key]
        return found

    def _plan(self, plan: GroupPlan, steps: Sequence[BlockStep], numbers: list[int]) -> _Shared:
        some = [steps[number] for number in numbers]
        blocks = [one.block for one in some]
        like, target = steps[numbers[0]].momentum, steps[numbers[0]].target
        dtype = shared_dtype(like, plan.group)
        # State by matrices has the parameter's precision, whatever momentum is kept in.
        kept, travels = state_dtype(target), self._owners is None
        sizes = [
            (one.block.elements, *travelling_sizes(plan, one.block, one.measures, kept, dtype))
            if travels
            else (one.block.elements,)
            for one in some
        ]
        buckets = self._ranks.buckets(
            [Matrices(block.name, block.number, block.shape) for block in blocks],
            [sum(of_block) for of_block in sizes],
            plan.group["ns_steps"],
            like.device,
            replicas.BUCKET_ELEMENTS,
        )
        return _Shared(numbers, buckets, sizes, dtype)

    def _start(
        self, plan: GroupPlan, shared: _Shared, steps: Sequence[BlockStep], in_place: bool
    ) -> Finish:
        under_way: list[tuple[Bucket, Tensor, Tensor, dist.Work]] = []
        device = steps[0].momentum.device
        for bucket in shared.buckets:
            whole = torch.zeros(self._size, bucket.width, dtype=shared.dtype, device=device)
            part = torch.zeros_like(whole[0])
            slots = _slots(part, shared, steps, bucket.members[self._me])
            own = [one._replace(target=update) for one, update, _ in slots]
            update_blocks_(plan, own, in_place=False)
            for one, _, places in slots:
                sent = travelling(plan, one.state, one.measures, shared.dtype)
                for values, place in zip(sent, places, strict=False):
                    place.copy_(values)
            # The sent part is kept until it has been sent.
            under_way.append((bucket, whole, part, all_gather(part, whole, self._group)))
            if self._owners is None:
                for rank, members in enumerate(bucket.members):
                    if rank != self._me:
                        _advance_([steps[i] for i in members], plan.group)

        def finish() -> None:
            for bucket, whole, _, work in under_way:
                work.wait()
                for rank, (members, part) in enumerate(zip(bucket.members, whole, strict=True)):
                    slots = _slots(part, shared, steps, members)
                    for one, _, places in slots if rank != self._me else ():
                        own = travelling(plan, one.state, one.measures, shared.dtype)
                        for values, place in zip(own, places, strict=False):
                            values.copy_(place)
                    _apply_all_([slot[:2] for slot in slots], plan.group, in_place)

        return finish

    def sources(
        self, plan: GroupPlan, bound: BoundParameter, whole: bool
    ) -> tuple[Sequence[Tensor] | None, Sequence[Tensor]]:
        """Return G and M of each block; of those that others keep a stand-in without memory."""
        if self._owners is None:
            return super().sources(plan, bound, whole)
        parts, flat = self._owners.parts(bound.name), bound.state["momentum_buffer"]
        gradients: Sequence[Tensor] | None = None
        if in_float8(plan.group):
            own_gradient = StateParts(parts, bound.view).part(
                "momentum_buffer", bound.gradient, self._me
            )
            flat = look_ahead_float8(own_gradient, bound, plan.group)
        else:
            gradients = bound.cut(bound.gradient)
        stand_in = flat.new_zeros(())
        own = iter(pieces_of(flat, [parts.sizes[number] for number in parts.of(self._me)]))
        return gradients, [
            next(own).view(block.shape) if owner == self._me else stand_in.expand(block.shape)
            for block, owner in zip(bound.blocks, parts.owners, strict=True)
        ]

    def states(self, plan: GroupPlan, bound: BoundParameter) -> Sequence[Mapping[str, Tensor]]:
        """Return what each block that this rank has has of state by matrices: views."""
        if self._owners is None:
            return super().states(plan, bound)
        parts = self._owners.parts(bound.name)
        shapes = [bound.blocks[number].shape for number in parts.of(self._me)]
        own = iter(states_of(plan, bound, shapes))
        return [next(own) if owner == self._me else NO_STATE for owner in parts.owners]

    def start_adamw(self, plan: GroupPlan) -> Finish:
        """Update this rank's part of AdamW's parameters and send it; what is returned ends it."""
        kinds: defaultdict[tuple[torch.dtype, torch.device], list[BoundParameter]]
        kinds = defaultdict(list)
        for bound in plan.live:
            kinds[bound.parameter.dtype, bound.parameter.device].append(bound)
        return partial(run_all, [self._adamw(alike, plan.group) for alike in kinds.values()])

    def _adamw(self, parameters: Sequence[BoundParameter], group: Group) -> Finish:
        assert self._owners is not None
        # A copy where memory has another order.
        flat = [bound.parameter.reshape(-1) for bound in parameters]
        pieces: list[list[Tensor]] = [[] for _ in range(self._size)]
        own: list[BoundParameter] = []
        for bound, values in zip(parameters, flat, strict=True):
            parts = self._owners.parts(bound.name)
            place = slice(*parts.range_of(self._me))
            gradient = bound.gradient.reshape(-1)[place]
            own.append(replace(bound, parameter=values[place], gradient=gradient))
            for owner, piece in zip(parts.owners, pieces_of(values, parts.sizes), strict=True):
                pieces[owner].append(piece)
        adamw_update_(own, group)
        streams = [Stream(of_rank) for of_rank in pieces]
        end_of_streams = send_streams(
            streams[self._me],
            [len(stream) for stream in streams],
            lambda rank, start, values: streams[rank].write_(start, values),
            flat[0],
            self._group,
            replicas.BUCKET_ELEMENTS,
        )

        def finish() -> None:
            end_of_streams()
            for bound, values in zip(parameters, flat, strict=True):
                if not bound.parameter.is_contiguous():
                    bound.parameter.copy_(values.view_as(bound.parameter))

        return finish


def _slots(
    part: Tensor,  # (width,), of one rank
    shared: _Shared,
    steps: Sequence[BlockStep],
    members: Sequence[int],
) -> list[tuple[BlockStep, Tensor, list[Tensor]]]:
    """Return members with the places of their update and of what travels with it: views."""
    pieces = iter(pieces_of(part, [size for i in members for size in shared.sizes[i]]))
    found = []
    for i in members:
        update, *places = [next(pieces) for _ in shared.sizes[i]]
        found.append((steps[i], update.view(steps[i].block.shape), places))
    return found


def _advance_(steps: Sequence[BlockStep], group: Group) -> None:
    """Advance the momentum of matrices that are orthogonalized elsewhere."""
    for one in steps:
        if one.gradient is not None:
            advance_momentum_(one.gradient, one.momentum, group, one.finite)


def _apply_all_(updates: Sequence[tuple[BlockStep, Tensor]], group: Group, in_place: bool) -> None:
    """Apply updates to their matrices, alike ones at once, or copy them to their places."""
    alike: defaultdict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for one, update in updates:
        if in_place:
            kind = one.block.scale, one.block.rates, one.target.dtype
            alike[kind].append((one.target, update))
        else:
            one.target.copy_(update)
    for (scale, rates, _), pairs in alike.items():
        own = group if rates is None else rates.of(group)
        apply_update_([t for t, _ in pairs], [u for _, u in pairs], scale, own)
