"""Orthogonalization of a matrix by an odd polynomial iteration (Newton-Schulz).

From X = B / ||B||_F on, each step applies X <- a X + b (X X') X + c (X X')^2 X, which maps every
singular value sigma to a sigma + b sigma^3 + c sigma^5 and leaves the singular vectors alone. After
a few well chosen steps all singular values sit near 1: X is close to the polar factor U V' of B
(ROOT, arXiv:2511.20626, Eq. 5; Muon, K. Jordan et al., 2024).
"""

from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

from lightning_root.functional.matrices import check_matrix, nonzero

Triple: TypeAlias = tuple[float, float, float]
"""(a, b, c): sigma -> a sigma + b sigma^3 + c sigma^5."""


def newton_schulz(
    matrix: Tensor,  # (*batch, m, n)
    coefficients: Sequence[float] | Sequence[Sequence[float]],
    steps: int | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:  # (*batch, m, n)
    """Move the singular values of each matrix to about 1 and keep its singular vectors.

    The result does not depend on the scale of `matrix`, from 1e-37 to 1e37: the norm is taken in
    float32 or better after division by the largest magnitude. A zero matrix gives zero.

    Args:
        matrix: Any floating dtype, any leading batch dimensions; not modified. Non-finite entries
            give non-finite results.
        coefficients: One triple (a, b, c), repeated `steps` times, or one triple per step.
        steps: Number of iterations. Required with a single triple; with a sequence of triples it
            is the sequence's length and may be left out.
        dtype: Arithmetic of the iteration, for example `torch.bfloat16` on a GPU. Default: the
            dtype of `matrix`, and float32 for float16, which overflows too easily.

    Returns:
        The orthogonalized matrices, shape and dtype of `matrix`.

    Raises:
        TypeError: If `matrix` is not a floating point tensor.
        ValueError: If `matrix` has fewer than 2 dimensions, or `coefficients` and `steps` disagree.

    Example:
        >>> import torch
        >>> from lightning_root.functional import newton_schulz
        >>> tall = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
        >>> update = newton_schulz(tall, (1.875, -1.25, 0.375), steps=12)
        >>> torch.allclose(update.mT @ update, torch.eye(16), atol=1e-4)
        True
    """
    check_matrix(matrix)
    triples = as_schedule(coefficients, steps)
    if matrix.numel() == 0:
        return matrix.clone()
    if dtype is None:
        dtype = torch.float32 if matrix.dtype == torch.float16 else matrix.dtype
    m, n = matrix.shape[-2:]
    x = matrix.mT if m > n else matrix  # rows <= columns: the Gram matrix is the small one
    x = unit_frobenius(x).to(dtype)
    x = iterate(x.reshape(-1, *x.shape[-2:]) if x.ndim > 3 else x, triples)
    x = x.mT if m > n else x
    return x.reshape(matrix.shape).to(matrix.dtype)


def as_schedule(
    coefficients: Sequence[float] | Sequence[Sequence[float]], steps: int | None = None
) -> tuple[Triple, ...]:
    """Write `coefficients` out as one triple per step.

    Args:
        coefficients: One triple (a, b, c), or a sequence of triples.
        steps: How often to repeat a single triple; for a sequence, its length or `None`.

    Returns:
        T triples.

    Raises:
        ValueError: If an entry is not three finite numbers, or `steps` does not fit.
    """
    rows = list(coefficients)
    if rows and not isinstance(rows[0], Sequence):
        if steps is None:
            raise ValueError("`steps` is required when `coefficients` is one triple; 5 is usual")
        check_steps(steps)
        rows = [rows] * steps
    triples = tuple(_as_triple(cast("Sequence[float]", row)) for row in rows)
    if not triples:
        raise ValueError("`coefficients` must hold at least one triple (a, b, c), got none")
    if steps is not None and steps != len(triples):
        raise ValueError(
            f"`coefficients` holds {len(triples)} triples, one per step, but `steps` is {steps}; "
            f"pass {len(triples)}"
        )
    return triples


def unit_frobenius(matrix: Tensor) -> Tensor:
    """Divide each matrix (*batch, m, n) by its Frobenius norm, in float32 or better; 0 stays 0."""
    # By the largest magnitude first, so that squares neither overflow nor vanish.
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    x = x / nonzero(x.abs().amax(dim=(-2, -1), keepdim=True))
    return x.div_(nonzero(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)))


def iterate(x: Tensor, triples: Sequence[Triple]) -> Tensor:  # (m, n) or (k, m, n), m <= n
    """Take the steps of the iteration, on matrices of norm 1 or less."""
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for a, b, c in triples:
        gram = x @ x.mT  # (*, m, m)
        polynomial = multiply_add(gram, gram, gram, beta=b, alpha=c)
        x = multiply_add(x, polynomial, x, beta=a)
    return x


def _as_triple(row: Sequence[float]) -> Triple:
    """Return three floats, or raise ValueError."""
    values = tuple(float(value) for value in row)
    if len(values) != 3 or not all(abs(value) < float("inf") for value in values):
        raise ValueError(f"`coefficients` must be triples (a, b, c) of finite numbers, got {row!r}")
    return values[0], values[1], values[2]


def check_steps(steps: object) -> None:
    """Raise ValueError if `steps` is not a whole number >= 1."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a whole number >= 1, got {steps!r}; 5 is usual")
