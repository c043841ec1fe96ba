"""One step of parameters whose rows lie on several ranks: each matrix is made whole on one.

Two exchanges carry many matrices at a time: the rows of the momentum to the rank that owns the
matrix, and the rows of the update back. No rank holds more than its own matrices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_root.distributed import (
    Bucket,
    Exchange,
    Matrix,
    Replicas,
    RowShards,
    local_part,
    overlap,
    pieces_of,
)
from lightning_root.distributed import replicas as plans
from lightning_root.functional import update_scale
from lightning_root.optim.batches import Block
from lightning_root.optim.elementwise import decay_and_descend_
from lightning_root.optim.items import Item, shared_dtype
from lightning_root.optim.momentum import look_ahead_here

Update: TypeAlias = Callable[[Sequence[Block]], None]
Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """This rank's rows of a parameter.

    Args:
        value: W, (own rows, columns).
        direction: N, alike, in the dtype of the state.
        rows: First row and the row after the last, of every rank.
    """

    value: Tensor
    direction: Tensor
    rows: list[Range]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one matrix lies in a parameter whose rows are spread.

    Args:
        part: This rank's rows of it.
        matrix: Its name, number and size.
        rows: Of the whole parameter.
        columns: Of the whole parameter, flattened.
        scale: Factor on the learning rate.
    """

    part: Part
    matrix: Matrix
    rows: Range
    columns: Range
    scale: float

    def of_rank(self, rank: int) -> Range:
        """Which rows of the matrix a rank has, counted within the matrix."""
        start, stop = overlap(self.part.rows[rank], self.rows)
        return start - self.rows[0], stop - self.rows[0]

    def size(self, rank: int) -> int:
        """How many elements of the matrix a rank has."""
        start, stop = self.of_rank(rank)
        return (stop - start) * self.matrix.columns

    def cut(self, own: Tensor, rank: int) -> Tensor:
        """The matrix's rows within this rank's rows of the parameter: a view."""
        start, stop = overlap(self.part.rows[rank], self.rows)
        offset = self.part.rows[rank][0]
        return own[max(start - offset, 0) : max(stop - offset, 0), slice(*self.columns)]


class ShardedUpdates:
    """The updates of parameters cut by rows among the same ranks, all of one dtype and device.

    When this object is made all updates have been computed and are under way to where their rows
    are; `finish` waits for them.

    Args:
        items: The parameters, the same on every rank, in the same order.
        group: The options of their parameter group.
        replicas: The ranks, which remember their plans.
        update: Computes the updates of blocks into their targets, which are not direct.
    """

    def __init__(
        self,
        items: Sequence[Item],
        group: Mapping[str, Any],
        replicas: Replicas,
        update: Update,
    ) -> None:
        self._group, self._replicas = group, replicas
        self._parts = [_part(item, RowShards(replicas.group), group) for item in items]
        self._places = [
            place
            for item, part in zip(items, self._parts, strict=True)
            for place in _places(item, part, group)
        ]
        matrices = [place.matrix for place in self._places]
        device = self._parts[0].direction.device
        buckets = replicas.buckets(matrices, group["ns_steps"], device, plans.EXCHANGE_ELEMENTS)
        self._under_way = [(bucket, self._sent_back(bucket, update)) for bucket in buckets]

    def finish(self) -> None:
        """Apply all updates to this rank's rows."""
        me = self._replicas.rank
        for bucket, exchange in self._under_way:
            for members, received in zip(bucket.members, exchange.wait(), strict=True):
                places = [self._places[i] for i in members]
                pieces = pieces_of(received, [place.size(me) for place in places])
                for place, piece in zip(places, pieces, strict=True):
                    value = place.cut(place.part.value, me)
                    decay_and_descend_([value], [piece.view_as(value)], place.scale, self._group)
        self._under_way.clear()

    def _sent_back(self, bucket: Bucket, update: Update) -> Exchange:
        """Make this rank's matrices whole, compute their updates, and send the rows back."""
        ranks, me = range(self._replicas.size), self._replicas.rank
        own = [self._places[i] for i in bucket.members[me]]
        like = self._places[0].part.direction
        there = Exchange(
            [
                [p.cut(p.part.direction, me) for p in (self._places[i] for i in members)]
                for members in bucket.members
            ],
            [sum(place.size(rank) for place in own) for rank in ranks],
            like,
            self._replicas.group,
        )
        from_ranks = [
            pieces_of(received, [place.size(rank) for place in own])
            for rank, received in zip(ranks, there.wait(), strict=True)
        ]
        blocks = []
        for number, place in enumerate(own):
            shape = (place.matrix.rows, place.matrix.columns)
            whole = torch.cat([pieces[number] for pieces in from_ranks]).view(shape)
            name = (place.matrix.name, place.matrix.number)
            target = torch.empty_like(whole, dtype=shared_dtype(whole, self._group))
            blocks.append(Block(name, None, whole, target, False, place.scale))
        update(blocks)
        back = [
            [
                block.target[slice(*place.of_rank(rank))]
                for place, block in zip(own, blocks, strict=True)
            ]
            for rank in ranks
        ]
        sizes = [sum(self._places[i].size(me) for i in members) for members in bucket.members]
        like = like.new_empty(0, dtype=shared_dtype(like, self._group))
        return Exchange(back, sizes, like, self._replicas.group)


def _part(item: Item, shards: RowShards, group: Mapping[str, Any]) -> Part:
    """Advance this rank's momentum and look ahead."""
    direction = look_ahead_here(item, group)
    value = local_part(item.parameter)
    columns = item.parameter.shape[1:].numel()
    rows = shards.rows(item.parameter.shape[0])
    return Part(value.view(-1, columns), direction.view(-1, columns), rows)


def _places(item: Item, part: Part, group: Mapping[str, Any]) -> Iterator[Place]:
    """Every matrix of a parameter, numbered as its view numbers them."""
    view, shape = item.view, item.parameter.shape
    rows = _ranges(view.rows or (shape[0],))
    columns = _ranges(view.columns or (shape[1:].numel(),))
    for number, (of_rows, of_columns) in enumerate(product(rows, columns)):
        height, width = of_rows[1] - of_rows[0], of_columns[1] - of_columns[0]
        oriented = (width, height) if view.transposed else (height, width)
        scale = update_scale(*oriented, group["adjust_lr_fn"])
        yield Place(part, Matrix(item.name, number, height, width), of_rows, of_columns, scale)


def _ranges(sizes: Sequence[int]) -> list[Range]:
    return list(pairwise(accumulate(sizes, initial=0)))


def own_matrices(item: Item, shards: RowShards) -> Item:
    """Those of a stack of matrices that lie whole on this rank.

    Args:
        item: With a view whose first dimension counts matrices.
        shards: How that dimension is cut.
    """
    total = item.parameter.shape[0]
    start, _ = shards.rows(total)[shards.group.rank()]
    return Item(
        item.name,
        local_part(item.parameter),
        local_part(item.gradient),
        {key: local_part(value) for key, value in item.state.items()},
        item.view,
        first=start * (len(item.view.matrices(item.parameter.shape)) // total),
    )
