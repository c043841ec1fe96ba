"""Ways to evaluate the same iteration: they differ in operations and rounding, not in the result.

With R = X X' every step multiplies X from the left by P = a I + b R + c R^2, so T steps are
X_T = Q X with an (m, m) matrix Q = P_T ... P_1 that depends on R alone. `standard` iterates on X,
`gram` on R and Q, and `eigh` takes Q from the eigenvalues of R, on which the polynomial acts one by
one. The wide matrix is then touched twice, however many steps there are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.functional import Triple
from lightning_root.functional.orthogonalize import iterate, unit_frobenius
from lightning_root.kernels.products import PLAIN, Products

Form: TypeAlias = Literal["standard", "gram", "eigh", "polar"]
"""`standard`, `gram` and `eigh` evaluate the iteration; `polar` gives its limit, U V'."""

FORMS: Final[tuple[str, ...]] = get_args(Form)
"""All of `Form`."""

TOLERATED: Final = 0.05
"""Relative error that rounding of R may cause in the smallest singular directions."""


def segments(triples: Sequence[Triple], dtype: torch.dtype) -> list[tuple[Triple, ...]]:
    """Cut a schedule where R has to be computed anew from X.

    R is rounded relative to its largest eigenvalue, and the steps that follow enlarge the smallest
    ones by the square of their slopes at zero: by 2e5 in five steps, by 1e8 in eight. What was
    rounding would become a wrong, even a negative eigenvalue, on which the iteration diverges.

    Args:
        triples: One triple per step.
        dtype: In which R is kept.
    """
    limit = math.sqrt(TOLERATED / torch.finfo(dtype).eps)
    parts: list[list[Triple]] = [[]]
    growth = 1.0
    for triple in triples:
        if growth > limit:
            parts.append([])
            growth = 1.0
        parts[-1].append(triple)
        growth *= max(1.0, abs(triple[0]))
    return [tuple(part) for part in parts]


def evaluate(
    x: Tensor,
    triples: Sequence[Triple],
    form: Form,
    *,
    products: Products = PLAIN,
    of_norm_one: bool = False,
) -> Tensor:
    """Divide by the Frobenius norm and iterate.

    Args:
        x: Shape (k, m, n) or (m, n), m <= n, in the dtype of the iteration; not modified. Its
            largest entry must be near 1, so that squares neither overflow nor vanish. A transposed
            view gives a transposed result, without a copy.
        triples: One triple per step.
        form: How; see the module.
        products: Who computes what is symmetric.
        of_norm_one: x has been divided by its norm already.

    Returns:
        The same shape; zero for a zero matrix.
    """
    if form == "standard":
        unit = x if of_norm_one else unit_frobenius(x).to(x.dtype)
        return iterate(unit, triples, products.gram_matrix, products.quadratic)
    if form == "polar":
        return _polar(x)
    if form == "eigh":
        try:
            return _through_gram(x, triples, _eigh, products)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass  # it did not converge, or the matrix is not finite
    return _through_gram(x, triples, _gram, products)


def _through_gram(
    x: Tensor,
    triples: Sequence[Triple],
    factor: Callable[[Tensor, Sequence[Triple], Products], Tensor],
    products: Products,
) -> Tensor:
    """Q X, where `factor` gives Q from R and part of the schedule."""
    for number, part in enumerate(segments(triples, x.dtype)):
        gram = products.symmetric(x, x.mT, mirror=factor is _gram)
        inverse_norm = None
        if number == 0:
            square = _trace(gram)
            square = square.masked_fill(square == 0, 1.0)
            gram /= square
            inverse_norm = square.rsqrt()
        q = factor(gram, part, products)
        x = _left(q if inverse_norm is None else q.mul_(inverse_norm), x)
    return x


def _gram(gram: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    """Q from R, which is used up: 3 T - 2 symmetric products and T - 1 whole ones.

    Q is symmetric too, up to rounding, but to mirror one triangle of it would spoil it: where R is
    badly conditioned, the rounding in its rows is enlarged by the slopes at zero, by hundreds, and
    that in its columns, which X meets, is not.
    """
    q = None
    for number, (a, b, c) in enumerate(triples, 1):
        p = products.quadratic(gram, b, c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else torch.matmul(p, q)
        if number < len(triples):
            gram = products.symmetric(p, products.symmetric(p, gram))
    assert q is not None
    return q


def _eigh(gram: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    """Q from R = V diag(lambda) V', of which the lower triangle is read."""
    eigenvalues, vectors = decomposed(gram)
    sigma = eigenvalues.clamp_(min=0.0).sqrt_()
    q = torch.ones_like(sigma)
    for a, b, c in triples:
        square = sigma * sigma
        p = a + square * (b + c * square)
        q, sigma = q * p, sigma * p
    return products.symmetric(vectors * q.unsqueeze(-2), vectors.mT)


def decomposed(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of R, of which the lower triangle is read.

    Turned round, R lies in memory as LAPACK wants it, and from the upper triangle LAPACK is faster:
    6 to 13 % together.
    """
    eigenvalues, vectors = torch.linalg.eigh(gram.mT, UPLO="U")
    return eigenvalues, vectors


def _polar(x: Tensor) -> Tensor:
    """U V' = (X X')^(-1/2) X, in float64; directions without content give zero."""
    wide = x.double()
    try:
        eigenvalues, vectors = decomposed(PLAIN.symmetric(wide, wide.mT, mirror=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return iterate(unit_frobenius(wide), (NEWTON_SCHULZ,) * 30).to(x.dtype)
    # Below the rounding of x itself there is nothing to bring up to 1.
    negligible = (torch.finfo(_at_least_single(x.dtype)).eps * math.sqrt(x.shape[-1])) ** 2
    floor = eigenvalues[..., -1:] * negligible
    inverse = eigenvalues.rsqrt().masked_fill(eigenvalues <= floor, 0.0)
    q = PLAIN.symmetric(vectors * inverse.unsqueeze(-2), vectors.mT)
    return _left(q, wide).to(x.dtype)


def _left(q: Tensor, x: Tensor) -> Tensor:
    """The product q @ x for a symmetric q, laid out as x is."""
    return (x.mT @ q).mT if x.stride(-1) != 1 and x.stride(-2) == 1 else q @ x


def _trace(gram: Tensor) -> Tensor:  # (*batch, 1, 1)
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
