"""Costs of matrices in a step: operations that orthogonalize them, bytes to and from owners.

With N ranks and B bytes in all matrices, a rank receives on average, and sends as much,
"replicated" (DDP): (N - 1) / N B, the updates that others compute, as in an all-gather;
"rows" (FSDP2's shards): 2 (N - 1) / N B/N, two all-to-alls: of the matrices it owns it has 1 / N of
the rows, the others travel to it, and those of the update back.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

Shape: TypeAlias = tuple[int, int]
# Operations of a matrix of this shape, either way round, in so many steps of the iteration.
Cost: TypeAlias = Callable[[Shape, int], int]
CostForm: TypeAlias = Literal["cheapest", "standard"]
Placement: TypeAlias = Literal["replicated", "rows"]


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
