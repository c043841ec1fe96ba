"""Checks of matrices, and arithmetic on them that cannot overflow."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements (4 MiB of float32) that work in slices takes at a time: enough to keep an accelerator
# busy; a CPU is as fast with a quarter or with four times as many.
SLICE_ELEMENTS = 1 << 20


def check_matrix(
    matrix: Tensor,  # (*batch, m, n)
    name: str = "matrix",
    hint: str = "vectors belong to AdamW",
) -> None:
    """Raise TypeError for whole numbers and ValueError for fewer than 2 dimensions."""
    if not matrix.is_floating_point():
        raise TypeError(f"`{name}` must be a floating point tensor, got {matrix.dtype}")
    if matrix.ndim < 2:
        shape = tuple(matrix.shape)
        raise ValueError(f"`{name}` must have at least 2 dimensions, got shape {shape}; {hint}")


def check_same_shape(**matrices: Tensor) -> None:
    """Raise ValueError if two matrices, named as the caller names them, differ in shape."""
    (first, left), (second, right) = matrices.items()
    if left.shape != right.shape:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise ValueError(f"`{first}` and `{second}` must have the same shape, got {shapes}")


def widen(matrix: Tensor, name: str = "matrix") -> Tensor:
    """Check `matrix` and detach it; float16 and bfloat16 become float32."""
    check_matrix(matrix, name, hint="a vector v is the matrix v[None]")
    return matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))


def normalise(
    matrix: Tensor,  # (*batch, m, n)
    name: str = "matrix",
) -> tuple[Tensor, Tensor]:  # (*batch, m, n), (*batch, 1, 1)
    """Divide each matrix by its largest magnitude, so that no square overflows; 0 stays 0."""
    values = widen(matrix, name)
    largest = magnitude(values)
    return values / nonzero(largest), largest


def magnitude(values: Tensor) -> Tensor:  # (*batch, m, n) -> (*batch, 1, 1)
    """Return the largest magnitude of each matrix."""
    if 0 in values.shape[-2:]:
        return values.new_zeros((*values.shape[:-2], 1, 1))
    # Several times faster on a CPU than the infinity norm, and without a temporary of (m, n).
    highest = values.amax(dim=(-2, -1), keepdim=True)
    return torch.maximum(highest, -values.amin(dim=(-2, -1), keepdim=True))


def norm(values: Tensor) -> Tensor:  # (*batch, m, n) -> (*batch)
    """Return the Frobenius norm of each matrix."""
    size: Tensor = torch.linalg.vector_norm(values, dim=(-2, -1))
    return size


def entries(values: Tensor) -> int:
    """Return the number of entries of a matrix, at least 1 to divide by."""
    return max(values.shape[-2] * values.shape[-1], 1)


def nonzero(divisor: Tensor) -> Tensor:
    """Return `divisor` with 1 in place of 0."""
    return divisor.masked_fill(divisor == 0, 1.0)


def ratio(numerator: Tensor, denominator: Tensor, undefined: float = 0.0) -> Tensor:
    """Return the quotient: 0 for 0 / 0, and `undefined` for anything else / 0."""
    quotient = numerator / nonzero(denominator)
    return quotient.masked_fill((denominator == 0) & (numerator != 0), undefined)


def slices(extent: int, size: int, min_length: int = 1) -> Iterator[slice]:
    """Cut `size` elements an index into equal parts of `SLICE_ELEMENTS` or `min_length` indices."""
    count = -(-extent // max(min_length, SLICE_ELEMENTS // size))
    step = -(-extent // count)
    return (slice(start, start + step) for start in range(0, extent, step))
