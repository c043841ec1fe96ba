"""Ranks that share the matrices of a step: who owns what, and what travels together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
import torch.distributed as dist

from lightning_root.distributed import ownership
from lightning_root.distributed.ownership import Cost, Matrices
from lightning_root.distributed.state_owners import StateOwners

Entry = TypeVar("Entry")

# Of all ranks together: 16 MiB of float32 updates travel while the next are computed
BUCKET_ELEMENTS: Final = 1 << 22
# Of rows that are brought together so many travel at a time: 128 MiB, in few exchanges
EXCHANGE_ELEMENTS: Final = 1 << 25


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some matrices of every rank, whose updates travel together, in one collective."""

    # for each rank the places of its matrices in the list that was shared out
    members: list[list[int]]
    width: int  # elements of the largest part; the others are padded


@dataclass
class Replicas:
    """A process group whose ranks share the work on the same matrices.

    Args:
        group: The ranks.
        owners: Which rank keeps which part of the state; None where each keeps all of its own.
    """

    group: dist.ProcessGroup
    owners: StateOwners | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """Number of this one."""
        return self.group.rank()

    def buckets(
        self,
        matrices: Sequence[Matrices],
        sizes: Sequence[int],
        steps: int,
        device: torch.device,
        elements: int,
    ) -> list[Bucket]:
        """Plan who orthogonalizes what, and what travels together; the same on every rank."""
        # Of each matrix so many elements of `sizes` travel, at most `elements` of all at a time.
        owner = self._owner(matrices, steps, cost_on(device))
        owned: list[list[int]] = [[] for _ in range(self.size)]
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
        self, matrices: Sequence[Matrices], steps: int, cost: Cost
    ) -> Callable[[str, int], int]:
        """Return who has the state, or whoever leaves the busiest rank with little to do."""
        if (owners := self.owners) is not None:
            return lambda name, number: owners.parts(name).owners[number]
        return ownership.plan_ownership(matrices, self.size, steps=steps, cost=cost).owner


def cost_on(device: torch.device) -> Cost:
    """Return how operations are counted: accelerators evaluate the iteration in standard form."""
    return ownership.COSTS["cheapest" if device.type == "cpu" else "standard"]


def cut_by_size(entries: Sequence[Entry], sizes: Sequence[int], at_most: int) -> list[list[Entry]]:
    """Cut into consecutive parts whose sizes add up to so much at most, at least one at a time."""
    parts: list[list[Entry]] = []
    total = 0
    for entry, size in zip(entries, sizes, strict=True):
        if not parts or total + size > at_most:
            parts.append([])
            total = 0
        parts[-1].append(entry)
        total += size
    return parts
