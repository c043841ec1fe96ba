"""ROOT, the robust orthogonalized optimizer, for PyTorch Lightning."""

from lightning_root.coefficients import Coefficients, lookup
from lightning_root.optim import ROOT, WarmupDecayLR
from lightning_root.partition import Partition, Route, partition_parameters

__all__ = [
    "ROOT",
    "Coefficients",
    "Partition",
    "Route",
    "WarmupDecayLR",
    "lookup",
    "partition_parameters",
]
