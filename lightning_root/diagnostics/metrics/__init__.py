"""Statistics of ROOT's steps as `torchmetrics.Metric`s."""

from lightning_root.diagnostics.metrics.matrix import (
    MatrixMetric,
    MomentumCosine,
    MomentumKurtosis,
    OrthogonalizationError,
    OutlierEnergy,
    OutlierFraction,
    Reduction,
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
