"""Ranks that hold the same parameters, and what each of them does for all.

Every rank orthogonalizes the matrices that it owns and lays the updates into its part of a bucket;
one asynchronous collective per bucket brings all parts to all ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed.ownership import Matrices, plan_ownership
from lightning_root.distributed.ownership_cost import (
    Cost,
    cheapest_operations,
    standard_operations,
)
from lightning_root.distributed.shards import pieces_of
from lightning_root.distributed.state_owners import StateOwners

Entry = TypeVar("Entry")

BUCKET_ELEMENTS: Final = 1 << 22
"""Of all ranks together: 16 MiB of float32 updates travel while the next are computed."""

EXCHANGE_ELEMENTS: Final = 1 << 25
"""The same of rows that are brought together: 128 MiB, so that there are few exchanges."""

_REMEMBERED_PLANS: Final = 8

# torch 2.13 warns of the old name, which is the only one of 2.11.
_all_gather: Final = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Matrix(NamedTuple):
    """One matrix that is to be orthogonalized by somebody."""

    name: str
    number: int
    rows: int
    columns: int


@dataclass
class Bucket:
    """Some matrices of every rank, and the memory in which their updates travel.

    Args:
        members: For each rank the places of its matrices in the list that was shared out.
        width: Elements of the largest part; the others are padded.
    """

    members: list[list[int]]
    width: int


PlanKey: TypeAlias = tuple[tuple[Matrix, ...], int, str, int]


@dataclass
class Replicas:
    """A process group whose ranks hold the same parameters and gradients.

    Args:
        group: The ranks.
        owners: Which rank keeps which part of the state; None where each keeps all.
    """

    group: dist.ProcessGroup
    owners: StateOwners | None = None
    _plans: dict[PlanKey, list[Bucket]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self.group.rank()

    def buckets(
        self, matrices: Sequence[Matrix], steps: int, device: torch.device, elements: int
    ) -> list[Bucket]:
        """Who orthogonalizes what, and what travels together; the same on every rank.

        Args:
            matrices: All that this step orthogonalizes.
            steps: T, of the iteration.
            device: Where; accelerators evaluate the iteration in its standard form.
            elements: At most so many travel at a time, of all ranks together.
        """
        key = (tuple(matrices), steps, device.type, elements)
        if key not in self._plans:
            if len(self._plans) >= _REMEMBERED_PLANS:
                self._plans.clear()
            self._plans[key] = self._planned(matrices, steps, cost_on(device), elements)
        return self._plans[key]

    def _planned(
        self, matrices: Sequence[Matrix], steps: int, cost: Cost, elements: int
    ) -> list[Bucket]:
        owner = self._owner(matrices, steps, cost)
        owned: list[list[int]] = [[] for _ in range(self.size)]
        sizes = [m.rows * m.columns for m in matrices]
        # The largest first, so that the parts of one bucket are of one size.
        for place in sorted(range(len(matrices)), key=lambda place: -sizes[place]):
            owned[owner(matrices[place].name, matrices[place].number)].append(place)
        parts = [
            cut_by_size(places, [sizes[place] for place in places], elements // self.size)
            for places in owned
        ]
        buckets = []
        for number in range(max(len(of_rank) for of_rank in parts)):
            members = [of_rank[number] if number < len(of_rank) else [] for of_rank in parts]
            width = max(sum(sizes[place] for place in places) for places in members)
            buckets.append(Bucket(members, width))
        return buckets

    def _owner(
        self, matrices: Sequence[Matrix], steps: int, cost: Cost
    ) -> Callable[[str, int], int]:
        """Who has the state, or whoever leaves the busiest rank with little to do."""
        if (owners := self.owners) is not None:
            return lambda name, number: owners.parts(name).owners[number]
        listed = [Matrices(m.name, m.number, (m.rows, m.columns)) for m in matrices]
        return plan_ownership(listed, self.size, steps=steps, cost=cost).owner

    def gather(self, part: Tensor, whole: Tensor) -> dist.Work:
        """Bring the parts of all ranks, (width,), to all ranks, (size, width). Returns at once."""
        work: dist.Work | None = _all_gather(whole.flatten(), part, self.group, async_op=True)
        assert work is not None
        return work


def cost_on(device: torch.device) -> Cost:
    """How operations are counted: accelerators evaluate the iteration in its standard form."""
    return cheapest_operations if device.type == "cpu" else standard_operations


def cut_by_size(entries: Sequence[Entry], sizes: Sequence[int], at_most: int) -> list[list[Entry]]:
    """Consecutive entries whose sizes add up to so much at most, at least one at a time."""
    parts: list[list[Entry]] = []
    total = 0
    for entry, size in zip(entries, sizes, strict=True):
        if not parts or total + size > at_most:
            parts.append([])
            total = 0
        parts[-1].append(entry)
        total += size
    return parts


def slots(buffer: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Matrices of these shapes, one behind the other in a flat buffer: views."""
    pieces = pieces_of(buffer, [rows * columns for rows, columns in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def empty_bucket(bucket: Bucket, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for the parts of all ranks, (size, width)."""
    return torch.zeros(len(bucket.members), bucket.width, dtype=dtype, device=device)
