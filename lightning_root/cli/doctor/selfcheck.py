"""The orthogonalizer, on each device, against a singular value decomposition."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lightning_root.coefficients import lookup, output_range
from lightning_root.kernels import Form, orthogonalize

SHAPE: Final = (128, 512)
ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""What rounding may add to the error, by arithmetic."""


@dataclass(frozen=True)
class Check:
    """One form of the iteration on one device.

    Args:
        device: Of torch.
        form: Of the iteration.
        dtype: Of its arithmetic.
        error: Largest singular value of its result less the polar factor; None if it failed.
        bound: What the certificate and rounding leave room for.
        seconds: Of the second call.
        failure: The error that was raised.
    """

    device: str
    form: Form
    dtype: str
    error: float | None
    bound: float
    seconds: float
    failure: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong; None if the result is within its bound."""
        what = f"orthogonalizer on {self.device} ({self.form}, {self.dtype})"
        if self.error is None:
            return f"{what}: {self.failure}"
        if self.error <= self.bound:
            return None
        return f"{what}: the error is {self.error:.3g}, above {self.bound:.3g}; do not train on it"


def check_device(device: str, iterate: Callable[..., Tensor] = orthogonalize) -> list[Check]:
    """Orthogonalize one Gaussian matrix in every form that is used on the device.

    The certificate is the exact range of the iteration's polynomial between the matrix's smallest
    and largest singular value: no singular value may be further from 1 than its ends.

    Args:
        device: Of torch.
        iterate: As `lightning_root.kernels.orthogonalize`.
    """
    matrix = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, sigma, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    triples = lookup(SHAPE).triples
    low, high = output_range(triples, upper=sigma[0].item(), lower=sigma[-1].item())
    certified = max(1.0 - low, high - 1.0)
    cases: list[tuple[Form, torch.dtype]] = [("standard", torch.float32)]
    if device == "cpu":
        cases += [("gram", torch.float32), ("eigh", torch.float32)]
    elif not device.startswith("npu") or torch.get_device_module("npu").is_bf16_supported():
        cases += [("standard", torch.bfloat16)]
    found = []
    for form, dtype in cases:
        bound = certified + ROUNDING[dtype]
        kind = str(dtype).removeprefix("torch.")
        try:
            given = matrix.to(device, torch.float32)
            error, seconds = _error(given, left @ right, triples, form, dtype, iterate)
            found.append(Check(device, form, kind, error, bound, seconds))
        except RuntimeError as failed:
            reason = str(failed).strip().partition("\n")[0]
            found.append(Check(device, form, kind, None, bound, 0.0, reason))
    return found


def _error(
    matrix: Tensor,
    polar: Tensor,
    triples: tuple[tuple[float, float, float], ...],
    form: Form,
    dtype: torch.dtype,
    iterate: Callable[..., Tensor],
) -> tuple[float, float]:
    """The error, infinite for a result that is not finite, and the seconds of a warm call."""
    iterate(matrix, triples, form=form, dtype=dtype).sum().item()  # what a first call sets up
    start = time.perf_counter()
    result = iterate(matrix, triples, form=form, dtype=dtype)
    result.sum().item()  # waits for the device
    seconds = time.perf_counter() - start
    difference = result.to("cpu", torch.float64) - polar
    if not bool(difference.isfinite().all()):
        return float("inf"), seconds
    return torch.linalg.matrix_norm(difference, ord=2).item(), seconds
