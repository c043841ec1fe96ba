"""What can be measured of a step: pure functions of tensors (*batch, m, n)."""

from lightning_root.functional.measures.clipping import (
    outlier_energy,
    outlier_fraction,
    relative_threshold,
)
from lightning_root.functional.measures.entries import (
    cosine_similarity,
    kurtosis,
    root_mean_square,
    update_to_weight_ratio,
)
from lightning_root.functional.measures.spectrum import (
    orthogonalization_error,
    singular_value_range,
)
from lightning_root.functional.measures.tail import relative_kurtosis

__all__ = [
    "cosine_similarity",
    "kurtosis",
    "orthogonalization_error",
    "outlier_energy",
    "outlier_fraction",
    "relative_kurtosis",
    "relative_threshold",
    "root_mean_square",
    "singular_value_range",
    "update_to_weight_ratio",
]
