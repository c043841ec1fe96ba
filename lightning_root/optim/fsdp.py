"""Parameters whose rows lie on several ranks (FSDP2): each matrix is made whole on one of them.

Two exchanges carry many matrices at a time: the rows of N to the rank that owns the matrix, and
the rows of the update back, with what else the owner has made (state by matrices, to all ranks).
Where a stage wants G, its rows travel beside those of N. No rank holds more than its own matrices.
Stacks of matrices that lie whole on a rank are updated there; what is cut in other ways is
gathered, and every rank computes the same update.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed import Matrices, Replicas, collectives, replicas
from lightning_root.distributed.replicas import Bucket
from lightning_root.optim import blocks, local
from lightning_root.optim.stages.apply import apply_update_
from lightning_root.optim.stages.momentum import local_look_ahead

Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """One block of a parameter whose rows are spread."""

    block: blocks.MatrixBlock  # the matrix
    parameter: int  # place of its parameter among those of the exchange
    number: int  # of the block within the parameter
    of_rank: list[Range]  # which rows of the matrix each rank has, counted within the matrix
    own: slice  # this rank's rows of it, counted within its rows of the parameter
    columns: slice  # of the matrix, within the flattened parameter

    def size(self, rank: int) -> int:
        """Return how many elements of the matrix a rank has."""
        start, stop = self.of_rank[rank]
        return (stop - start) * self.block.shape[1]

    def cut(self, own: Tensor) -> Tensor:  # (own rows, columns) of the matrix
        """Take the matrix's rows out of this rank's rows of the parameter: a view."""
        return own[self.own, self.columns]


@dataclass(frozen=True, slots=True, eq=False)
class _RowPlan:
    """Parameters cut by rows among the same ranks, all of one dtype and device."""

    group: dist.ProcessGroup  # the ranks
    me: int  # this one among them
    rows: list[_Rows]  # their blocks
    buckets: list[Bucket]  # who owns which of these, and what travels together
    extra: list[tuple[int, ...]]  # elements that travel with the update of each, to every rank
    dtype: torch.dtype  # in which updates travel


class Sharded(local.Local):
    """Each rank updates its share of the matrices of sharded parameters."""

    def start(
        self, plan: blocks.GroupPlan, parameters: Sequence[blocks.BoundParameter]
    ) -> local.Finish:
        """Begin the step of DTensors; what is returned ends it."""
        rows: defaultdict[Any, list[blocks.BoundParameter]] = defaultdict(list)
        stacks: list[blocks.BoundParameter] = []
        gathered: list[blocks.BoundParameter] = []
        for bound in parameters:
            shards = collectives.row_shards(bound.parameter)
            if shards is None:
                gathered.append(bound)
                continue
            bound.gradient = collectives.placed_like(bound.gradient, bound.parameter)
            if bound.view.stack:
                stacks.append(_own_matrices(plan, bound, shards))
            else:
                kind = shards.group, blocks.state_dtype(bound.parameter), bound.parameter.device
                rows[kind].append(bound)
        if stacks:
            local.Local().start(plan, [own for own in stacks if own.parameter.numel()])
        finish = [self._start_rows(plan, alike, group) for (group, *_), alike in rows.items()]
        if gathered:
            for portion in local.portions(gathered, local.WHOLE_ELEMENTS):
                self.update_whole_(plan, portion)
        return partial(local.run_all, finish)

    def _start_rows(
        self,
        plan: blocks.GroupPlan,
        parameters: Sequence[blocks.BoundParameter],
        group: dist.ProcessGroup,
    ) -> local.Finish:
        key = ("rows", *[(id(bound), bound.measures) for bound in parameters])
        if key not in plan.schedules:
            plan.schedules[key] = _planned(plan, parameters, group)
        planned: _RowPlan = plan.schedules[key]
        values: list[Tensor] = []
        directions: list[Tensor] = []
        sources: list[Tensor | None] = []
        for bound in parameters:
            columns = bound.parameter.shape[1:].numel()
            values.append(collectives.local_part(bound.parameter).view(-1, columns))
            directions.append(local_look_ahead(bound, plan.group).view(-1, columns))
            given = None
            if plan.wants_source and bound.measures:
                given = collectives.local_part(bound.gradient).reshape(-1, columns)
                given = given.to(directions[-1])
            sources.append(given)
        states = [self.states(plan, bound) for bound in parameters]
        state = [states[rows.parameter][rows.number] for rows in planned.rows]
        of_rows = [parameters[rows.parameter] for rows in planned.rows]
        exchanges = [
            (bucket, _send_back(plan, planned, bucket, directions, sources, state, of_rows))
            for bucket in planned.buckets
        ]

        def finish() -> None:
            for bucket, exchange in exchanges:
                received = zip(bucket.members, exchange.wait(), strict=True)
                for rank, (members, flat) in enumerate(received):
                    sizes = [(planned.rows[i].size(planned.me), *planned.extra[i]) for i in members]
                    pieces = iter(
                        collectives.pieces_of(flat, [size for of_one in sizes for size in of_one])
                    )
                    for i, of_one in zip(members, sizes, strict=True):
                        update, *bits = [next(pieces) for _ in of_one]
                        value = planned.rows[i].cut(values[planned.rows[i].parameter])
                        block = planned.rows[i].block
                        group = plan.group if block.rates is None else block.rates.of(plan.group)
                        apply_update_([value], [update.view_as(value)], block.scale, group)
                        if rank != planned.me:
                            measures = of_rows[i].measures
                            own = blocks.travelling(plan, state[i], measures, planned.dtype)
                            for values_of, place in zip(own, bits, strict=True):
                                values_of.copy_(place)

        return finish


def _send_back(
    plan: blocks.GroupPlan,
    planned: _RowPlan,
    bucket: Bucket,
    directions: Sequence[Tensor],  # N, this rank's rows of each parameter
    sources: Sequence[Tensor | None],  # G, likewise, where a stage wants it in this step
    state: Sequence[Mapping[str, Tensor]],  # of each block
    bound: Sequence[blocks.BoundParameter],  # to which each block belongs
) -> collectives.Exchange:
    """Make this rank's matrices whole, compute their updates and send the rows back."""
    ranks = range(len(bucket.members))
    rows = planned.rows
    own = [rows[i] for i in bucket.members[planned.me]]
    sent = [
        [each for each in (directions[one.parameter], sources[one.parameter]) if each is not None]
        for one in rows
    ]
    to_owners = [
        [rows[i].cut(each) for i in members for each in sent[i]] for members in bucket.members
    ]
    of_rank = [
        [rows[i].size(rank) for i in bucket.members[planned.me] for _ in sent[i]] for rank in ranks
    ]
    sizes = [sum(pieces) for pieces in of_rank]
    there = collectives.Exchange(to_owners, sizes, directions[0], planned.group)
    from_ranks = [
        iter(collectives.pieces_of(received, pieces))
        for received, pieces in zip(there.wait(), of_rank, strict=True)
    ]
    steps = []
    for i, one in zip(bucket.members[planned.me], own, strict=True):
        shape, age, measures = one.block.shape, bound[i].age, bound[i].measures
        made = [torch.cat([next(pieces) for pieces in from_ranks]).view(shape) for _ in sent[i]]
        target = torch.empty_like(made[0], dtype=planned.dtype)
        source = made[1] if len(made) > 1 else None
        steps.append(
            blocks.BlockStep(
                one.block, None, made[0], target, None, state[i], source, age, measures
            )
        )
    local.update_blocks_(plan, steps, in_place=False)
    back = [
        [
            piece
            for one, given in zip(own, steps, strict=True)
            for piece in (
                given.target[slice(*one.of_rank[rank])],
                *blocks.travelling(plan, given.state, given.measures, planned.dtype),
            )
        ]
        for rank in ranks
    ]
    received = [
        sum(rows[i].size(planned.me) + sum(planned.extra[i]) for i in members)
        for members in bucket.members
    ]
    like = directions[0].new_empty(0, dtype=planned.dtype)
    return collectives.Exchange(back, received, like, planned.group)


