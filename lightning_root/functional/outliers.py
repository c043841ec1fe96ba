"""The soft threshold that separates a momentum matrix into a base and its outliers.

ROOT (arXiv:2511.20626, Sec. 3.3) takes eps = the p-quantile of |N|, the outliers
O = sign(N) max(|N| - eps, 0), and orthogonalizes the base B = N - O. The difference equals
clamp(N, -eps, eps), which is what is computed: one pass, and no rounding when eps is far smaller
than the outliers.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_root.functional.matrices import check_matrix, magnitude, normalise
from lightning_root.functional.statistics import GAUSSIAN_KURTOSIS, tail

Quantile: TypeAlias = float | Literal["auto"]
"""p in (0, 1], or chosen for each matrix; see `automatic_quantile`."""

QuantileMode: TypeAlias = Literal["auto", "exact", "sampled"]
"""Names of the ways to find the threshold; see `outlier_threshold`."""

QUANTILE_MODES: Final[tuple[str, ...]] = get_args(QuantileMode)
SAMPLED_ENTRIES: Final = 1 << 16  # of each matrix in a sample
CLIPPED_PER_EXCESS: Final = 0.1  # share that `"auto"` clips at twice the Gaussian kurtosis
MAX_CLIPPED: Final = 0.2  # largest share that `"auto"` clips


def clip_outliers(matrix: Tensor, quantile: Quantile) -> Tensor:
    """Hold the entries of each matrix within its own `quantile` of magnitudes.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.
        quantile: p in (0, 1]; about a fraction 1 - p of the entries is clipped. 0.9 in the paper.
            `"auto"`: as many as the tail of the matrix calls for; see `automatic_quantile`.

    Returns:
        The base B = clamp(N, -eps, eps), shape and dtype of `matrix`.

    Raises:
        TypeError, ValueError: As `outlier_threshold`.

    Example:
        >>> import torch
        >>> from lightning_root.functional import clip_outliers
        >>> clip_outliers(torch.tensor([[1.0, -2.0], [3.0, -100.0]]), quantile=2 / 3)
        tensor([[ 1., -2.],
                [ 3., -3.]])
    """
    bound = outlier_threshold(matrix, quantile)[..., None, None].to(matrix.dtype)
    return torch.clamp(matrix, -bound, bound)


def outlier_threshold(
    matrix: Tensor, quantile: Quantile, *, mode: QuantileMode = "exact"
) -> Tensor:
    """Compute the `quantile` of the non-zero magnitudes of each matrix.

    Linear interpolation between order statistics, as `torch.quantile` and the paper's script do it.
    Exact zeros are left out: where most entries are zero (frozen rows, experts that saw no token)
    the paper's threshold falls to 1e-9, while this one does not change with zero rows or columns.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype, any size; not modified.
        quantile: p in (0, 1], or `"auto"`: `automatic_quantile` of each matrix, which is always
            taken from all entries.
        mode: `"exact"`: of all entries. `"sampled"`: of 65536 of them, evenly spread with a stride
            that shares no factor with the length of a row; the share beyond the threshold then has
            a standard deviation of sqrt(p (1 - p) / 65536), 0.0012 at p = 0.9. Matrices of fewer
            than twice as many entries are taken whole, and p = 1 is exact. Where none of the sample
            has a magnitude and others do, nothing is clipped: the threshold is the largest.
            `"auto"`: exact on a CPU, where selection costs a twentieth of a step, sampled on
            accelerators, where it means sorting.

    Returns:
        Thresholds, shape (*batch), float32 (float64 for float64 input); 0 for a zero matrix.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `quantile` is neither in (0, 1] nor "auto", `mode` is unknown, or `matrix`
            has fewer than 2 dimensions.
    """
    check_matrix(matrix)
    if mode not in QUANTILE_MODES:
        raise ValueError(f"`mode` must be one of {list(QUANTILE_MODES)}, got {mode!r}")
    valid = isinstance(quantile, int | float) and 0.0 < quantile <= 1.0
    if quantile != "auto" and not valid:
        hint = '0.9 is the paper\'s value, "auto" clips where there are outliers'
        raise ValueError(f"`quantile` must be in (0, 1], got {quantile!r}; {hint}")
    return _threshold(matrix, quantile, mode)


def clip_each(
    matrices: Tensor,  # (k, m, n)
    quantile: Quantile,
    mode: QuantileMode,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # (k, m, n), (k,)
    """Clip in place, unless the input is to be kept; return the thresholds too."""
    bounds = _threshold(matrices, quantile, mode)
    return clamp_each(matrices, bounds, out=None if keep else matrices), bounds


def clamp_each(matrices: Tensor, bounds: Tensor, out: Tensor | None) -> Tensor:
    """Hold each of the matrices (k, m, n) within its own bound (k,); None is fresh memory."""
    if bounds.device.type != "cpu":
        limits = bounds[:, None, None].to(matrices.dtype)
        return torch.clamp(matrices, -limits, limits, out=out)
    if out is None:
        out = matrices.clone()
    for matrix, bound in zip(out.unbind(), bounds.tolist(), strict=True):
        matrix.clamp_(-bound, bound)  # three times as fast as with tensors
    return out


def _threshold(matrix: Tensor, quantile: Quantile, mode: QuantileMode) -> Tensor:
    """Compute what `outlier_threshold` returns, of checked arguments."""
    if quantile == "auto":
        return _automatic_threshold(matrix, mode)
    batch = matrix.shape[:-2]
    if matrix.numel() == 0:
        return matrix.new_zeros(batch, dtype=torch.promote_types(matrix.dtype, torch.float32))
    entries = _magnitudes(matrix, mode if quantile < 1.0 else "exact")
    select = select_by_partition if matrix.device.type == "cpu" else select_by_sorting
    thresholds = select(entries, float(quantile)).reshape(batch)
    if entries.numel() == matrix.numel():
        return thresholds
    largest = torch.linalg.vector_norm(
        matrix.detach(), math.inf, dim=(-2, -1), dtype=thresholds.dtype
    )
    return torch.where(thresholds > 0, thresholds, largest)


def automatic_quantile(matrix: Tensor) -> Tensor:
    """Choose how much of each matrix is clipped: nothing without a tail, up to a fifth with one.

    p = 1 - 0.1 min(max(excess, 0), 2), where excess = kappa / 3 - 1 + share: kappa is the
    `relative_kurtosis`, of which Gaussian entries have 3 and sums of outer products, as a layer's
    momentum is one, less; share is what the largest entry has of ||N||_F^2. Nothing is clipped up
    to the Gaussian kurtosis, the paper's tenth at twice and a fifth from three times that on.

    Found on the momentum of a byte-level GPT of 1 M parameters: kappa was between 1.4 and 2.8, and
    2 to 50 where entries of the gradient were replaced by outliers, without which the update was
    recovered best with p = 0.99 for kappa near 5 and with p = 0.8 near 16. Plain kurtosis, and the
    largest entry over the 0.9 quantile, do not tell the two apart.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.

    Returns:
        p in [0.8, 1], shape (*batch), float32 (float64 for float64 input); 1 for a zero matrix,
        0.8 where an entry is not finite. It does not change with the scale of a matrix, when it is
        transposed, or when zero rows or columns are added.

    Raises:
        TypeError, ValueError: If `matrix` is no floating point tensor (*batch, m, n).
    """
    kurtosis, share = tail(normalise(matrix)[0])
    excess = kurtosis / GAUSSIAN_KURTOSIS - 1.0 + share
    clipped = (CLIPPED_PER_EXCESS * excess).clamp_(0.0, MAX_CLIPPED)
    return 1.0 - clipped.nan_to_num_(nan=MAX_CLIPPED)


def _automatic_threshold(matrix: Tensor, mode: QuantileMode) -> Tensor:  # -> (*batch)
    """Compute the threshold at `automatic_quantile`: the largest magnitude without a tail."""
    quantiles = automatic_quantile(matrix)
    largest = magnitude(matrix.detach())[..., 0, 0].to(quantiles.dtype)
    if matrix.device.type == "cpu":  # most matrices need no selection
        chosen = quantiles < 1.0
        if chosen.any():
            part = matrix if chosen.all() else matrix[chosen]
            found = select_by_partition(_magnitudes(part, mode), quantiles[chosen].tolist())
            largest[chosen] = torch.where(found > 0, found, largest[chosen])
        return largest
    if matrix.numel() == 0:
        return largest
    found = select_by_sorting(_magnitudes(matrix, mode), quantiles.reshape(-1, 1))
    found = found.reshape(largest.shape)
    return torch.where((quantiles < 1.0) & (found > 0), found, largest)


def _magnitudes(matrix: Tensor, mode: QuantileMode) -> Tensor:  # (*batch, m, n) -> (k, entries)
    """Copy the magnitudes of the entries that count: all, or an evenly spread sample."""
    if mode == "sampled" or (mode == "auto" and matrix.device.type != "cpu"):
        flat = matrix.flatten(-2)
        matrix = flat[..., :: sample_stride(flat.shape[-1], matrix.shape[-1])].unsqueeze(-2)
    magnitudes = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)).abs()
    return magnitudes.reshape(matrix.shape[:-2].numel(), -1)


def sample_stride(size: int, columns: int) -> int:
    """Return the distance of sampled entries in a matrix of `size` entries; 1 in a small one."""
    # A factor in common with the row length would always meet the same columns.
    stride = max(1, size // SAMPLED_ENTRIES)
    while math.gcd(stride, columns) > 1:
        stride -= 1
    return stride


# Quantiles of the non-zero entries of each row, with linear interpolation.


def select_by_partition(
    magnitudes: Tensor,  # (k, size)
    quantile: float | Sequence[float],  # k of them
) -> Tensor:  # (k,)
    """Compute quantiles by numpy's in-place selection, 20 to 50 times faster than `kthvalue`."""
    # Magnitudes are in the order of their bits, and whole numbers are three times as fast.
    values = magnitudes.numpy()
    bits = values.view(np.dtype(f"i{values.itemsize}"))
    without_zeros = bits.min() > 0  # much cheaper than counting
    if isinstance(quantile, float) and without_zeros:
        thresholds = _order_statistic(bits, values.dtype, quantile * (bits.shape[1] - 1))
    else:
        thresholds = np.zeros(len(bits))
        quantiles = [quantile] * len(bits) if isinstance(quantile, float) else quantile
        for index, (row, p) in enumerate(zip(bits, quantiles, strict=True)):
            nonzero = row.size if without_zeros else int(np.count_nonzero(row))
            if nonzero:
                position = row.size - nonzero + p * (nonzero - 1)
                thresholds[index] = _order_statistic(row[None], values.dtype, position)[0]
    return torch.from_numpy(thresholds).to(magnitudes.dtype)


