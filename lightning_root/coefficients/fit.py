"""One triple per shape, fitted as the paper fits it (ROOT, arXiv:2511.20626, Sec. 3.2).

The paper minimises the mean of (sigma_out - 1)^2 after T steps over random Gaussian matrices. Their
singular values follow the Marchenko-Pastur law, so the mean is an integral and the fit needs
neither random numbers nor decompositions.
"""

from functools import lru_cache

import torch
from torch import Tensor

from lightning_root.coefficients.certificate import output_range
from lightning_root.coefficients.schedules import MUON, TABLE_1, Shape
from lightning_root.coefficients.spectra import marchenko_pastur
from lightning_root.functional import Triple

LARGEST_OUTPUT = 1.3
"""A fitted triple may not send any singular value in [0, 1.02] above this."""

_GRID = torch.linspace(0.0, 1.05, 512, dtype=torch.float64, device="cpu")
"""Where the fit is told to stay bounded; that it does is then certified exactly."""


@lru_cache(maxsize=4096)
def fit_triple(shape: Shape, steps: int = 5) -> Triple:
    """The triple that, repeated `steps` times, orthogonalizes Gaussian (m, n) matrices best.

    float64 and deterministic; a fraction of a second. Starts from the paper's triples and Muon's,
    so that it does not stall in a poor optimum, and keeps p_T bounded on all of [0, 1.02], not only
    where Gaussian matrices have singular values. At 2048 x 8192 the unbounded optimum would be
    slightly better than the paper's triple and useless on real momentum.

    Args:
        shape: (m, n) in either order.
        steps: T, the number of times that the triple is applied.

    Example:
        >>> from lightning_root.coefficients import fit_triple
        >>> [round(value, 2) for value in fit_triple((2048, 3072))]  # Table 1: 2.91, -3.81, 1.86
        [2.91, -3.81, 1.86]
    """
    sigma, weight = marchenko_pastur(*shape)
    starts = (MUON, *TABLE_1.values())
    candidates = [*starts, *(_minimise(start, sigma, weight, steps) for start in starts)]
    bounded = [c for c in candidates if output_range([c] * steps, upper=1.02)[1] <= LARGEST_OUTPUT]
    return min(bounded, key=lambda triple: mean_square_error([triple] * steps, sigma, weight))


def mean_square_error(triples: list[Triple], sigma: Tensor, weight: Tensor) -> float:
    """Mean of (p_T(sigma) - 1)^2 under a quadrature (sigma, weight), both of shape (nodes,)."""
    return float(_error(torch.tensor(triples, dtype=torch.float64, device="cpu"), sigma, weight))


def _error(triples: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
    return (weight * (compose(triples, sigma) - 1.0).square()).sum()


def compose(triples: Tensor, x: Tensor) -> Tensor:
    """p_T at every x, held within 10 on the way; `triples` has the shape (T, 3)."""
    for a, b, c in triples:
        square = x * x
        x = x * (a + square * (b + square * c))
        x = x.clamp(-10.0, 10.0)  # a wild line-search point must not overflow
    return x


def _minimise(start: Triple, sigma: Tensor, weight: Tensor, steps: int) -> Triple:
    triple = torch.tensor(start, dtype=torch.float64, device="cpu", requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [triple],
        max_iter=100,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        triples = triple.expand(steps, 3)
        excess = (compose(triples, _GRID) - 1.25).clamp(min=0.0)
        loss = _error(triples, sigma, weight) + excess.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    a, b, c = triple.detach().tolist()
    return a, b, c
