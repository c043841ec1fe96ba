"""Faster ways to the same results: each has a plain twin that it is tested against."""

from lightning_root.kernels.forms import (
    FORMS,
    Form,
    orthogonalize_by,
    orthogonalize_unit,
    symmetric_product,
)
from lightning_root.kernels.orthogonalize import FormOption, orthogonalize, resolved_form
from lightning_root.kernels.triton.tuning import KERNEL_OPTIONS, KernelOption, tuning_for
from lightning_root.kernels.workers import run_in_order

__all__ = [
    "FORMS",
    "KERNEL_OPTIONS",
    "Form",
    "FormOption",
    "KernelOption",
    "orthogonalize",
    "orthogonalize_by",
    "orthogonalize_unit",
    "resolved_form",
    "run_in_order",
    "symmetric_product",
    "tuning_for",
]
