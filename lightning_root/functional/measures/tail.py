"""The tail that rows and columns do not explain: entries that stand alone.

Shapes, scales, zeros and entries that are not finite are treated as in `entries`.
"""

from typing import Final

from torch import Tensor
from torch.linalg import vector_norm

from lightning_root.functional.measures.scale import nonzero, normalise

GAUSSIAN_KURTOSIS: Final = 3.0
"""Of independent Gaussian entries, whatever the scales of their rows and columns."""


def relative_kurtosis(matrix: Tensor) -> Tensor:
    """Kurtosis of the entries, each measured against the energy of its row and of its column.

    With p_ij the share of an entry in the energy, X_ij^2 / ||X||_F^2, and p_i and p_j those of its
    row and of its column, it is the sum of p_ij^2 / (p_i p_j) over all entries: one more than
    Pearson's mean square contingency. A matrix of rank one has 1, however heavy its tail, and
    independent Gaussian entries have 3, however their rows and columns are scaled; sums of some
    outer products, as the momentum of a layer is one, lie between the two. An entry that neither
    its row nor its column explains brings it above that, up to min(m, n) where each row and
    column has just one.

    It does not change with the scale of the matrix, when it is transposed, when rows or columns
    change places, or when zero rows or columns are added.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        Values in [1, min(m, n)], shape (*batch).

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `matrix` has fewer than 2 dimensions.

    Example:
        >>> import torch
        >>> from lightning_root.functional import kurtosis, relative_kurtosis
        >>> loud_row = torch.ones(8, 8)
        >>> loud_row[0] *= 100
        >>> [round(measure(loud_row).item(), 2) for measure in (kurtosis, relative_kurtosis)]
        [7.99, 1.0]
        >>> relative_kurtosis(torch.eye(8))
        tensor(8.)
    """
    return tail(normalise(matrix)[0])[0]


def tail(values: Tensor) -> tuple[Tensor, Tensor]:
    """Relative kurtosis, and the share of the energy that the largest entry has; each (*batch).

    Args:
        values: As from `normalise`; overwritten.
    """
    squares = values.square_()
    rows = squares.sum(dim=-1)
    columns = squares.sum(dim=-2, keepdim=True)
    # Divided before they are squared again, so that small entries do not vanish.
    weighted: Tensor = vector_norm(squares.div_(nonzero(columns).sqrt_()), dim=-1)
    kurtosis = weighted.square_().div_(nonzero(rows)).sum(dim=-1)
    return kurtosis, 1.0 / nonzero(rows.sum(dim=-1))  # the largest square is 1
