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
    return scaled_rms(*normalise(matrix))


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
    numerator = scaled_rms(*normalise(update, "update"))
    denominator = scaled_rms(*normalise(weight, "weight"))
    return ratio(numerator, denominator, undefined=inf)


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
    return scaled_kurtosis(normalise(momentum, "momentum")[0])


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
    return scaled_cosine(normalise(momentum, "momentum")[0], normalise(update, "update")[0])


# The same of what `normalise` gives, for those who measure several things of one matrix.


def scaled_rms(values: Tensor, largest: Tensor) -> Tensor:
    """Root mean square of `values * largest`."""
    return norm(values) / math.sqrt(entries(values)) * largest[..., 0, 0]


def scaled_kurtosis(values: Tensor) -> Tensor:
    """Kurtosis, of any multiple of `values`."""
    return ratio(norm(values.square()).square() * entries(values), norm(values).pow(4))


def scaled_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine, between any multiples of `left` and `right`."""
    product = (left * right).sum(dim=(-2, -1))
    return ratio(product, norm(left) * norm(right)).clamp(-1.0, 1.0)
