"""Real iterations of real matrices in float32, beside p_T at their singular values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from examples.benchmarks.orthogonalization.measures import Row, float32_error, gaussian_matrix
from lightning_root.coefficients.shapes import Shape
from lightning_root.functional import Triple, newton_schulz


def polar_factor(matrix: Tensor) -> Tensor:
    """The orthogonal matrix that is nearest, U V' of the singular value decomposition, in float64.

    Args:
        matrix: Shape (m, n), m <= n, of full rank.
    """
    x = matrix.double()
    squares, left = torch.linalg.eigh(x @ x.mT)
    factor: Tensor = (left * squares.clamp(min=1e-300).rsqrt()) @ (left.mT @ x)
    return factor


def matrix_error(matrix: Tensor, triples: Sequence[Triple], polar: Tensor) -> float:
    """||U - P||_F^2 / m for the float32 iteration's result U and the polar factor P.

    It holds the error of the singular values and whatever float32 does to the directions.
    """
    update = newton_schulz(matrix.float(), triples)
    return float((update.double() - polar).square().sum()) / len(matrix)


def matrix_with(sigma: Tensor, shape: Shape, seed: int) -> Tensor:
    """A matrix with the given singular values and random singular vectors, float64."""
    m, n = shape
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, m, generator=generator, dtype=torch.float64))[0]
        for size in (m, n)
    )
    matrix: Tensor = (left * sigma.double()) @ right.mT
    return matrix


def cross_check(row: Row, sigma: Tensor, seed: int) -> list[dict[str, Any]]:
    """A real iteration of a real matrix in float32 beside p_T at its singular values (m,)."""
    if row.source == "gaussian":
        matrix = gaussian_matrix(row.shape, seed)
    else:
        matrix = matrix_with(sigma, row.shape, seed)
    polar, checks = polar_factor(matrix), []
    for name in ("default", "fitted", "captured"):
        if name in row.triples:
            polynomial = float32_error(row.triples[name], sigma)
            iteration = matrix_error(matrix, row.triples[name], polar)
            where = {"source": row.source, "shape": row.size, "schedule": name, "steps": row.steps}
            checks.append({**where, "polynomial": polynomial, "iteration": iteration})
    return checks
