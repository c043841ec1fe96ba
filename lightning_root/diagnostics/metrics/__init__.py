"""Statistics of ROOT's steps as `torchmetrics.Metric`s."""

from lightning_root.diagnostics.metrics.base import MatrixMetric, Reduction
from lightning_root.diagnostics.metrics.momentum import (
    MomentumKurtosis,
    OutlierEnergy,
    OutlierFraction,
)
from lightning_root.diagnostics.metrics.update import (
    MomentumCosine,
    OrthogonalizationError,
    UpdateRMS,
)

__all__ = [
    "MatrixMetric",
    "MomentumCosine",
    "MomentumKurtosis",
    "OrthogonalizationError",
    "OutlierEnergy",
    "OutlierFraction",
    "Reduction",
    "UpdateRMS",
]
