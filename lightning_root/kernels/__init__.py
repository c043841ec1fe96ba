"""Faster ways to the same results: each has a plain twin that it is tested against."""

from lightning_root.kernels.forms import FORMS, Form, symmetric_product
from lightning_root.kernels.orthogonalize import FormOption, orthogonalize
from lightning_root.kernels.triton.tuning import KERNEL_OPTIONS, KernelOption, tuning_for
from lightning_root.kernels.workers import run_in_order

__all__ = [
    "FORMS",
    "KERNEL_OPTIONS",
    "Form",
    "FormOption",
    "KernelOption",
    "orthogonalize",
    "run_in_order",
    "symmetric_product",
    "tuning_for",
]
