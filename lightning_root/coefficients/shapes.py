"""Shapes of matrices, the smaller size first: "768x3072" in files, options and tables."""

from collections.abc import Sequence
from typing import TypeAlias

Shape: TypeAlias = tuple[int, int]  # (rows, columns) with rows <= columns


def check_shape(shape: Sequence[int]) -> Shape:
    """Return the shape with the smaller size first; raise ValueError if it is not two sizes."""
    sizes = sorted(shape) if len(shape) == 2 else []
    if not sizes or any(isinstance(s, bool) or int(s) != s or s < 1 for s in sizes):
        raise ValueError(f"`shape` must be two whole numbers >= 1, got {tuple(shape)}")
    return int(sizes[0]), int(sizes[1])


def shape_text(shape: Shape) -> str:
    """Write (768, 3072) as "768x3072"."""
    return f"{shape[0]}x{shape[1]}"


def parse_shape(text: str) -> Shape:
    """Read what `shape_text` wrote; raise ValueError if it is not two whole numbers."""
    m, n = (int(size) for size in text.split("x"))
    return m, n
