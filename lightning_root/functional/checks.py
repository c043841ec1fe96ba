"""What the functions of this package take as a matrix."""

from torch import Tensor


def check_matrix(
    matrix: Tensor, name: str = "matrix", hint: str = "vectors belong to AdamW"
) -> None:
    """Refuse what is not a matrix, or a batch of them.

    Args:
        matrix: Shape (*batch, m, n).
        name: Of the argument.
        hint: What else could be done with a vector.

    Raises:
        TypeError: If it is not a floating point tensor.
        ValueError: If it has fewer than 2 dimensions.
    """
    if not matrix.is_floating_point():
        raise TypeError(f"`{name}` must be a floating point tensor, got {matrix.dtype}")
    if matrix.ndim < 2:
        raise ValueError(
            f"`{name}` must have at least 2 dimensions, got shape {tuple(matrix.shape)}; {hint}"
        )
