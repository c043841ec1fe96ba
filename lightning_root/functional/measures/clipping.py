"""What the outlier threshold took away from the momentum.

Shapes, scales, zeros and entries that are not finite are treated as in `entries`.
"""

import math

from torch import Tensor

from lightning_root.functional.measures.scale import (
    check_same_shape,
    entries,
    magnitude,
    nonzero,
    norm,
    normalise,
    ratio,
    widen,
)


def outlier_fraction(momentum: Tensor, clipped: Tensor) -> Tensor:
    """Share of the entries that the threshold changed, zeros included in the count.

    With a quantile p as the threshold it is 1 - p by construction, less where entries are zero or
    tie: a check that clipping does what it should. What outliers there are shows in
    `outlier_energy`, `kurtosis` and `relative_threshold`.

    Args:
        momentum: N, shape (*batch, m, n).
        clipped: B = clamp(N, -eps, eps), of the same dtype.

    Returns:
        Fractions in [0, 1], shape (*batch).

    Raises:
        TypeError: If an argument is not a floating point tensor.
        ValueError: If shapes differ, or have fewer than 2 dimensions.

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

    Returns:
        Energies in [0, 1], shape (*batch).

    Raises:
        TypeError: If an argument is not a floating point tensor.
        ValueError: If shapes differ, or have fewer than 2 dimensions.

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
    """The outlier threshold in units of the momentum's root mean square: max|B| / RMS(N).

    1.645 for Gaussian entries and the 0.9 quantile; the heavier the tail, the lower. Where nothing
    was clipped it is the largest magnitude in these units.

    Args:
        momentum: N, shape (*batch, m, n).
        clipped: B = clamp(N, -eps, eps), of the same dtype.

    Returns:
        Ratios, shape (*batch).

    Raises:
        TypeError: If an argument is not a floating point tensor.
        ValueError: If shapes differ, or have fewer than 2 dimensions.

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


# The same of norms, for those who measure several things at once, or slice by slice.


def share_of_nonzero(signs: Tensor, count: int, largest: Tensor) -> Tensor:
    """Share of the `count` entries of N - B that are not zero, from the norm of their signs.

    Signs and a norm, because counting booleans is ten times slower on a CPU. `largest` is the
    magnitude (*batch, 1, 1) of N.
    """
    # An infinity would pass for one more outlier.
    return signs.square() / count + 0 * largest[..., 0, 0]


def scaled_energy(outliers: Tensor, size: Tensor) -> Tensor:
    """Energy of N - B in that of N, from their norms, both divided by the same number."""
    return ratio(outliers, size).square()


def scaled_threshold(threshold: Tensor, size: Tensor, count: int, largest: Tensor) -> Tensor:
    """max|B| (*batch, 1, 1) in root mean squares of N, with the norm `size` of N / `largest`."""
    relative = (threshold / nonzero(largest))[..., 0, 0]
    return ratio(relative * math.sqrt(count), size)


def _outliers(momentum: Tensor, clipped: Tensor) -> tuple[Tensor, Tensor]:
    """N - B and the largest magnitude of N."""
    check_same_shape(momentum=momentum, clipped=clipped)
    values = widen(momentum, "momentum")
    return values - widen(clipped, "clipped"), magnitude(values)
