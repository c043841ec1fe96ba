"""Matrices as data: what is orthogonalized, and which of it belongs to whom."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from lightning_root.distributed.ownership_cost import Shape


@dataclass(frozen=True, slots=True, order=True)
class Matrices:
    """Equal matrices that follow each other in one parameter: one, or some of a stack.

    Args:
        name: Of the parameter.
        number: Of the first within the parameter, from 0.
        shape: (rows, columns) of each.
        count: How many.

    Raises:
        ValueError: If a size or `count` is below 1, or `number` below 0.
    """

    name: str
    number: int
    shape: Shape
    count: int = 1

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.count < 1 or self.number < 0:
            raise ValueError(
                f"`shape` and `count` must be >= 1 and `number` >= 0, got {self.shape}, "
                f"{self.count} and {self.number} for `{self.name}`; leave empty matrices out"
            )


def matrices_in(name: str, shapes: Iterable[Shape]) -> list[Matrices]:
    """The matrices of one parameter, with equal neighbours put together; empty ones are left out.

    Example:
        >>> from lightning_root.distributed import matrices_in
        >>> [(m.number, m.shape, m.count) for m in matrices_in("qkv", [(8, 8), (2, 8), (2, 8)])]
        [(0, (8, 8), 1), (1, (2, 8), 2)]
    """
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
