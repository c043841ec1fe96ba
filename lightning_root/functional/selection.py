"""Order statistics of magnitudes: by selection on a CPU, by sorting on accelerators.

Both find the quantile of the non-zero entries of each row, with linear interpolation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def select_by_partition(
    magnitudes: Tensor,  # (k, size)
    quantile: float | Sequence[float],  # k of them
) -> Tensor:  # (k,)
    """Order statistics by numpy's in-place selection, 20 to 50 times faster than `kthvalue`.

    Magnitudes are in the order of their bits, and whole numbers are selected among three times as
    fast as floating point numbers.
    """
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


def select_by_sorting(
    magnitudes: Tensor,  # (k, size)
    quantile: float | Tensor,  # (k, 1)
) -> Tensor:  # (k,)
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
