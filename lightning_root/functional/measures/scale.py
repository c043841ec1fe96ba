"""Matrices brought to entries within [-1, 1], so that no square overflows or vanishes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_root.functional.checks import check_matrix

SLICE_ELEMENTS = 1 << 20
"""Elements (4 MiB of float32) that work in slices has before it at a time: enough to keep an
accelerator busy; a CPU is as fast with a quarter or with four times as many."""


def normalise(matrix: Tensor, name: str = "matrix") -> tuple[Tensor, Tensor]:
    """Divide each matrix by its largest magnitude, in float32 or better.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.
        name: What the caller calls it, for error messages.

    Returns:
        The quotients (*batch, m, n), of which a matrix of zeros stays one, and the magnitudes
        (*batch, 1, 1), which are NaN or infinite where an entry is.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `matrix` has fewer than 2 dimensions.
    """
    values = widen(matrix, name)
    largest = magnitude(values)
    return values / nonzero(largest), largest


def widen(matrix: Tensor, name: str = "matrix") -> Tensor:
    """Check `matrix` and detach it; float16 and bfloat16 become float32."""
    check_matrix(matrix, name, hint="a vector v is the matrix v[None]")
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))


def magnitude(values: Tensor) -> Tensor:
    """The largest magnitude of each matrix (*batch, m, n), as (*batch, 1, 1)."""
    if values.shape[-2] == 0 or values.shape[-1] == 0:
        return values.new_zeros((*values.shape[:-2], 1, 1))
    # Several times faster on a CPU than the infinity norm, and without a temporary of (m, n).
    highest = values.amax(dim=(-2, -1), keepdim=True)
    return torch.maximum(highest, -values.amin(dim=(-2, -1), keepdim=True))


def norm(values: Tensor) -> Tensor:
    """Frobenius norm of each matrix: (*batch, m, n) -> (*batch)."""
    size: Tensor = torch.linalg.vector_norm(values, dim=(-2, -1))
    return size


def slices(extent: int, size: int, least: int = 1) -> Iterator[slice]:
    """Cut a dimension into parts as equal as can be, of at most `SLICE_ELEMENTS` elements each.

    Args:
        extent: Length of the dimension, at least 1.
        size: Elements for each index of it.
        least: Indices that a part may have all the same.
    """
    count = -(-extent // max(least, SLICE_ELEMENTS // size))
    step = -(-extent // count)
    return (slice(start, start + step) for start in range(0, extent, step))


def entries(values: Tensor) -> int:
    """How many entries a matrix has, at least 1 to divide by."""
    return max(values.shape[-2] * values.shape[-1], 1)


def ratio(numerator: Tensor, denominator: Tensor, undefined: float = 0.0) -> Tensor:
    """The quotient; 0 for 0 / 0, and `undefined` for anything else / 0."""
    quotient = numerator / nonzero(denominator)
    return quotient.masked_fill((denominator == 0) & (numerator != 0), undefined)


def nonzero(divisor: Tensor) -> Tensor:
    """`divisor`, with 1 in place of 0."""
    return divisor.masked_fill(divisor == 0, 1.0)


def check_same_shape(**matrices: Tensor) -> None:
    """Refuse two matrices of different shape; they are named as the caller names them."""
    (first, left), (second, right) = matrices.items()
    if left.shape != right.shape:
        raise ValueError(
            f"`{first}` and `{second}` must have the same shape, got {tuple(left.shape)} and "
            f"{tuple(right.shape)}"
        )
