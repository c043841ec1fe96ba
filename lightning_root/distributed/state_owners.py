"""Who keeps which part of the optimizer's state, where no rank keeps all of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

from lightning_root.distributed.ownership import (
    Cost,
    Shape,
    cheapest_operations,
    matrices_in,
    plan_ownership,
)

# Shapes of a parameter's matrices, or the number of its elements: its state is made of these
Kind: TypeAlias = tuple[Shape, ...] | int

# Even parts begin at multiples of it, so that vector instructions see what they see of a whole
ALIGNED_ELEMENTS: Final = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one parameter's state, in order, each kept by one rank."""

    owners: tuple[int, ...]  # the rank of each
    sizes: tuple[int, ...]  # how many elements each has

    def of(self, rank: int) -> list[int]:
        """Return the numbers of a rank's parts."""
        return [number for number, owner in enumerate(self.owners) if owner == rank]

    def size(self, rank: int) -> int:
        """Return how many elements a rank keeps."""
        return sum(self.sizes[number] for number in self.of(rank))

    def range_of(self, rank: int) -> tuple[int, int]:
        """Return first element and end of a rank's only part; an empty range without a part."""
        ranges = pairwise(accumulate(self.sizes, initial=0))
        found = zip(self.owners, ranges, strict=True)
        return next((place for owner, place in found if owner == rank), (0, 0))


@dataclass
class StateOwners:
    """The parts of all parameters' states, decided when a parameter is first seen.

    Every rank decides for itself, and all alike, as long as they see the same parameters in the
    same order. What has been decided stays, also when parameters are added later.
    """

    ranks: int
    _known: dict[str, tuple[Kind, Parts]] = field(default_factory=dict)
    _next: int = 0

    def include(
        self, kinds: Mapping[str, Kind], steps: int, cost: Cost = cheapest_operations
    ) -> None:
        """Decide about the parameters that are new, or whose state has become another."""
        new = {
            name: kind
            for name, kind in kinds.items()
            if name not in self._known or self._known[name][0] != kind
        }
        matrices = {name: kind for name, kind in new.items() if not isinstance(kind, int)}
        if matrices:  # whole where it is orthogonalized, so that nothing travels but the update
            listed = [m for name, shapes in matrices.items() for m in matrices_in(name, shapes)]
            plan = plan_ownership(listed, self.ranks, steps=steps, cost=cost)
            for name, shapes in matrices.items():
                owners = tuple(plan.owner(name, number) for number in range(len(shapes)))
                sizes = tuple(rows * columns for rows, columns in shapes)
                self._known[name] = shapes, Parts(owners, sizes)
        for name, kind in new.items():
            if isinstance(kind, int):
                self._known[name] = kind, self._even(kind)

    def parts(self, name: str) -> Parts:
        """The parts of a parameter's state; KeyError if it has not been included."""
        return self._known[name][1]

    def _even(self, elements: int) -> Parts:
        """Cut what AdamW has, elementwise, evenly; small ones begin where the last has ended."""
        each = -(-elements // (self.ranks * ALIGNED_ELEMENTS)) * ALIGNED_ELEMENTS
        starts = range(0, elements, each or 1)
        owners = tuple((self._next + number) % self.ranks for number in range(len(starts)))
        self._next = (self._next + len(starts)) % self.ranks
        return Parts(owners, tuple(min(each, elements - start) for start in starts))
