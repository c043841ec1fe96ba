"""Statistics of the entries: root mean squares, tails, the angle between two matrices.

Every function takes (*batch, m, n) and gives (*batch), in float32 or better and on the device of
its input, without waiting for it. The scale does not matter, from 1e-37 to 1e37. A matrix of zeros,
or without entries, has the value 0 wherever a ratio is not defined; a matrix with a NaN or an
infinity has the value NaN, and the others of its stack are not touched by it.
"""

import math

from torch import Tensor, inf

from lightning_root.functional.measures.scale import (
    check_same_shape,
    entries,
    norm,
    normalise,
    ratio,
)


def root_mean_square(matrix: Tensor) -> Tensor:
    """Root mean square of the entries of each matrix.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        ||X||_F / sqrt(m n), shape (*batch). 1 / sqrt(max(m, n)) for an orthogonal matrix.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `matrix` has fewer than 2 dimensions.

    Example:
        >>> import torch
        >>> from lightning_root.functional import root_mean_square
        >>> root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor(2.5000)
    """
    values, largest = normalise(matrix)
    return scaled_rms(norm(values), entries(values), largest)


def update_to_weight_ratio(update: Tensor, weight: Tensor) -> Tensor:
    """How far a step moves each weight, relative to the weight: RMS(update) / RMS(weight).

    About 1e-3 is a common rule of thumb in training; the ratio tells a learning rate from its
    effect.

    Args:
        update: What is subtracted, learning rate included, shape (*batch, m, n).
        weight: Shape (*batch, m, n).

    Returns:
        Ratios, shape (*batch): infinite for a weight of zeros with an update, 0 without one.

    Raises:
        TypeError: If an argument is not a floating point tensor.
        ValueError: If shapes differ, or have fewer than 2 dimensions.

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
    """How heavy the tails of the entries of each matrix are: E[x^4] / E[x^2]^2, about zero.

    About zero and not about the mean, and without subtracting 3, because the outlier threshold too
    is symmetric about zero. 3 for Gaussian entries, 1 (the least) for entries of one magnitude,
    m n (the greatest) for a single entry that is not zero. Unlike the outlier fraction, which the
    quantile fixes, it moves when outliers come or go.

    Args:
        momentum: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        Kurtosis, shape (*batch).

    Raises:
        TypeError: If `momentum` is not a floating point tensor.
        ValueError: If `momentum` has fewer than 2 dimensions.

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

    With an exactly orthogonalized update it is the sum of the momentum's singular values over
    sqrt(m) times its Frobenius norm: 1 for a momentum that was orthogonal already, 1 / sqrt(m) for
    one of rank one. Clipping, and what orthogonalization leaves undone, lower it further.

    Args:
        momentum: N, shape (*batch, m, n).
        update: U, shape (*batch, m, n).

    Returns:
        Cosines in [-1, 1], shape (*batch).

    Raises:
        TypeError: If an argument is not a floating point tensor.
        ValueError: If shapes differ, or have fewer than 2 dimensions.

    Example:
        >>> import torch
        >>> from lightning_root.functional import cosine_similarity
        >>> cosine_similarity(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2))
        tensor(0.9899)
    """
    check_same_shape(momentum=momentum, update=update)
    left, right = normalise(momentum, "momentum")[0], normalise(update, "update")[0]
    return scaled_cosine((left * right).sum(dim=(-2, -1)), norm(left), norm(right))


# The same of norms, for those who measure several things at once, or slice by slice.


def scaled_rms(size: Tensor, count: int, largest: Tensor) -> Tensor:
    """Root mean square of X, of `count` entries, with the norm `size` of X / `largest`."""
    return size / math.sqrt(count) * largest[..., 0, 0]


def scaled_kurtosis(size: Tensor, squares: Tensor, count: int) -> Tensor:
    """Kurtosis of X, of `count` entries, from the norms of X and of its squared entries."""
    return ratio(squares.square() * count, size.pow(4))


def scaled_cosine(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosine from the inner product of two matrices and their norms."""
    return ratio(product, left * right).clamp(-1.0, 1.0)