def _planned(
    plan: blocks.GroupPlan, parameters: Sequence[blocks.BoundParameter], group: dist.ProcessGroup
) -> _RowPlan:
    """Plan who owns what of parameters that are updated together for the first time."""
    shards, me = collectives.RowShards(group), group.rank()
    like = parameters[0].parameter
    dtype = blocks.shared_dtype(like, plan.group)
    rows = []
    for place, bound in enumerate(parameters):
        of_rank = shards.rows(bound.parameter.shape[0])
        for number, block in enumerate(bound.blocks):
            (first, column), (height, width) = block.start, block.shape
            common = [collectives.overlap(of_one, (first, first + height)) for of_one in of_rank]
            start, stop = common[me]
            offset = of_rank[me][0]
            rows.append(
                _Rows(
                    block,
                    place,
                    number,
                    [(low - first, high - first) for low, high in common],
                    slice(max(start - offset, 0), max(stop - offset, 0)),
                    slice(column, column + width),
                )
            )
    matrices = [Matrices(one.block.name, one.block.number, one.block.shape) for one in rows]
    sizes = [one.block.elements for one in rows]
    elements = replicas.EXCHANGE_ELEMENTS
    steps = plan.group["ns_steps"]
    device = collectives.local_part(like).device
    buckets = Replicas(group).buckets(matrices, sizes, steps, device, elements)
    kept = blocks.state_dtype(like)
    extra = [
        blocks.travelling_sizes(plan, one.block, parameters[one.parameter].measures, kept, dtype)
        for one in rows
    ]
    return _RowPlan(group, me, rows, buckets, extra, dtype)


def _own_matrices(
    plan: blocks.GroupPlan, bound: blocks.BoundParameter, shards: collectives.RowShards
) -> blocks.BoundParameter:
    """Return those matrices of a stack that lie whole on this rank, as a parameter of their own."""
    value = collectives.local_part(bound.parameter)
    gradient = collectives.local_part(bound.gradient)
    key = ("stack", id(bound))
    if key not in plan.schedules:
        total = bound.parameter.shape[0]
        start, _ = shards.rows(total)[shards.group.rank()]
        first = start * (len(bound.blocks) // total)
        plan.schedules[key] = blocks.bind_parameter(
            bound.name, value, bound.view, plan.group, bound.rates, first
        )
    planned: blocks.BoundParameter = plan.schedules[key]
    if not bound.view.is_view(gradient):
        gradient = gradient.contiguous()
    state = {name: collectives.local_part(entry) for name, entry in bound.state.items()}
    return replace(
        planned,
        parameter=value,
        gradient=gradient,
        state=state,
        age=bound.age,
        measures=bound.measures,
    )
