"""Ways to evaluate the same iteration, and orthogonalization by the cheapest of them here.

With R = X X' every step multiplies X from the left by P = a I + b R + c R^2, so T steps are
X_T = Q X with an (m, m) matrix Q = P_T ... P_1 that depends on R alone. `standard` iterates on X,
`gram` on R and Q, and `eigh` takes Q from the eigenvalues of R, on which the polynomial acts one by
one. The wide matrix is then touched twice, however many steps there are. They differ in operations
and rounding, not in the result.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.functional import Triple
from lightning_root.functional.orthogonalize import iterate, unit_frobenius
from lightning_root.kernels.products import PLAIN, Products, decomposed, products_for
from lightning_root.kernels.rates import Rates, rates
from lightning_root.kernels.triton.tiles import DTYPES, Tuning

Form: TypeAlias = Literal["standard", "gram", "eigh", "polar"]
"""`standard`, `gram` and `eigh` evaluate the iteration; `polar` gives its limit, U V'."""

FORMS: Final[tuple[str, ...]] = get_args(Form)
"""All of `Form`."""

FormOption: TypeAlias = Literal["auto", "standard", "gram", "eigh", "polar"]
"""What `ns_form` takes."""

MAX_ROUNDING_ERROR: Final = 0.05
"""Relative error that rounding of R may cause in the smallest singular directions."""

_SAFE: Final = (1e-12, 1e12)
"""Largest entries whose squares, summed over a matrix, are normal numbers in float32."""


