"""ROOT, the robust orthogonalized optimizer, for PyTorch Lightning."""

from lightning_root.coefficients import Coefficients, lookup
from lightning_root.partition import Partition, Route, partition_parameters

__all__ = ["Coefficients", "Partition", "Route", "lookup", "partition_parameters"]
