"""The soft threshold that separates a momentum matrix into a base and its outliers.

ROOT (arXiv:2511.20626, Sec. 3.3) takes eps = the p-quantile of |N|, the outliers
O = sign(N) max(|N| - eps, 0), and orthogonalizes the base B = N - O. The difference equals
clamp(N, -eps, eps), which is what is computed: one pass, and no rounding when eps is far smaller
than the outliers.
"""

import math
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_root.functional.checks import check_matrix

QuantileMode: TypeAlias = Literal["auto", "exact", "sampled"]
"""How the threshold is found; see `outlier_threshold`."""

QUANTILE_MODES: Final[tuple[str, ...]] = get_args(QuantileMode)

SAMPLED_ENTRIES: Final = 1 << 16
"""Of each matrix, where the threshold is estimated."""


def clip_outliers(matrix: Tensor, quantile: float) -> Tensor:
    """Hold the entries of each matrix within its own `quantile` of magnitudes.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype; not modified.
        quantile: p in (0, 1]; about a fraction 1 - p of the entries is clipped. 0.9 in the paper.

    Returns:
        The base B = clamp(N, -eps, eps), shape and dtype of `matrix`.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `quantile` is outside (0, 1], or `matrix` has fewer than 2 dimensions.

    Example:
        >>> import torch
        >>> from lightning_root.functional import clip_outliers
        >>> clip_outliers(torch.tensor([[1.0, -2.0], [3.0, -100.0]]), quantile=2 / 3)
        tensor([[ 1., -2.],
                [ 3., -3.]])
    """
    bound = outlier_threshold(matrix, quantile)[..., None, None].to(matrix.dtype)
    return torch.clamp(matrix, -bound, bound)


def outlier_threshold(matrix: Tensor, quantile: float, *, mode: QuantileMode = "exact") -> Tensor:
    """The `quantile` of the non-zero magnitudes of each matrix.

    Linear interpolation between order statistics, as `torch.quantile` and the paper's script do
    it. Exact zeros are left out: they carry no scale. For a matrix without zeros this is the
    paper's threshold; where most entries are zero (frozen rows, experts that saw no token) the
    paper's falls to 1e-9 and leaves nothing but noise to orthogonalize, while this one does not
    change when zero rows or columns are added.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype, any size; not modified.
        quantile: p in (0, 1].
        mode: `"exact"`: of all entries. `"sampled"`: of 65536 of them, evenly spread with a stride
            that shares no factor with the length of a row; the share beyond the threshold then has
            a standard deviation of sqrt(p (1 - p) / 65536), 0.0012 at p = 0.9. Matrices of fewer
            than twice as many entries are taken whole, and p = 1 is exact. `"auto"`: exact on a
            CPU, where selection costs a twentieth of a step, sampled on accelerators, where it
            means sorting.

    Returns:
        Thresholds, shape (*batch), float32 (float64 for float64 input); 0 for a zero matrix.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `quantile` is outside (0, 1], `mode` is unknown, or `matrix` has fewer than 2
            dimensions.
    """
    check_matrix(matrix)
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"`quantile` must be in (0, 1], got {quantile}; 0.9 is the paper's value")
    if mode not in QUANTILE_MODES:
        raise ValueError(f"`mode` must be one of {list(QUANTILE_MODES)}, got {mode!r}")
    batch = matrix.shape[:-2]
    on_cpu = matrix.device.type == "cpu"
    if (mode == "sampled" or (mode == "auto" and not on_cpu)) and quantile < 1.0:
        matrix = _sampled(matrix)
    magnitudes = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)).abs()
    if magnitudes.numel() == 0:
        return magnitudes.new_zeros(batch)
    flat = magnitudes.reshape(batch.numel(), -1)  # (k, m * n), fresh memory from abs()
    select = _select_by_partition if on_cpu else _select_by_sorting
    return select(flat, quantile).reshape(batch)


def _sampled(matrix: Tensor) -> Tensor:  # (*batch, m, n) -> (*batch, 1, entries)
    """Evenly spread entries of each matrix, or all where there are few.

    A stride that has a factor in common with the row length would always meet the same columns.
    """
    flat = matrix.flatten(-2)
    stride = flat.shape[-1] // SAMPLED_ENTRIES
    if stride < 2:
        return flat.unsqueeze(-2)
    while math.gcd(stride, matrix.shape[-1]) > 1:
        stride -= 1
    return flat[..., ::stride].unsqueeze(-2)


def _select_by_partition(magnitudes: Tensor, quantile: float) -> Tensor:  # (k, size) -> (k,)
    """Order statistics by numpy's in-place selection, 20 to 50 times faster than `kthvalue`.

    Magnitudes are in the order of their bits, and whole numbers are selected among three times as
    fast as floating point numbers.
    """
    values = magnitudes.numpy()
    bits = values.view(np.dtype(f"i{values.itemsize}"))
    if bits.min() > 0:  # much cheaper than counting
        thresholds = _order_statistic(bits, values.dtype, quantile * (bits.shape[1] - 1))
    else:
        thresholds = np.zeros(len(bits))
        for index, row in enumerate(bits):
            nonzero = int(np.count_nonzero(row))
            if nonzero:
                position = row.size - nonzero + quantile * (nonzero - 1)
                thresholds[index] = _order_statistic(row[None], values.dtype, position)[0]
    return torch.from_numpy(thresholds).to(magnitudes.dtype)


def _order_statistic(
    bits: NDArray[Any],  # (k, size), reordered
    dtype: np.dtype[Any],
    position: float,
) -> NDArray[Any]:  # (k,), float64
    """What lies at a place of each sorted row, between two entries where it is not whole.

    One pivot, then the minimum of the upper part: two pivots at once lose numpy's SIMD path.
    """
    last = bits.shape[1] - 1
    lower = min(int(position), last)
    bits.partition(lower, axis=1)
    value = bits[:, lower].copy().view(dtype).astype(np.float64)
    weight = position - lower
    if weight > 0.0 and lower < last:
        following = bits[:, lower + 1 :].min(axis=1).view(dtype).astype(np.float64)
        value += weight * (following - value)
    return value


def _select_by_sorting(magnitudes: Tensor, quantile: float) -> Tensor:  # (k, size) -> (k,)
    """The same on an accelerator, without a host synchronisation: positions stay on the device."""
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
