"""What matrices cost in a step: operations that orthogonalize them, bytes to and from owners.

An owner needs the whole matrix, and every rank that holds a part of the weight needs that part of
the update. With N ranks and B bytes in all matrices, a rank receives on average

"replicated" (DDP): (N - 1) / N B, as in an all-gather, because every rank has all weights and
    averaged momenta, and lacks the updates that others compute.
"rows" (FSDP2's shards): 2 (N - 1) / N B/N, two all-to-alls, because an owner has 1 / N of the rows
    of each of its matrices; the other rows travel to it, and those of the update back.

and sends as much. No plan in which one rank computes a whole update moves less, if N divides the
rows. The busiest rank moves more as far as matrices are not balanced by size: the work is.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

Shape: TypeAlias = tuple[int, int]
Cost: TypeAlias = Callable[[Shape, int], int]
"""Operations of a matrix of this shape, either way round, in so many steps of the iteration."""

CostForm: TypeAlias = Literal["cheapest", "standard"]
Placement: TypeAlias = Literal["replicated", "rows"]


def cheapest_operations(shape: Shape, steps: int) -> int:
    """Return the operations of the cheaper form, where symmetric products take half of plain ones.

    With m <= n and T steps, a multiply-add being two: T (3 m^2 n + m^3) on the matrix,
    3 m^2 n + (4 T - 3) m^3 on its Gram matrix, which is what pays for wide ones.

    Example:
        >>> from lightning_root.distributed import cheapest_operations
        >>> cheapest_operations((768, 768), 5) == 20 * 768**3
        True
        >>> cheapest_operations((3072, 768), 5) == 29 * 768**3
        True
    """
    m, n = sorted(shape)
    return min(steps * (3 * m * m * n + m**3), 3 * m * m * n + (4 * steps - 3) * m**3)


def standard_operations(shape: Shape, steps: int) -> int:
    """Return the operations with plain products, as on accelerators: T (4 m^2 n + 2 m^3).

    Example:
        >>> from lightning_root.distributed import standard_operations
        >>> standard_operations((768, 3072), 5) == 90 * 768**3
        True
    """
    m, n = sorted(shape)
    return steps * (4 * m * m * n + 2 * m**3)


COSTS: Final[Mapping[CostForm, Cost]] = {
    "cheapest": cheapest_operations,
    "standard": standard_operations,
}


def bytes_bound(total: int, ranks: int, placement: Placement) -> float:
    """Return the least that a rank receives in a step, on average over the ranks; it sends as much.

    Args:
        total: B, bytes of all matrices.
        ranks: N.
        placement: Where weights lie.

    Example:
        >>> from lightning_root.distributed import bytes_bound
        >>> bytes_bound(800, 4, "replicated"), bytes_bound(800, 4, "rows")
        (600.0, 300.0)
    """
    others = total * (ranks - 1) / ranks
    return others if placement == "replicated" else 2 * others / ranks


def count_traffic(
    owned: Sequence[Counter[Shape]], placement: Placement, element_bytes: int
) -> tuple[list[int], list[int]]:
    """Return the bytes that each rank sends and receives, from its number of matrices by shape."""
    ranks = len(owned)
    sent, received = [0] * ranks, [0] * ranks
    totals: Counter[Shape] = Counter()
    for shapes in owned:
        totals.update(shapes)
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
