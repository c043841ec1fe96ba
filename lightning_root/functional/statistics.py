"""Statistics of the entries of a step's matrices: sizes, tails, angles, what was clipped.

Every public function takes floating point tensors of one shape (*batch, m, n), or raises TypeError
or ValueError, and gives (*batch), in float32 or better, without waiting for the device. The scale
does not matter, from 1e-37 to 1e37. A matrix of zeros, or without entries, has the value 0 wherever
a ratio is not defined; a matrix with a NaN or an infinity has the value NaN, and the others of its
stack are not touched by it.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, inf
from torch.linalg import vector_norm

from lightning_root.functional.matrices import (
    check_same_shape,
    entries,
    magnitude,
    nonzero,
    norm,
    normalise,
    ratio,
    slices,
    widen,
)

GAUSSIAN_KURTOSIS: Final = 3.0  # of independent entries, whatever their rows' and columns' scales


def root_mean_square(matrix: Tensor) -> Tensor:
    """Root mean square of the entries of each matrix.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        ||X||_F / sqrt(m n), shape (*batch). 1 / sqrt(max(m, n)) for an orthogonal matrix.

    Example:
        >>> import torch
        >>> from lightning_root.functional import root_mean_square
        >>> root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor(2.5000)
    """
    values, largest = normalise(matrix)
    return scaled_rms(norm(values), entries(values), largest)


def update_to_weight_ratio(update: Tensor, weight: Tensor) -> Tensor:
    """Compute how far a step moves each weight: RMS(update) / RMS(weight), often about 1e-3.

    Args:
        update: What is subtracted, learning rate included, shape (*batch, m, n).
        weight: Shape (*batch, m, n).

    Returns:
        Ratios, shape (*batch): infinite for a weight of zeros with an update, 0 without one.

    Example:
        >>> import torch
        >>> from lightning_root.functional import update_to_weight_ratio
        >>> update_to_weight_ratio(torch.full((4, 8), 0.001), torch.full((4, 8), -0.5))
        tensor(0.0020)
    """
    check_same_shape(update=update, weight=weight)
    values, largest = normalise(update, "update")
    numerator = scaled_rms(norm(values), entries(values), largest)
    values, largest = normalise(weight, "weight")
    return ratio(numerator, scaled_rms(norm(values), entries(values), largest), undefined=inf)


def kurtosis(momentum: Tensor) -> Tensor:
    """Kurtosis of the entries of each matrix, E[x^4] / E[x^2]^2: how heavy their tails are.

    About zero and not about the mean, as the outlier threshold is. 3 for Gaussian entries, 1 (the
    least) for entries of one magnitude, m n (the greatest) for a single entry that is not zero.

    Args:
        momentum: Shape (*batch, m, n), any floating dtype; not modified.

    Example:
        >>> import torch
        >>> from lightning_root.functional import kurtosis
        >>> kurtosis(torch.tensor([[1.0, -1.0], [1.0, 1.0]])), kurtosis(torch.eye(4)[:1])
        (tensor(1.), tensor(4.))
    """
    values, _ = normalise(momentum, "momentum")
    return scaled_kurtosis(norm(values), norm(values.square()), entries(values))


def cosine_similarity(momentum: Tensor, update: Tensor) -> Tensor:
    """Cosine of the angle between momentum and update, as vectors of m n entries.

    With an exactly orthogonalized update it is 1 for a momentum that was orthogonal already and
    1 / sqrt(m) for one of rank one. Clipping, and inexact orthogonalization, lower it further.

    Args:
        momentum: N, shape (*batch, m, n).
        update: U, shape (*batch, m, n).

    Example:
        >>> import torch
        >>> from lightning_root.functional import cosine_similarity
        >>> cosine_similarity(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2))
        tensor(0.9899)
    """
    check_same_shape(momentum=momentum, update=update)
    left, right = normalise(momentum, "momentum")[0], normalise(update, "update")[0]
    return scaled_cosine((left * right).sum(dim=(-2, -1)), norm(left), norm(right))


def relative_kurtosis(matrix: Tensor) -> Tensor:
    """Kurtosis of the entries, each measured against the energy of its row and of its column.

    With p_ij the share of an entry in the energy, X_ij^2 / ||X||_F^2, and p_i and p_j those of its
    row and of its column, it is the sum of p_ij^2 / (p_i p_j) over all entries: one more than
    Pearson's mean square contingency. A matrix of rank one has 1, however heavy its tail, and
    independent Gaussian entries have 3, however their rows and columns are scaled; sums of some
    outer products, as the momentum of a layer is one, lie between the two. An entry that neither
    its row nor its column explains brings it above that. It does not change with the scale of the
    matrix, when it is transposed, or when zero rows or columns are added.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        Values in [1, min(m, n)], shape (*batch).

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
    """Compute relative kurtosis and the energy share of the largest entry, each (*batch)."""
    squares = values.square_()  # they are from `normalise`, and overwritten
    rows = squares.sum(dim=-1)
    columns = squares.sum(dim=-2, keepdim=True)
    # Divided before they are squared again, so that small entries do not vanish.
    weighted: Tensor = vector_norm(squares.div_(nonzero(columns).sqrt_()), dim=-1)
    kurtosis = weighted.square_().div_(nonzero(rows)).sum(dim=-1)
    return kurtosis, 1.0 / nonzero(rows.sum(dim=-1))  # the largest square is 1


