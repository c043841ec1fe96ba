"""Pure tensor functions: orthogonalization, outlier threshold, update scale."""

from lightning_root.functional.orthogonalize import Triple, as_schedule, newton_schulz
from lightning_root.functional.outliers import clip_outliers, outlier_threshold
from lightning_root.functional.scaling import AdjustLR, update_scale

__all__ = [
    "AdjustLR",
    "Triple",
    "as_schedule",
    "clip_outliers",
    "newton_schulz",
    "outlier_threshold",
    "update_scale",
]
