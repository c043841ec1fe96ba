"""Coefficients for any shape: published sets, spectra, fits, certificates, the shipped table."""

from lightning_root.coefficients.certificate import bfloat16_error, output_range, stable_input
from lightning_root.coefficients.fit import fit_coefficients
from lightning_root.coefficients.lookup import lookup
from lightning_root.coefficients.published import COEFFICIENT_NAMES, CoefficientName
from lightning_root.coefficients.record import Coefficients, load_coefficients, save_coefficients
from lightning_root.coefficients.spectra import (
    Spectrum,
    SpectrumHistogram,
    load_spectra,
    log_normal,
    log_uniform,
    marchenko_pastur,
    mixture,
    save_spectra,
    scaled_gaussian,
    training_model,
)

__all__ = [
    "COEFFICIENT_NAMES",
    "CoefficientName",
    "Coefficients",
    "Spectrum",
    "SpectrumHistogram",
    "bfloat16_error",
    "fit_coefficients",
    "load_coefficients",
    "load_spectra",
    "log_normal",
    "log_uniform",
    "lookup",
    "marchenko_pastur",
    "mixture",
    "output_range",
    "save_coefficients",
    "save_spectra",
    "scaled_gaussian",
    "stable_input",
    "training_model",
]