def outlier_fraction(momentum: Tensor, clipped: Tensor) -> Tensor:
    """Share of the entries that the threshold changed, zeros included in the count.

    With a quantile p as the threshold it is 1 - p, less where entries are zero or tie; what
    outliers there are shows in `outlier_energy`, `kurtosis` and `relative_threshold`.

    Args:
        momentum: N, shape (*batch, m, n).
        clipped: B = clamp(N, -eps, eps), of the same dtype.

    Example:
        >>> import torch
        >>> from lightning_root.functional import clip_outliers, outlier_fraction
        >>> momentum = torch.arange(1.0, 13.0).reshape(3, 4)
        >>> outlier_fraction(momentum, clip_outliers(momentum, quantile=0.75))
        tensor(0.2500)
    """
    outliers, largest = _outliers(momentum, clipped)
    return share_of_nonzero(norm(outliers.sign()), entries(outliers), largest)


def outlier_energy(momentum: Tensor, clipped: Tensor) -> Tensor:
    """Share of the momentum's energy that the threshold took away: ||N - B||_F^2 / ||N||_F^2.

    For Gaussian entries and the 0.9 quantile it is 0.031; a heavy tail brings it towards 1.

    Args:
        momentum: N, shape (*batch, m, n).
        clipped: B = clamp(N, -eps, eps), of the same dtype.

    Example:
        >>> import torch
        >>> from lightning_root.functional import outlier_energy
        >>> momentum = torch.tensor([[3.0, -4.0]])
        >>> outlier_energy(momentum, momentum.clamp(-2, 2))
        tensor(0.2000)
    """
    outliers, largest = _outliers(momentum, clipped)
    divisor = nonzero(largest)
    return scaled_energy(norm(outliers / divisor), norm(widen(momentum) / divisor))


def relative_threshold(momentum: Tensor, clipped: Tensor) -> Tensor:
    """Outlier threshold in units of the momentum's root mean square: max|B| / RMS(N).

    1.645 for Gaussian entries and the 0.9 quantile; the heavier the tail, the lower. Where nothing
    was clipped it is the largest magnitude in these units.

    Args:
        momentum: N, shape (*batch, m, n).
        clipped: B = clamp(N, -eps, eps), of the same dtype.

    Example:
        >>> import torch
        >>> from lightning_root.functional import relative_threshold
        >>> momentum = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> relative_threshold(momentum, momentum.clamp(-2, 2))
        tensor(0.8000)
    """
    check_same_shape(momentum=momentum, clipped=clipped)
    values, largest = normalise(momentum, "momentum")
    threshold = magnitude(widen(clipped, "clipped"))
    return scaled_threshold(threshold, norm(values), entries(values), largest)


