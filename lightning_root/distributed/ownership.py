"""Which rank orthogonalizes which matrix: each computes the same plan from names and shapes."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, Literal, TypeAlias, get_args

Shape: TypeAlias = tuple[int, int]
# Operations of a matrix of this shape, either way round, in so many steps of the iteration.
Cost: TypeAlias = Callable[[Shape, int], int]
CostForm: TypeAlias = Literal["cheapest", "standard"]
Placement: TypeAlias = Literal["replicated", "rows"]
# Matrices of one cost are a class of equal jobs: (cost, number of jobs), all costs falling.
JobClasses: TypeAlias = Sequence[tuple[int, int]]
Counts: TypeAlias = list[list[int]]  # for each class, how many of its jobs each rank has

CLOSE_PERCENT: Final = 101  # a plan within 1 % of the lower bound is not improved any more
MAX_PIGEONHOLE: Final = 100  # jobs a rank in the pigeonhole bound; with more it gains below 1 %


def cheapest_operations(shape: Shape, steps: int) -> int:
    """Return the operations of the cheaper form, where symmetric products take half of plain ones.

    With m <= n and T steps, a multiply-add being two: T (3 m^2 n + m^3) on the matrix,
    3 m^2 n + (4 T - 3) m^3 on its Gram matrix, which is what pays for wide ones.
    """
    m, n = sorted(shape)
    return min(steps * (3 * m * m * n + m**3), 3 * m * m * n + (4 * steps - 3) * m**3)


def standard_operations(shape: Shape, steps: int) -> int:
    """Return the operations with plain products, as on accelerators: T (4 m^2 n + 2 m^3)."""
    m, n = sorted(shape)
    return steps * (4 * m * m * n + 2 * m**3)


COSTS: Final[Mapping[CostForm, Cost]] = {
    "cheapest": cheapest_operations,
    "standard": standard_operations,
}


def bytes_bound(total: int, ranks: int, placement: Placement) -> float:
    """Return the least of `total` bytes that a rank receives, on average; it sends as much."""
    # "replicated" (DDP): the updates that others compute, as in an all-gather. "rows" (FSDP2): a
    # rank has 1 / N of the rows of what it owns; the others travel to it, and those of the update
    # back, in two all-to-alls.
    others = total * (ranks - 1) / ranks
    return others if placement == "replicated" else 2 * others / ranks


def count_traffic(
    owned: Sequence[Counter[Shape]], placement: Placement, element_bytes: int
) -> tuple[list[int], list[int]]:
    """Return the bytes that each rank sends and receives, from its number of matrices by shape."""
    ranks = len(owned)
    sent, received = [0] * ranks, [0] * ranks
    totals = sum(owned, Counter())
    for (rows, columns), total in totals.items():
        part = -(-rows // ranks)  # as FSDP2 cuts a parameter, here each matrix by itself
        for rank, shapes in enumerate(owned):
            own = shapes.get((rows, columns), 0)
            if placement == "replicated":
                # As if owners sent to all others themselves; a ring changes only who sends.
                there, here = rows * own * (ranks - 1), rows * (total - own)
            else:
                held = max(0, min(part, rows - part * rank))
                there = here = (total - own) * held + own * (rows - held)
            sent[rank] += element_bytes * columns * there
            received[rank] += element_bytes * columns * here
    return sent, received


@dataclass(frozen=True, slots=True, order=True)
class Matrices:
    """Equal matrices that follow each other in one parameter; ValueError if a number is too low."""

    name: str  # of the parameter
    number: int  # of the first within the parameter, from 0
    shape: Shape  # (rows, columns) of each, at least 1
    count: int = 1  # at least 1

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.count < 1 or self.number < 0:
            raise ValueError(
                f"`shape` and `count` must be >= 1 and `number` >= 0, got {self.shape}, "
                f"{self.count} and {self.number} for `{self.name}`; leave empty matrices out"
            )


def matrices_in(name: str, shapes: Iterable[Shape]) -> list[Matrices]:
    """Return the matrices of one parameter, equal neighbours together, empty ones left out."""
    found, number = [], 0
    for shape, equal in groupby(shapes):
        count = len(list(equal))
        if min(shape) > 0:
            found.append(Matrices(name, number, shape, count))
        number += count
    return found


@dataclass(frozen=True, slots=True)
class Piece:
    """Matrices that one rank owns."""

    owner: int
    matrices: Matrices


@dataclass(frozen=True)
class OwnershipPlan:
    """Who orthogonalizes what, and what that takes in a step."""

    pieces: tuple[Piece, ...]  # by name and number; each matrix is in exactly one
    operations: tuple[int, ...]  # of each rank
    sent: tuple[int, ...]  # bytes that each rank sends; see `bytes_bound`
    received: tuple[int, ...]  # bytes that each rank receives
    lower_bound: int  # operations that the busiest rank has at the least, whatever the plan
    bytes_bound: float  # bytes that a rank sends, and receives, at the least, on average
    largest: int  # operations of the most costly matrix

    @property
    def ranks(self) -> int:
        """N."""
        return len(self.operations)

    @property
    def matrices(self) -> int:
        """Number of matrices."""
        return sum(piece.matrices.count for piece in self.pieces)

    @property
    def busiest(self) -> int:
        """Operations of the busiest rank, for which all others wait."""
        return max(self.operations)

    @property
    def share(self) -> float:
        """The busiest rank's part of all operations; 1 / N if perfectly balanced."""
        return self.busiest / sum(self.operations)

    @property
    def balance(self) -> float:
        """Operations of the busiest rank over the mean, at least 1."""
        return self.share * self.ranks

    @property
    def limited_by_largest(self) -> bool:
        """Whether one matrix is more than a fair share and all that the busiest rank has."""
        return self.busiest == self.largest and self.largest * self.ranks > sum(self.operations)

    def owner(self, name: str, number: int = 0) -> int:
        """Return the rank that orthogonalizes matrix `number` of a parameter, or raise KeyError."""
        after = bisect_right(
            self.pieces, (name, number), key=lambda p: (p.matrices.name, p.matrices.number)
        )
        if after:
            piece = self.pieces[after - 1]
            end = piece.matrices.number + piece.matrices.count
            if piece.matrices.name == name and number < end:
                return piece.owner
        raise KeyError(f"no matrix {number} of `{name}` in the plan")

    def owned_by(self, rank: int) -> list[Matrices]:
        """Return what a rank orthogonalizes, in the order of names and numbers."""
        return [piece.matrices for piece in self.pieces if piece.owner == rank]


