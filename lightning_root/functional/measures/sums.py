"""Sums over the entries of a step's matrices, slice by slice: no copy of a large matrix is made."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_root.functional.measures.scale import nonzero, norm, slices, widen


class Norms(NamedTuple):
    """Of N, B and U, with X = N / max|N|, each (k); Frobenius norms but for the last.

    Args:
        size: Of X.
        squares: Of the squares of its entries.
        outliers: Of (N - B) / max|N|.
        changed: Of the signs of N - B.
        product: Inner product of X and U.
    """

    size: Tensor
    squares: Tensor
    outliers: Tensor
    changed: Tensor
    product: Tensor


def norms(momentum: Tensor, clipped: Tensor, update: Tensor, largest: Tensor) -> Norms:
    """Everything that one passage over the entries gives.

    Args:
        momentum: N, shape (k, m, n), with at least one entry; none of the three is modified.
        clipped: B.
        update: U.
        largest: max|N|, shape (k, 1, 1), in float32 or better.
    """
    count, rows, columns = momentum.shape
    divisor = nonzero(largest)
    parts = torch.stack(
        [
            _of_slice(momentum[:, part], clipped[:, part], update[:, part], divisor)
            for part in slices(rows, count * columns)
        ]
    )
    size, squares, outliers, changed = torch.linalg.vector_norm(parts[:, :-1], dim=0)
    return Norms(size, squares, outliers, changed, parts[:, -1].sum(dim=0))


def _of_slice(momentum: Tensor, clipped: Tensor, update: Tensor, divisor: Tensor) -> Tensor:
    """`Norms` of some rows of the matrices: (5, k). No more than two copies are alive at a time."""
    values = momentum / divisor
    size, squares = norm(values), norm(values.square())
    product = values.mul_(update).sum(dim=(-2, -1))
    del values
    outliers = widen(momentum) - widen(clipped)
    energy = norm(outliers.div_(divisor))
    return torch.stack([size, squares, energy, norm(outliers.sign_()), product])