def _outliers(momentum: Tensor, clipped: Tensor) -> tuple[Tensor, Tensor]:
    """Return N - B and the largest magnitude of N."""
    check_same_shape(momentum=momentum, clipped=clipped)
    values = widen(momentum, "momentum")
    return values - widen(clipped, "clipped"), magnitude(values)


# From norms, for callers that need several statistics, or go slice by slice.


class Norms(NamedTuple):
    """Sums over N, B and U, with X = N / max|N|: Frobenius norms but for the last, each (k)."""

    size: Tensor  # of X
    squares: Tensor  # of the squares of its entries
    outliers: Tensor  # of (N - B) / max|N|
    changed: Tensor  # of the signs of N - B
    product: Tensor  # inner product of X and U


def norms(
    momentum: Tensor,  # N, (k, m, n), with at least one entry
    clipped: Tensor,  # B, (k, m, n)
    update: Tensor,  # U, (k, m, n)
    largest: Tensor,  # max|N|, (k, 1, 1), in float32 or better
) -> Norms:
    """Take all sums in one passage over the entries, slice by slice."""
    count, rows, columns = momentum.shape
    divisor = nonzero(largest)
    found = [
        _norms_of_slice(momentum[:, part], clipped[:, part], update[:, part], divisor)
        for part in slices(rows, count * columns)
    ]
    parts = torch.stack(found)  # (slices, 5, k)
    size, squares, outliers, changed = vector_norm(parts[:, :-1], dim=0)
    return Norms(size, squares, outliers, changed, parts[:, -1].sum(dim=0))


def _norms_of_slice(momentum: Tensor, clipped: Tensor, update: Tensor, divisor: Tensor) -> Tensor:
    """Take the sums over some rows, (5, k); at most two copies of them are alive at a time."""
    values = momentum / divisor
    size, squares = norm(values), norm(values.square())
    product = values.mul_(update).sum(dim=(-2, -1))
    del values
    outliers = widen(momentum) - widen(clipped)
    energy = norm(outliers.div_(divisor))
    return torch.stack([size, squares, energy, norm(outliers.sign_()), product])


def scaled_rms(size: Tensor, count: int, largest: Tensor) -> Tensor:
    """Compute the root mean square of X, of `count` entries, from the norm of X / `largest`."""
    return size / math.sqrt(count) * largest[..., 0, 0]


def scaled_kurtosis(size: Tensor, squares: Tensor, count: int) -> Tensor:
    """Compute the kurtosis of X, of `count` entries, from the norms of X and of its squares."""
    return ratio(squares.square() * count, size.pow(4))


def scaled_cosine(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute the cosine from the inner product of two matrices and their norms."""
    return ratio(product, left * right).clamp(-1.0, 1.0)


def share_of_nonzero(signs: Tensor, count: int, largest: Tensor) -> Tensor:
    """Compute the share of the entries of N - B that are not zero, from the norm of their signs."""
    # Counting booleans is ten times slower on a CPU. An infinity in N would pass for one more.
    return signs.square() / count + 0 * largest[..., 0, 0]


def scaled_energy(outliers: Tensor, size: Tensor) -> Tensor:
    """Compute the energy of N - B in that of N, from norms that were divided by one number."""
    return ratio(outliers, size).square()


def scaled_threshold(threshold: Tensor, size: Tensor, count: int, largest: Tensor) -> Tensor:
    """Compute max|B| in root mean squares of N, with the norm `size` of N / `largest`."""
    relative = (threshold / nonzero(largest))[..., 0, 0]
    return ratio(relative * math.sqrt(count), size)