def orthogonalize(
    matrix: Tensor,
    triples: Sequence[Triple],
    *,
    form: FormOption = "auto",
    dtype: torch.dtype | None = None,
    largest: Tensor | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """Compute `functional.newton_schulz` in less time; the two agree up to rounding.

    Relative to the largest singular value, the error of `gram` and `eigh` in float32 is below 1e-3;
    singular values below 1e-7 of the largest one are lost in the rounding of the Gram matrix.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype, any scale from 1e-37 to 1e37; not
            modified. A transposed view gives a result laid out alike, without a copy.
        triples: (a, b, c) for each step; without effect on `"polar"`.
        form: `"standard"` iterates on the matrix, `"gram"` on its Gram matrix, `"eigh"` applies the
            polynomial to the eigenvalues of that, `"polar"` gives U V' itself, the limit of many
            good steps. `"auto"` takes the cheapest of the first three: on a CPU by operation counts
            and rates that are measured once, on an accelerator `"standard"`.
        dtype: Arithmetic of the iteration, at least float32 for `"eigh"` and `"polar"`. Default:
            that of `matrix`, and float32 for float16.
        largest: Largest magnitude of each matrix, shape (*batch), if it is known.
        tuning: From `tuning_for`: where Triton's kernels are used. Default: nowhere.

    Returns:
        Shape and dtype of `matrix`; zero for a zero matrix, not finite where `matrix` is not.

    Raises:
        ValueError: If `form` is unknown.

    Example:
        >>> import torch
        >>> from lightning_root import lookup
        >>> from lightning_root.kernels import orthogonalize
        >>> wide = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
        >>> update = orthogonalize(wide, lookup(wide.shape).triples)
        >>> sigma = torch.linalg.svdvals(update)
        >>> bool(sigma.min() > 0.9), bool(sigma.max() < 1.1)
        (True, True)
    """
    if form != "auto" and form not in FORMS:
        raise ValueError(f"`form` must be one of {['auto', *FORMS]}, got {form!r}")
    if matrix.numel() == 0:
        return matrix.clone()
    if dtype is None:
        dtype = torch.float32 if matrix.dtype == torch.float16 else matrix.dtype
    rows, columns = matrix.shape[-2:]
    if rows > columns:
        turned = orthogonalize(
            matrix.mT, triples, form=form, dtype=dtype, largest=largest, tuning=tuning
        )
        return turned.mT
    form = resolved_form(form, (rows, columns), triples, dtype, matrix.device)
    if form in ("eigh", "polar"):  # there are no decompositions in lower precision
        dtype = torch.promote_types(dtype, torch.float32)
    batch = matrix.shape[:-2]
    x = _near_one(matrix, largest).to(dtype)
    x = x.reshape(-1, rows, columns) if len(batch) > 1 else x
    result = _evaluate_flat(x, triples, form, tuning)
    return result.reshape(matrix.shape).to(matrix.dtype)


def resolved_form(
    form: FormOption,
    shape: tuple[int, int],
    triples: Sequence[Triple],
    dtype: torch.dtype,
    device: torch.device,
    threads: int | None = None,
) -> Form:
    """Return the form that "auto" stands for, where an operation has so many threads."""
    if form != "auto":
        return form
    of_cpu = rates(threads or torch.get_num_threads()) if device.type == "cpu" else None
    return cheapest_form((min(shape), max(shape)), triples, dtype, of_cpu)


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
        least, most = (function(matrix, dim=(-2, -1)) for function in (torch.amin, torch.amax))
        largest = torch.maximum(-least, most)
    if largest.device.type == "cpu":  # elsewhere a look at the numbers costs more than the division
        low, high = _SAFE
        if all(low < value < high or value == 0.0 for value in largest.flatten().tolist()):
            return matrix
    return matrix / largest.masked_fill(largest == 0, 1.0)[..., None, None]


def cheapest_form(
    shape: tuple[int, int],  # (m, n), m <= n
    triples: Sequence[Triple],
    dtype: torch.dtype,
    measured: Rates | None,  # None for an accelerator, where only `standard` has been tried
) -> Form:
    """Return the form that takes the least time, by operation counts and measured rates."""
    if measured is None or dtype not in (torch.float32, torch.float64):
        return "standard"
    return _cheapest(shape, tuple(triples), dtype, measured)


def costs(
    shape: tuple[int, int], triples: Sequence[Triple], dtype: torch.dtype, measured: Rates
) -> dict[Form, float]:
    """Estimate the time of each form, in units of the plain product of two m x m matrices.

    With w = n / m, s the time of a symmetric product, f that of one with a sum and e that of an
    eigendecomposition, T steps in r segments:

    .. code-block:: text

        standard   T (s w + s + f w)
        gram       r (s w + w) + (3 T - 2 r) s + T - r
        eigh       r (s w + e + s + w)
    """
    m, n = shape
    wide = n / m
    eigh, symmetric, fused = measured.at(m)
    steps, parts = len(triples), len(segments(triples, dtype))
    ends = parts * (symmetric * wide + wide)
    return {
        "standard": steps * (symmetric * wide + symmetric + fused * wide),
        "gram": ends + (3 * steps - 2 * parts) * symmetric + steps - parts,
        "eigh": ends + parts * (eigh + symmetric),
    }


@lru_cache(maxsize=4096)
def _cheapest(
    shape: tuple[int, int], triples: tuple[Triple, ...], dtype: torch.dtype, measured: Rates
) -> Form:
    """Return the form with the least of `costs`."""
    found = costs(shape, triples, dtype, measured)
    return min(found, key=lambda form: found[form])


def segments(triples: Sequence[Triple], dtype: torch.dtype) -> list[tuple[Triple, ...]]:
    """Cut a schedule where R, held in `dtype`, has to be computed anew from X.

    R is rounded relative to its largest eigenvalue, and the steps that follow enlarge the smallest
    ones by the square of their slopes at zero: by 2e5 in five steps, by 1e8 in eight. What was
    rounding would become a wrong, even a negative eigenvalue, on which the iteration diverges.
    """
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
    """Divide by the Frobenius norm and iterate; zero for a zero matrix.

    The largest entry of x must be near 1, so that squares neither overflow nor vanish. A transposed
    view gives a transposed result, without a copy.
    """
    if form == "standard":
        unit = x if is_unit else unit_frobenius(x).to(x.dtype)
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
    """Compute Q X, where `factor` gives Q from R and part of the schedule."""
    for number, part in enumerate(segments(triples, x.dtype)):
        gram = products.symmetric(x, x.mT, mirror=factor is _gram)
        inverse_norm = None
        if number == 0:
            square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]  # the trace
            square = square.masked_fill(square == 0, 1.0)
            gram /= square
            inverse_norm = square.rsqrt()
        q = factor(gram, part, products)
        x = _left(q if inverse_norm is None else q.mul_(inverse_norm), x)
    return x


def _gram(gram: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    """Compute Q from R, which is used up: 3 T - 2 symmetric products and T - 1 whole ones.

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
    negligible = (eps * math.sqrt(x.shape[-1])) ** 2
    floor = eigenvalues[..., -1:] * negligible
    inverse = eigenvalues.rsqrt().masked_fill(eigenvalues <= floor, 0.0)
    q = PLAIN.symmetric(vectors * inverse.unsqueeze(-2), vectors.mT)
    return _left(q, wide).to(x.dtype)


def _left(q: Tensor, x: Tensor) -> Tensor:
    """Multiply q @ x for a symmetric q, with the result laid out as x is."""
    return (x.mT @ q).mT if x.stride(-1) != 1 and x.stride(-2) == 1 else q @ x
