"""What a few products with a symmetric matrix tell of its spectrum (Lanczos' method).

From a start vector v, j products with A give a tridiagonal (j, j) matrix T whose eigenvalues lie
within those of A, the extreme ones first, and v' f(A) v is close to (f(T))_11 for smooth f: exact
for polynomials of degree 2 j - 1 (G. Golub and G. Meurant, "Matrices, Moments and Quadrature",
2010). Several start vectors of random signs estimate a trace (M. Hutchinson, 1990).

All of it is made of products and sums, so it runs on every device and never waits for one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 16
"""Products with the matrix; more change the estimates of a trace by less than its noise."""

ALL_UNIT_VECTORS = 32
"""Matrices of at most so many rows start from every unit vector: their traces are not sampled."""

LEAST_COUNT = 4
"""Start vectors of large matrices; so many also find the extreme eigenvalues."""

SQUARINGS = 20  # 2^20 steps of power iteration on a (j, j) matrix
TINY = 1e-30  # keeps a quotient of zeros at zero
NODES = 64  # of the quadrature; see `square_root_error`


class Tridiagonal(NamedTuple):
    """Symmetric tridiagonal matrices, (*batch, probes, j) and (*batch, probes, j - 1)."""

    diagonal: Tensor
    off_diagonal: Tensor


def probes(rows: int, like: Tensor) -> Tensor:
    """Unit vectors to start from, the same in every call: (count, rows).

    Every coordinate direction for small matrices, vectors of pseudo-random signs for large ones:
    2048 / rows of them but at least 4, so that the noise of a trace is about the same up to 512.

    Args:
        rows: Length of the vectors.
        like: Where they shall live, and their dtype.
    """
    if rows <= ALL_UNIT_VECTORS:
        return torch.eye(rows, dtype=like.dtype, device=like.device)
    count = max(LEAST_COUNT, 2048 // rows)
    index = torch.arange(1, rows * count + 1, device=like.device)
    for _ in range(2):  # an integer hash: nothing that another draw of random numbers could notice
        index = ((index >> 16) ^ index) * 0x45D9F3B & 0xFFFFFFFF
    signs = ((index >> 16) & 1).to(like.dtype).mul_(2).sub_(1)
    return signs.reshape(count, rows) / math.sqrt(rows)


def tridiagonalise(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tridiagonal:
    """Run Lanczos' method from every start vector at once.

    Without reorthogonalization: copies of converged eigenvalues appear in T, which neither its
    extreme eigenvalues nor (f(T))_11 mind. Vectors are rows: products with the matrix on the right
    are the faster ones on a CPU.

    Args:
        product: (*batch, probes, m) -> times A, the same shape.
        start: Unit vectors, (*batch, probes, m).
        steps: j. More than m make up for rounding, which a small matrix shows sooner.
    """
    previous, current = torch.zeros_like(start), start
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    beta = start.new_zeros((*start.shape[:-1], 1))
    for _ in range(steps):
        image = product(current)
        alpha = (image * current).sum(dim=-1, keepdim=True)
        image = torch.addcmul(image, alpha, current, value=-1).addcmul_(beta, previous, value=-1)
        if diagonal:  # an exhausted start vector repeats a value from within the spectrum
            alpha = torch.where(beta == 0, diagonal[0], alpha)
            off_diagonal.append(beta)
        diagonal.append(alpha)
        beta = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        previous, current = current, image / beta.masked_fill(beta == 0, 1.0)
    return Tridiagonal(torch.cat(diagonal, dim=-1), torch.cat([beta[..., :0], *off_diagonal], -1))


def extreme_eigenvalues(matrix: Tridiagonal, rows: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest eigenvalue that the probes have seen, each (*batch).

    Power iteration by repeated squaring, on c - T and on c + T. Both results are averages of
    eigenvalues, so they lie within the spectrum.

    Args:
        matrix: From `tridiagonalise`, started from `probes`.
        rows: Of the matrix that was tridiagonalised.
    """
    # Each unit vector may see an invariant subspace of its own; of random ones a few are enough.
    count = rows if rows <= ALL_UNIT_VECTORS else LEAST_COUNT
    dense = _dense(matrix.diagonal[..., :count, :], matrix.off_diagonal[..., :count, :])
    bound = dense.abs().sum(dim=-1).amax(dim=-1)[..., None, None]  # no eigenvalue is larger
    shift = 2 * bound * torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
    power = torch.stack([shift - dense, shift + dense])
    for _ in range(SQUARINGS):
        power = power / _diagonal(power).amax(dim=-1).clamp(min=TINY)[..., None, None]
        power = power @ power
    weight = _diagonal(power).sum(dim=-1).clamp(min=TINY)
    least, greatest = (power * dense).sum(dim=(-2, -1)) / weight
    return least.amin(dim=-1) + 0.0, greatest.amax(dim=-1) + 0.0  # no negative zero


def square_root_error(matrix: Tridiagonal) -> Tensor:
    """(f(T))_11 of f(e) = (sqrt(1 + e) - 1)^2 for each probe: (*batch, probes).

    sqrt(x) is the mean of x / (sin^2 t + x cos^2 t) over t in [0, pi / 2]. Put together, f is the
    mean of sin^2(2 t) / 2 times e^2 / (1 + e cos^2 t): positive terms, so nothing cancels where the
    error is small. With 64 midpoints sqrt(x) is off by 2 sqrt(x) |(1 - sqrt(x)) / (1 +
    sqrt(x))|^128 or so, at most 0.003; 16 would be off by up to 0.012, near zero.
    """
    angles = torch.arange(0.5, NODES, dtype=matrix.diagonal.dtype, device=matrix.diagonal.device)
    angles = angles * (math.pi / (2 * NODES))
    cosines, weights = angles.cos().square(), (2 * angles).sin().square() / 2
    diagonal, off_diagonal = matrix.diagonal[..., None], matrix.off_diagonal[..., None]
    first = diagonal[..., 0, :]
    if diagonal.shape[-2] == 1:
        values = first.square() / (1 + cosines * first)
        return (values * weights).mean(dim=-1)
    # Elimination from the last row of 1 + cos^2 T upwards, for all nodes at once.
    pivot = 1 + cosines * diagonal[..., -1, :]
    for row in range(diagonal.shape[-2] - 2, 0, -1):
        coupling = (cosines * off_diagonal[..., row, :]).square()
        pivot = 1 + cosines * diagonal[..., row, :] - coupling / pivot
    beta = off_diagonal[..., 0, :]
    determinant = (1 + cosines * first) * pivot - (cosines * beta).square()
    values = first.square() * pivot + beta.square() * (1 - cosines * first)
    return (values / determinant * weights).mean(dim=-1)


def _dense(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    sides = torch.diag_embed(off_diagonal, offset=1) + torch.diag_embed(off_diagonal, offset=-1)
    return torch.diag_embed(diagonal) + sides if off_diagonal.numel() else diagonal[..., None]


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
