"""ROOT, the robust orthogonalized optimizer, for PyTorch Lightning."""

from lightning_root.coefficients import Coefficients, lookup

__all__ = ["Coefficients", "lookup"]