def plan_ownership(
    matrices: Iterable[Matrices],  # all that are orthogonalized, each once
    ranks: int,
    *,
    steps: int = 5,  # of the iteration
    placement: Placement = "replicated",  # for the bytes; the owners are the same
    element_bytes: int = 4,  # of what travels: 4 for float32, 2 for bfloat16
    cost: Cost = cheapest_operations,  # a positive whole number
) -> OwnershipPlan:
    """Give every matrix an owner, so that the busiest rank has little to do.

    Matrices are never cut; stacks of them are. The same matrices in any order give the same plan:
    among equal ones, those that come first by name and number go to the lower ranks. ValueError if
    there is no matrix, one is given twice, or a number is out of range.
    """
    ordered = sorted(matrices)
    _check_arguments(ordered, ranks, steps, placement, element_bytes)
    by_cost: dict[int, list[Matrices]] = defaultdict(list)
    for entry in ordered:
        operations = cost(entry.shape, steps)
        if type(operations) is not int or operations < 1:
            raise ValueError(
                f"`cost` must return a whole number >= 1, got {operations!r} for {entry.shape}; "
                "floats may differ between machines, and all ranks need one plan"
            )
        by_cost[operations].append(entry)
    classes = [(c, sum(e.count for e in by_cost[c])) for c in sorted(by_cost, reverse=True)]
    counts = balance_load(classes, ranks)
    pieces = [
        piece
        for (each, _), numbers in zip(classes, counts, strict=True)
        for piece in _assign_in_order(by_cost[each], numbers)
    ]
    owned: list[Counter[Shape]] = [Counter() for _ in range(ranks)]
    for piece in pieces:
        owned[piece.owner][piece.matrices.shape] += piece.matrices.count
    sent, received = count_traffic(owned, placement, element_bytes)
    total = element_bytes * sum(e.shape[0] * e.shape[1] * e.count for e in ordered)
    return OwnershipPlan(
        pieces=tuple(sorted(pieces, key=lambda piece: piece.matrices)),
        operations=tuple(rank_loads(classes, counts, ranks)),
        sent=tuple(sent),
        received=tuple(received),
        lower_bound=min_busiest_load(classes, ranks),
        bytes_bound=bytes_bound(total, ranks, placement),
        largest=classes[0][0],
    )


def _check_arguments(
    ordered: Sequence[Matrices], ranks: int, steps: int, placement: str, element_bytes: int
) -> None:
    """Raise ValueError if a number is out of range, or matrices are missing or given twice."""
    for name, value in (("ranks", ranks), ("steps", steps), ("element_bytes", element_bytes)):
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}")
    if placement not in (known := list(get_args(Placement))):
        raise ValueError(f"`placement` must be one of {known}, got {placement!r}")
    if not ordered:
        raise ValueError("`matrices` must hold at least one, got none; AdamW's need no owner")
    for before, after in pairwise(ordered):
        if before.name == after.name and before.number + before.count > after.number:
            twice = f"{after.number} of `{after.name}`"
            raise ValueError(f"`matrices` must hold each matrix once, got {twice} twice")


def _assign_in_order(entries: Sequence[Matrices], numbers: Sequence[int]) -> Iterator[Piece]:
    """Yield matrices of one cost in order, `numbers[rank]` for each rank; cut stacks as needed."""
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


