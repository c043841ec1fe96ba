"""Ways to evaluate the same iteration, and the symmetric products that they are made of.

With R = X X' every step multiplies X from the left by P = a I + b R + c R^2, so T steps are Q X
with an (m, m) matrix Q = P_T ... P_1 that depends on R alone. `standard` iterates on X, `gram` on R
and Q, and `eigh` takes Q from the eigenvalues of R; these two touch the wide matrix twice, however
many steps there are. The plain twin is `functional.newton_schulz`. Of a symmetric product, the
lower triangle's blocks are computed and mirrored: little more than half the operations of `a @ b`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.functional import Triple
from lightning_root.functional.matrices import magnitude
from lightning_root.functional.orthogonalize import iterate, unit_frobenius
from lightning_root.kernels.triton.tiles import DTYPES, Tuning

Form: TypeAlias = Literal["standard", "gram", "eigh", "polar"]
"""`standard`, `gram` and `eigh` evaluate the iteration; `polar` gives its limit, U V'."""

FORMS: Final[tuple[str, ...]] = get_args(Form)
"""All of `Form`."""

MAX_ROUNDING_ERROR: Final = 0.05  # relative, of R's rounding in the smallest singular directions
_SAFE: Final = (1e-12, 1e12)  # largest entries whose squares add up to normal float32 numbers
MIN_ROWS: Final = 256  # smaller products are done whole: the blocks would be too thin to be fast


def quadratic(r: Tensor, b: float, c: float) -> Tensor:
    """Compute b R + c R^2 for a symmetric R of shape (m, m) or (k, m, m)."""
    if not _in_blocks(r, r):
        add = torch.addmm if r.ndim == 2 else torch.baddbmm
        return add(r, r, r, beta=b, alpha=c)
    return symmetric_product(r, r).mul_(c).add_(r, alpha=b)


def symmetric_product(a: Tensor, b: Tensor, *, mirror: bool = True) -> Tensor:
    """Multiply a @ b where that is symmetric: X X', or two polynomials of one matrix.

    Args:
        a: Shape (*batch, m, p).
        b: Shape (*batch, p, m).
        mirror: Fill the upper triangle too. Without it, what lies above the diagonal blocks is
            undefined: enough for `torch.linalg.eigh`, which reads the lower triangle.
    """
    if a.ndim == 3:
        return torch.bmm(a, b)
    if not _in_blocks(a, b):
        return a @ b
    m = a.shape[-2]
    out = a.new_empty(m, m)
    rows = block_rows(m)
    for start in range(0, m, rows):
        stop = min(start + rows, m)
        torch.mm(a[start:stop], b[:, :stop], out=out[start:stop, :stop])
        if mirror:
            out[:start, start:stop] = out[start:stop, :start].mT
    return out


def _in_blocks(a: Tensor, b: Tensor) -> bool:
    """Return whether a product is computed in blocks."""
    return a.ndim == 2 and a.shape[0] >= MIN_ROWS and a.device.type == b.device.type == "cpu"


def block_rows(m: int) -> int:
    """Return the rows of a block: thin ones save operations, thick ones run faster (AVX-512)."""
    return 96 if m < 512 else 128 if m < 1536 else 256


