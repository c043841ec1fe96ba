"""The outlier threshold, between momentum and orthogonalization.

    B = clamp(N, -q, q),          q the `outlier_quantile` of |N|, for each matrix its own

Entries beyond their own quantile are held to it. No state. Cost: a selection and one pass.
Source: arXiv:2511.20626, Eq. 9 (soft threshold): N - sign(N) max(|N| - q, 0) is the clamp.
"""

import torch
from torch import Tensor

from lightning_root.functional import outlier_threshold
from lightning_root.optim.blocks import Group


def clip_twin(direction: Tensor, quantile: float) -> Tensor:  # (m, n)
    """Return B as the paper defines it: N less what its entries have beyond the threshold."""
    excess = direction.abs() - torch.quantile(direction.abs().flatten(), quantile)
    return direction - direction.sign() * excess.clamp(min=0.0)


def clip(direction: Tensor, group: Group, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return B, (k, m, n), in the place of N unless that is kept, and its largest entries, (k,)."""
    quantile = group["outlier_quantile"]
    if quantile is None:
        return direction, None
    bounds = outlier_threshold(direction, quantile, mode=group["outlier_quantile_mode"])
    return clamp_each(direction, bounds, out=None if keep else direction), bounds


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


def bounds_by_kernels(directions: Tensor, largest: Tensor, group: Group) -> Tensor:  # (k,)
    """Return the threshold of each matrix; its largest magnitude where there is none."""
    quantile, mode = group["outlier_quantile"], group["outlier_quantile_mode"]
    if quantile is None or quantile == 1.0:
        return largest
    if mode == "exact" or quantile == "auto":
        return outlier_threshold(directions, quantile, mode=mode)
    from lightning_root.kernels.triton.passes import sampled_threshold

    bounds = sampled_threshold(directions, quantile)
    return torch.where(bounds > 0, bounds, largest)
