"""The outlier threshold, between momentum and orthogonalization.

    B = clamp(N, -q, q),          q the `outlier_quantile` of |N|, for each matrix its own

Entries beyond their own quantile are held to it. No state. Cost: a selection and one pass.
Source: arXiv:2511.20626, Eq. 9 (soft threshold): N - sign(N) max(|N| - q, 0) is the clamp.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_root.functional import outlier_threshold
from lightning_root.functional.outliers import clip_each
from lightning_root.optim.blocks import Group

Clip: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""Takes N, (k, m, n), and whether to keep it; returns B and the thresholds, (k,)."""


def clip_twin(direction: Tensor, quantile: float) -> Tensor:  # (m, n)
    """Return B as the paper defines it: N less what its entries have beyond the threshold."""
    excess = direction.abs() - torch.quantile(direction.abs().flatten(), quantile)
    return direction - direction.sign() * excess.clamp(min=0.0)


def plan_clip(group: Group) -> Clip | None:
    """Return how the matrices of a group are clipped, None where they are not."""
    quantile, mode = group["outlier_quantile"], group["outlier_quantile_mode"]
    return None if quantile is None else partial(clip_each, quantile=quantile, mode=mode)


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