def decomposed(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of R, of which the lower triangle is read."""
    # Transposed, R lies in memory as LAPACK wants it, and from the upper triangle LAPACK is faster:
    # 6 to 13 % together.
    eigenvalues, vectors = torch.linalg.eigh(gram.mT, UPLO="U")
    return eigenvalues, vectors


@dataclass(frozen=True, slots=True)
class Products:
    """Implementations of `symmetric_product`, with its `mirror`, and of `quadratic`."""

    symmetric: Callable[..., Tensor] = symmetric_product
    quadratic: Callable[[Tensor, float, float], Tensor] = quadratic


PLAIN: Final = Products()


def products_for(
    tuning: Tuning | None,
    x: Tensor,  # (*batch, m, n), m <= n
) -> Products:
    """Return Triton's products for matrices like x where they are faster, or else torch's."""
    tile = tuning.tile(*x.shape[-2:]) if tuning is not None else None
    if tile is None:
        return PLAIN
    from lightning_root.kernels.triton import products

    def symmetric(a: Tensor, b: Tensor, *, mirror: bool = True) -> Tensor:
        return products.symmetric_product(a, b, tile)  # both halves cost what one does

    return Products(symmetric, partial(products.quadratic, tile=tile))


def orthogonalize_by(
    matrix: Tensor,  # (k, m, n) or (m, n), not empty
    triples: Sequence[Triple],
    *,
    form: Form,
    dtype: torch.dtype,
    largest: Tensor | None = None,  # (k,) or (): magnitude of each matrix
    tuning: Tuning | None = None,
) -> Tensor:  # as `matrix`
    """Orthogonalize in one form; a transposed view gives a result laid out alike."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    if form in ("eigh", "polar"):  # there are no decompositions in lower precision
        dtype = torch.promote_types(dtype, torch.float32)
    x = _near_one(matrix.mT if tall else matrix, largest).to(dtype)
    result = _evaluate_flat(x, triples, form, tuning).to(matrix.dtype)
    return result.mT if tall else result


def orthogonalize_unit(unit: Tensor, triples: Sequence[Triple], tuning: Tuning) -> Tensor:
    """Iterate in the standard form on matrices (k, m, n) of Frobenius norm 1."""
    if unit.shape[-2] > unit.shape[-1]:
        return orthogonalize_unit(unit.mT, triples, tuning).mT
    return _evaluate_flat(unit, triples, "standard", tuning, is_unit=True)


def _evaluate_flat(
    x: Tensor,  # (k, m, n) or (m, n)
    triples: Sequence[Triple],
    form: Form,
    tuning: Tuning | None,
    is_unit: bool = False,
) -> Tensor:
    """Evaluate a stack; one matrix without the overhead of a batch."""
    flat = x[0] if x.ndim == 3 and len(x) == 1 else x
    products = products_for(tuning if x.dtype in DTYPES else None, x)
    result = evaluate(flat, triples, form, products=products, is_unit=is_unit)
    return result.unsqueeze(0) if flat is not x else result


def _near_one(matrix: Tensor, largest: Tensor | None) -> Tensor:
    """Divide each matrix by its largest magnitude where its squares would leave float32."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if largest is None:
        largest = magnitude(matrix)[..., 0, 0]
    if largest.device.type == "cpu":  # elsewhere a look at the numbers costs more than the division
        low, high = _SAFE
        if all(low < value < high or value == 0.0 for value in largest.flatten().tolist()):
            return matrix
    return matrix / largest.masked_fill(largest == 0, 1.0)[..., None, None]


def segments(triples: Sequence[Triple], dtype: torch.dtype) -> list[tuple[Triple, ...]]:
    """Cut a schedule where R, held in `dtype`, has to be computed anew from X."""
    # R is rounded relative to its largest eigenvalue, and the steps that follow enlarge the
    # smallest ones by the square of their slopes at zero: by 2e5 in five steps, by 1e8 in eight.
    # Rounding would become a wrong, even a negative eigenvalue, on which the iteration diverges.
    limit = math.sqrt(MAX_ROUNDING_ERROR / torch.finfo(dtype).eps)
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
    x: Tensor,  # (k, m, n) or (m, n), m <= n, in the dtype of the iteration; not modified
    triples: Sequence[Triple],
    form: Form,
    *,
    products: Products = PLAIN,
    is_unit: bool = False,  # its norm is 1 already
) -> Tensor:
    """Divide by the Frobenius norm and iterate; a transposed view gives a transposed result."""
    # The largest entry of x must be near 1, so that squares neither overflow nor vanish.
    if form == "standard":
        return _standard(x if is_unit else _unit(x), triples, products)
    if form == "polar":
        return _polar(x)
    if form == "eigh":
        try:
            return _through_gram(x, triples, _eigh, products)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass  # it did not converge, or the matrix is not finite
    return _through_gram(x, triples, _gram, products)


def _unit(x: Tensor) -> Tensor:
    """Divide by the Frobenius norm, taken in float32 or better; zero stays zero."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(dim=(-2, -1), keepdim=True)
    wide = wide / largest.masked_fill(largest == 0, 1.0)
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    return wide.div_(norm.masked_fill_(norm == 0, 1.0)).to(x.dtype)


def _standard(x: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    """Iterate on X of norm 1 or less."""
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for a, b, c in triples:
        polynomial = products.quadratic(products.symmetric(x, x.mT), b, c)  # b R + c R^2
        if x.stride(-1) == 1:
            x = multiply_add(x, polynomial, x, beta=a)
        else:
            x = multiply_add(x.mT, x.mT, polynomial.mT, beta=a).mT
    return x


def _through_gram(
    x: Tensor,
    triples: Sequence[Triple],
    factor: Callable[[Tensor, Sequence[Triple], Products], Tensor],
    products: Products,
) -> Tensor:
    """Compute Q X, where `factor` gives Q from R and part of the schedule."""
    for number, part in enumerate(segments(triples, x.dtype)):
        gram = products.symmetric(x, x.mT, mirror=factor is _gram)
        if number == 0:
            square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]  # the trace
            square = square.masked_fill(square == 0, 1.0)
            q = factor(gram.div_(square), part, products).mul_(square.rsqrt())
        else:
            q = factor(gram, part, products)
        x = _left(q, x)
    return x


def _gram(gram: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    """Compute Q from R, which is used up: 3 T - 2 symmetric products and T - 1 whole ones."""
    # Q is symmetric too, but to mirror one triangle would spoil it: where R is badly conditioned,
    # the slopes at zero enlarge the rounding in its rows, by hundreds, but not in its columns.
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
    """Compute Q from R = V diag(lambda) V', of which the lower triangle is read."""
    eigenvalues, vectors = decomposed(gram)
    sigma = eigenvalues.clamp_(min=0.0).sqrt_()
    q = torch.ones_like(sigma)
    for a, b, c in triples:
        square = sigma * sigma
        p = a + square * (b + c * square)
        q, sigma = q * p, sigma * p
    return products.symmetric(vectors * q.unsqueeze(-2), vectors.mT)


def _polar(x: Tensor) -> Tensor:
    """Compute U V' = (X X')^(-1/2) X in float64; directions without content give zero."""
    wide = x.double()
    try:
        eigenvalues, vectors = decomposed(PLAIN.symmetric(wide, wide.mT, mirror=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return iterate(unit_frobenius(wide), (NEWTON_SCHULZ,) * 30).to(x.dtype)
    # Below the rounding of x itself there is nothing to bring up to 1.
    eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    floor = eigenvalues[..., -1:] * (eps * math.sqrt(x.shape[-1])) ** 2
    inverse = eigenvalues.rsqrt().masked_fill(eigenvalues <= floor, 0.0)
    q = PLAIN.symmetric(vectors * inverse.unsqueeze(-2), vectors.mT)
    return _left(q, wide).to(x.dtype)


def _left(q: Tensor, x: Tensor) -> Tensor:
    """Multiply q @ x for a symmetric q, with the result laid out as x is."""
    return (x.mT @ q).mT if x.stride(-1) != 1 and x.stride(-2) == 1 else q @ x