def balance_load(classes: JobClasses, ranks: int) -> Counts:
    """Assign every job to a rank so that the busiest has little, in time by classes, not jobs."""
    # By longest processing time first (R. L. Graham, 1969), at most 4/3 - 1/(3 N) of the optimum.
    # Where that is not close to the lower bound, by MULTIFIT (Coffman, Garey, Johnson, 1978):
    # bisect the capacity at which the jobs fit. That leaves cheap jobs in heaps on the last ranks,
    # so as many classes as it does not harm are balanced by the first method again.
    counts = _longest_first(classes, ranks)
    low = min_busiest_load(classes, ranks)
    high = max(rank_loads(classes, counts, ranks))
    if 100 * high <= CLOSE_PERCENT * low:
        return counts
    while low < high:
        capacity = (low + high) // 2
        packed = _first_fit(classes, ranks, capacity)
        if packed is None:
            low = capacity + 1
        else:
            counts, high = packed, capacity
    rebalanced = (_longest_first(classes, ranks, counts[:k]) for k in range(len(classes) + 1))
    return next(each for each in rebalanced if max(rank_loads(classes, each, ranks)) <= high)


def rank_loads(classes: JobClasses, counts: Counts, ranks: int) -> list[int]:
    """Return the cost of all jobs of each rank."""
    loads = [0] * ranks
    for (cost, _), numbers in zip(classes, counts, strict=True):
        loads = [load + cost * number for load, number in zip(loads, numbers, strict=True)]
    return loads


def min_busiest_load(classes: JobClasses, ranks: int) -> int:
    """Return a lower bound on the busiest rank's load, for any plan of whole jobs."""
    total, jobs = sum(cost * count for cost, count in classes), sum(c for _, c in classes)
    bound = max(-(-total // ranks), classes[0][0])
    # Of k N + 1 jobs one rank has k + 1: at least the k + 1 cheapest of the k N + 1 most costly.
    for k in range(1, min((jobs - 1) // ranks, MAX_PIGEONHOLE) + 1):
        first, last = k * (ranks - 1), k * ranks + 1
        bound = max(bound, _cost_of_first(classes, last) - _cost_of_first(classes, first))
    return bound


def _cost_of_first(classes: JobClasses, jobs: int) -> int:
    """Return the cost of the `jobs` most costly jobs together."""
    total = 0
    for cost, count in classes:
        taken = min(count, jobs)
        total, jobs = total + cost * taken, jobs - taken
    return total


def _longest_first(classes: JobClasses, ranks: int, placed: Counts | None = None) -> Counts:
    """Assign jobs by longest processing time first, after those that `placed` has assigned."""
    counts = list(placed or [])
    loads = rank_loads(classes[: len(counts)], counts, ranks)
    for cost, count in classes[len(counts) :]:
        counts.append(_least_loaded_counts(loads, cost, count))
        loads = [load + cost * number for load, number in zip(loads, counts[-1], strict=True)]
    return counts


def _least_loaded_counts(loads: Sequence[int], cost: int, count: int) -> list[int]:
    """Return how many equal jobs each rank gets if each goes to the rank with the least so far."""
    # Jobs start where the loads L + k cost, over all ranks and k = 0, 1, ..., are smallest: at all
    # of these below some level, and at the level itself for the first ranks that are there.
    distinct = Counter(loads)

    def starts_below(level: int) -> int:
        return sum(n * -(-(level - load) // cost) for load, n in distinct.items() if load < level)

    level, above = min(loads), min(loads) + cost * count + 1
    while above - level > 1:
        middle = (level + above) // 2
        level, above = (middle, above) if starts_below(middle) <= count else (level, middle)
    numbers = [max(0, -(-(level - load) // cost)) for load in loads]
    left = count - sum(numbers)
    for rank, load in enumerate(loads):
        if left and load + numbers[rank] * cost == level:
            numbers[rank], left = numbers[rank] + 1, left - 1
    return numbers


def _first_fit(classes: JobClasses, ranks: int, capacity: int) -> Counts | None:
    """Fill rank after rank with the most costly jobs that still fit; return None if any is left."""
    left = [count for _, count in classes]
    filled: list[list[int]] = []
    while any(left):
        pattern, room = [], capacity
        for (cost, _), remaining in zip(classes, left, strict=True):
            pattern.append(min(remaining, room // cost))
            room -= cost * pattern[-1]
        # Ranks that are filled alike are filled at once, so there are few rounds.
        alike = min(n // taken for n, taken in zip(left, pattern, strict=True) if taken)
        if len(filled) + alike > ranks:
            return None
        filled += [pattern] * alike
        left = [n - alike * taken for n, taken in zip(left, pattern, strict=True)]
    filled += [[0] * len(classes)] * (ranks - len(filled))
    return [list(numbers) for numbers in zip(*filled, strict=True)]
