"""Which rank orthogonalizes which matrix: a plan that every rank computes for itself, alike.

Without it, every rank orthogonalizes all matrices. With an owner for each, N ranks share the work
and exchange the updates. The plan is a pure function of names and shapes: no tensor, no process
group, and no message between ranks is needed to agree on it.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

from lightning_root.distributed.ownership_balance import loads_of, lower_bound, share_out
from lightning_root.distributed.ownership_cost import Cost, Shape, cheapest_operations
from lightning_root.distributed.ownership_matrices import Matrices as Matrices
from lightning_root.distributed.ownership_matrices import Piece as Piece
from lightning_root.distributed.ownership_traffic import Placement, bytes_bound, traffic


@dataclass(frozen=True)
class OwnershipPlan:
    """Who orthogonalizes what, and what that takes in a step.

    Args:
        pieces: In the order of names and numbers; each matrix is in exactly one.
        operations: Of each rank.
        sent: Bytes that each rank sends; see `ownership_traffic`.
        received: Bytes that each rank receives.
        lower_bound: Operations that the busiest rank has at the least, whatever the plan.
        bytes_bound: Bytes that a rank sends, and receives, at the least, on average.
        largest: Operations of the most costly matrix.
    """

    pieces: tuple[Piece, ...]
    operations: tuple[int, ...]
    sent: tuple[int, ...]
    received: tuple[int, ...]
    lower_bound: int
    bytes_bound: float
    largest: int

    @property
    def ranks(self) -> int:
        """N."""
        return len(self.operations)

    @property
    def matrices(self) -> int:
        """How many matrices there are."""
        return sum(piece.matrices.count for piece in self.pieces)

    @property
    def busiest(self) -> int:
        """Operations of the busiest rank, for which all others wait."""
        return max(self.operations)

    @property
    def share(self) -> float:
        """The busiest rank's part of all operations; 1 / N if shared out evenly."""
        return self.busiest / sum(self.operations)

    @property
    def balance(self) -> float:
        """Operations of the busiest rank over the mean, at least 1."""
        return self.share * self.ranks

    @property
    def limited_by_largest(self) -> bool:
        """Whether one matrix is more than a fair share and all that the busiest rank has.

        So it is wherever there are fewer matrices than ranks. More ranks do not help then.
        """
        return self.busiest == self.largest and self.largest * self.ranks > sum(self.operations)

    def owner(self, name: str, number: int = 0) -> int:
        """The rank that orthogonalizes a matrix.

        Args:
            name: Of its parameter.
            number: Of the matrix within the parameter.

        Raises:
            KeyError: If the plan has no such matrix.
        """
        place = bisect_right(
            self.pieces, (name, number), key=lambda p: (p.matrices.name, p.matrices.number)
        )
        if place:
            piece = self.pieces[place - 1]
            if (
                piece.matrices.name == name
                and number < piece.matrices.number + piece.matrices.count
            ):
                return piece.owner
        raise KeyError(f"no matrix {number} of `{name}` in the plan")

    def owned_by(self, rank: int) -> list[Matrices]:
        """What a rank orthogonalizes, in the order of names and numbers."""
        return [piece.matrices for piece in self.pieces if piece.owner == rank]


def plan_ownership(
    matrices: Iterable[Matrices],
    ranks: int,
    *,
    steps: int = 5,
    placement: Placement = "replicated",
    element_bytes: int = 4,
    cost: Cost = cheapest_operations,
) -> OwnershipPlan:
    """Give every matrix an owner, so that the busiest rank has little to do.

    Matrices are never cut; stacks of them are. The same matrices in any order give the same plan:
    among equal ones, those that come first by name and number go to the lower ranks.

    Args:
        matrices: All that are orthogonalized, each once.
        ranks: N.
        steps: T, of the iteration.
        placement: "replicated" where every rank has all weights (DDP), "rows" where each has some
            rows of every matrix (FSDP2). For the bytes; the owners are the same.
        element_bytes: Bytes of an element that travels: 4 for float32, 2 for bfloat16.
        cost: Operations of a matrix, a positive whole number.

    Raises:
        ValueError: If there is no matrix, one is given twice, or a number is out of range.

    Example:
        >>> from lightning_root.distributed import Matrices, plan_ownership
        >>> experts = Matrices("experts.up", 0, (512, 2048), count=6)
        >>> plan = plan_ownership([experts, Matrices("out", 0, (512, 512))], ranks=3)
        >>> [plan.owner("experts.up", number) for number in range(6)], plan.owner("out")
        ([0, 0, 1, 1, 2, 2], 0)
        >>> round(plan.balance, 2)
        1.21
    """
    ordered = sorted(matrices)
    _check(ordered, ranks, steps, placement, element_bytes)
    by_cost: dict[int, list[Matrices]] = defaultdict(list)
    for entry in ordered:
        by_cost[_checked_cost(cost, entry.shape, steps)].append(entry)
    classes = [(c, sum(e.count for e in by_cost[c])) for c in sorted(by_cost, reverse=True)]
    counts = share_out(classes, ranks)
    pieces = [
        piece
        for (each, _), numbers in zip(classes, counts, strict=True)
        for piece in _dealt(by_cost[each], numbers)
    ]
    owned: list[Counter[Shape]] = [Counter() for _ in range(ranks)]
    for piece in pieces:
        owned[piece.owner][piece.matrices.shape] += piece.matrices.count
    sent, received = traffic(owned, placement, element_bytes)
    total = element_bytes * sum(e.shape[0] * e.shape[1] * e.count for e in ordered)
    return OwnershipPlan(
        pieces=tuple(sorted(pieces, key=lambda piece: piece.matrices)),
        operations=tuple(loads_of(classes, counts, ranks)),
        sent=tuple(sent),
        received=tuple(received),
        lower_bound=lower_bound(classes, ranks),
        bytes_bound=bytes_bound(total, ranks, placement),
        largest=classes[0][0],
    )


def _dealt(entries: Sequence[Matrices], numbers: Sequence[int]) -> Iterator[Piece]:
    """Matrices of one cost in their order, so many to each rank; stacks are cut where they must."""
    rank, room = 0, numbers[0]
    for entry in entries:
        first, end = entry.number, entry.number + entry.count
        while first < end:
            while not room:
                rank += 1
                room = numbers[rank]
            taken = min(room, end - first)
            yield Piece(rank, Matrices(entry.name, first, entry.shape, taken))
            first, room = first + taken, room - taken


def _checked_cost(cost: Cost, shape: Shape, steps: int) -> int:
    operations = cost(shape, steps)
    if type(operations) is not int or operations < 1:
        raise ValueError(
            f"`cost` must return a whole number >= 1, got {operations!r} for {shape}; floats may "
            "differ between machines, and all ranks need one plan"
        )
    return operations


def _check(
    ordered: Sequence[Matrices], ranks: int, steps: int, placement: str, element_bytes: int
) -> None:
    for name, value in (("ranks", ranks), ("steps", steps), ("element_bytes", element_bytes)):
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}")
    if placement not in get_args(Placement):
        raise ValueError(
            f"`placement` must be one of {list(get_args(Placement))}, got {placement!r}"
        )
    if not ordered:
        raise ValueError("`matrices` must hold at least one, got none; AdamW's need no owner")
    for before, after in pairwise(ordered):
        if before.name == after.name and before.number + before.count > after.number:
            raise ValueError(
                f"`matrices` must hold each matrix once, got {after.number} of `{after.name}` twice"
            )
