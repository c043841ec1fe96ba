"""How many bytes a rank sends and receives in a step when every matrix has one owner.

An owner needs the whole matrix that it orthogonalizes, and all ranks that hold a part of the weight
need their part of the update. What that takes at the least depends on what lies where. N ranks, B
bytes in all matrices together:

"replicated", plain data parallelism (DDP)
    Every rank holds every weight and, once gradients are averaged, every momentum. An owner lacks
    nothing. An update is computed in one place and needed in N, so every rank receives all updates
    but its own. The owned parts add up to B, so the ranks together receive N B - B and one of them
    on average (N - 1) / N B: what an all-gather of the updates moves. Their dtype is free: updates
    that were iterated in bfloat16 lose nothing when they travel in it, at half the bytes.

"rows", FSDP2's shards
    Every rank holds 1 / N of the rows of each matrix: of its weight, gradient and momentum. The
    owner lacks the (N - 1) / N of the matrix that lie elsewhere, and after the step the same part
    of the update is missing elsewhere. A rank owns B / N on average, so it receives (N - 1) / N B/N
    while the matrices are brought together, and as much again, of all other matrices together,
    while the updates are handed back: two all-to-alls, 2 (N - 1) / N B/N.

Whoever receives, somebody sends, so the averages of bytes sent are the same. No plan in which one
rank computes a whole update moves less, if N divides the rows; `bytes_bound` is that average. The
busiest rank is above it as far as matrices are not shared out evenly by size: what is balanced is
the work.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from lightning_root.distributed.ownership_cost import Shape

Placement: TypeAlias = Literal["replicated", "rows"]


def bytes_bound(total: int, ranks: int, placement: Placement) -> float:
    """The least that a rank receives in a step, on average over the ranks; it sends as much.

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


def traffic(
    owned: Sequence[Mapping[Shape, int]], placement: Placement, element_bytes: int
) -> tuple[list[int], list[int]]:
    """Bytes that each rank sends and receives in a step.

    For "replicated", an owner is counted to send each update to every other rank itself; a ring or
    a tree shares that work among the ranks and leaves what is received. For "rows" the rows are cut
    as FSDP2 cuts those of a parameter: equal parts, rounded up, as far as the rows reach. (Of a
    parameter with several matrices, each is counted as if it were cut by itself.)

    Args:
        owned: For each rank, how many matrices of each shape (rows, columns) it owns.
        placement: Where weights lie.
        element_bytes: Bytes of an element on its way.

    Returns:
        Sent, received.
    """
    if placement == "replicated":
        own = [sum(m * n * count for (m, n), count in shapes.items()) for shapes in owned]
        sent = [element_bytes * elements * (len(own) - 1) for elements in own]
        return sent, [element_bytes * (sum(own) - elements) for elements in own]
    there_and_back = [element_bytes * elements for elements in _rows_moved(owned)]
    return there_and_back, list(there_and_back)


def _rows_moved(owned: Sequence[Mapping[Shape, int]]) -> list[int]:
    """Elements that each rank sends: rows to owners, then rows of updates to who holds them.

    What it sends there it receives on the way back, and the other way round: it receives as much.
    """
    ranks = len(owned)
    totals: dict[Shape, int] = {}
    for shapes in owned:
        for shape, count in shapes.items():
            totals[shape] = totals.get(shape, 0) + count
    moved = [0] * ranks
    for (rows, columns), total in totals.items():
        part = -(-rows // ranks)
        for rank, shapes in enumerate(owned):
            held = max(0, min(part, rows - part * rank))
            own = shapes.get((rows, columns), 0)
            moved[rank] += columns * ((total - own) * held + own * (rows - held))
    return moved