def _order_statistic(
    bits: NDArray[Any],  # (k, size), reordered
    dtype: np.dtype[Any],
    position: float,
) -> NDArray[Any]:  # (k,), float64
    """Return what lies at a place of each sorted row, between two entries if it is not whole."""
    # One pivot, then the minimum of the upper part: two pivots at once lose numpy's SIMD path.
    last = bits.shape[1] - 1
    lower = min(int(position), last)
    bits.partition(lower, axis=1)
    value = bits[:, lower].copy().view(dtype).astype(np.float64)
    weight = position - lower
    if weight > 0.0 and lower < last:
        following = bits[:, lower + 1 :].min(axis=1).view(dtype).astype(np.float64)
        value += weight * (following - value)
    return value


def select_by_sorting(
    magnitudes: Tensor,  # (k, size)
    quantile: float | Tensor,  # (k, 1)
) -> Tensor:  # (k,)
    """Compute quantiles on an accelerator without waiting for it: positions stay there."""
    ordered = magnitudes.sort(dim=-1).values
    nonzero = (magnitudes != 0).sum(dim=-1, keepdim=True)
    last = (nonzero - 1).clamp_(min=0)
    # NPUs make float32 of float64, in which `last` may be rounded up to a place that is not there.
    wide = torch.float64 if magnitudes.device.type in ("cpu", "cuda") else torch.float32
    position = last.to(wide) * quantile
    lower = torch.minimum(position.long(), last)
    weight = (position - lower).clamp_(0.0, 1.0).to(magnitudes.dtype)
    start = magnitudes.shape[-1] - 1 - last
    low = ordered.gather(-1, start + lower)
    high = ordered.gather(-1, start + torch.minimum(lower + 1, last))
    return torch.lerp(low, high, weight).squeeze(-1)
