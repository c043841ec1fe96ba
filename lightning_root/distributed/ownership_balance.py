"""Sharing out pieces of work so that the busiest rank has little: whole numbers, no matrices here.

Work comes in classes of equal pieces, (cost, count), so that the time taken depends on how many
classes there are and not on how many pieces. Two methods:

* Longest processing time first (R. L. Graham, 1969): each piece, the most costly first, goes to the
  rank with the least so far. At most 4/3 - 1/(3 N) of the optimum.
* MULTIFIT (Coffman, Garey, Johnson, 1978), where the first has not come close to what no plan can
  beat: look for the smallest capacity at which the pieces, the most costly first, fit into N ranks
  when each takes the first rank that has room. It leaves cheap pieces in heaps on the last ranks,
  so these are then shared out by the first method again, as many classes as that does not harm.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

Classes: TypeAlias = Sequence[tuple[int, int]]
"""(cost of a piece, number of pieces) with all costs different and falling."""

Counts: TypeAlias = list[list[int]]
"""For each class, how many of its pieces each rank has."""

CLOSE_PERCENT: Final = 101
"""A plan within 1 % of the lower bound is not improved any more."""

PIGEONHOLES: Final = 100
"""Pieces a rank up to which the pigeonhole bound is tried; with more it gains less than 1 %."""


def share_out(classes: Classes, ranks: int) -> Counts:
    """Give every piece to a rank; the same result wherever it is computed.

    Args:
        classes: At least one, with positive costs and counts.
        ranks: N, at least 1.

    Example:
        >>> from lightning_root.distributed.ownership_balance import loads_of, share_out
        >>> classes = [(3, 2), (2, 3)]  # two pieces of cost 3, three of cost 2
        >>> loads_of(classes, share_out(classes, 2), 2)  # the first method alone has 7 and 5
        [6, 6]
    """
    counts = _longest_first(classes, ranks)
    low = lower_bound(classes, ranks)
    high = max(loads_of(classes, counts, ranks))
    if 100 * high <= CLOSE_PERCENT * low:
        return counts
    while low < high:
        capacity = (low + high) // 2
        packed = _first_fit(classes, ranks, capacity)
        if packed is None:
            low = capacity + 1
        else:
            counts, high = packed, capacity
    levelled = (_longest_first(classes, ranks, counts[:kept]) for kept in range(len(classes) + 1))
    return next(each for each in levelled if max(loads_of(classes, each, ranks)) <= high)


def loads_of(classes: Classes, counts: Counts, ranks: int) -> list[int]:
    """The cost of all pieces that each rank has."""
    loads = [0] * ranks
    for (cost, _), numbers in zip(classes, counts, strict=True):
        loads = [load + cost * number for load, number in zip(loads, numbers, strict=True)]
    return loads


def lower_bound(classes: Classes, ranks: int) -> int:
    """What the busiest rank has at the least, in any plan of whole pieces.

    The mean; the most costly piece; and, because of k N + 1 pieces one rank has k + 1, the k + 1
    cheapest of the k N + 1 most costly.
    """
    total, pieces = sum(cost * count for cost, count in classes), sum(c for _, c in classes)
    bound = max(-(-total // ranks), classes[0][0])
    for k in range(1, min((pieces - 1) // ranks, PIGEONHOLES) + 1):
        bound = max(
            bound, _cost_of_first(classes, k * ranks + 1) - _cost_of_first(classes, k * (ranks - 1))
        )
    return bound


def _cost_of_first(classes: Classes, pieces: int) -> int:
    """The cost of so many pieces together, the most costly ones."""
    total = 0
    for cost, count in classes:
        taken = min(count, pieces)
        total, pieces = total + cost * taken, pieces - taken
    return total


def _longest_first(classes: Classes, ranks: int, kept: Counts | None = None) -> Counts:
    """Longest processing time first; the first classes may be placed already."""
    counts = list(kept or [])
    loads = loads_of(classes[: len(counts)], counts, ranks)
    for cost, count in classes[len(counts) :]:
        counts.append(_fill(loads, cost, count))
        loads = [load + cost * number for load, number in zip(loads, counts[-1], strict=True)]
    return counts


def _fill(loads: Sequence[int], cost: int, count: int) -> list[int]:
    """How many equal pieces each rank gets, if one by one goes to the rank with the least so far.

    They start where the loads L + k cost, over all ranks and k = 0, 1, ..., are smallest: at all of
    these below some level, and at the level itself for the first ranks that are there.
    """
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


def _first_fit(classes: Classes, ranks: int, capacity: int) -> Counts | None:
    """Fill rank after rank, each with the most costly pieces that still fit; None if any is left.

    Ranks that are filled alike are filled at once, so there are few rounds.
    """
    left = [count for _, count in classes]
    filled: list[list[int]] = []
    while any(left):
        pattern, room = [], capacity
        for (cost, _), remaining in zip(classes, left, strict=True):
            pattern.append(min(remaining, room // cost))
            room -= cost * pattern[-1]
        alike = min(n // taken for n, taken in zip(left, pattern, strict=True) if taken)
        if len(filled) + alike > ranks:
            return None
        filled += [pattern] * alike
        left = [n - alike * taken for n, taken in zip(left, pattern, strict=True)]
    filled += [[0] * len(classes)] * (ranks - len(filled))
    return [list(numbers) for numbers in zip(*filled, strict=True)]
