"""Pure tensor functions: orthogonalization, outlier threshold, update scale, measures of a step."""

from lightning_root.functional.orthogonalize import Triple, as_schedule, newton_schulz
from lightning_root.functional.outliers import (
    Quantile,
    QuantileMode,
    automatic_quantile,
    clip_outliers,
    outlier_threshold,
)
from lightning_root.functional.scaling import AdjustLR, update_scale
from lightning_root.functional.spectrum import orthogonalization_error, singular_value_range
from lightning_root.functional.statistics import (
    cosine_similarity,
    kurtosis,
    outlier_energy,
    outlier_fraction,
    relative_kurtosis,
    relative_threshold,
    root_mean_square,
    update_to_weight_ratio,
)

__all__ = [
    "AdjustLR",
    "Quantile",
    "QuantileMode",
    "Triple",
    "as_schedule",
    "automatic_quantile",
    "clip_outliers",
    "cosine_similarity",
    "kurtosis",
    "newton_schulz",
    "orthogonalization_error",
    "outlier_energy",
    "outlier_fraction",
    "outlier_threshold",
    "relative_kurtosis",
    "relative_threshold",
    "root_mean_square",
    "singular_value_range",
    "update_scale",
    "update_to_weight_ratio",
]
