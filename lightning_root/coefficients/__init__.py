"""Coefficients for any shape: published sets, fits, certificates."""

from lightning_root.coefficients.certificate import output_range
from lightning_root.coefficients.fit import fit_triple, mean_square_error
from lightning_root.coefficients.lookup import (
    COEFFICIENT_NAMES,
    CoefficientName,
    Coefficients,
    lookup,
)
from lightning_root.coefficients.spectra import marchenko_pastur

__all__ = [
    "COEFFICIENT_NAMES",
    "CoefficientName",
    "Coefficients",
    "fit_triple",
    "lookup",
    "marchenko_pastur",
    "mean_square_error",
    "output_range",
]
