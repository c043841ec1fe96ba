"""Orthogonalization by whichever form of the iteration is the cheapest here."""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_root.functional import Triple
from lightning_root.kernels.choice import cheapest_form
from lightning_root.kernels.forms import FORMS, Form, evaluate
from lightning_root.kernels.products import products_for
from lightning_root.kernels.rates import rates
from lightning_root.kernels.triton.tiles import DTYPES, Tuning

FormOption: TypeAlias = Literal["auto", "standard", "gram", "eigh", "polar"]
"""What `ns_form` takes."""

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
    """What `functional.newton_schulz` computes, in less time; the two agree up to rounding.

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


def orthogonalize_unit(unit: Tensor, triples: Sequence[Triple], tuning: Tuning) -> Tensor:
    """The standard form, of matrices (k, m, n) that have been divided by their Frobenius norm."""
    if unit.shape[-2] > unit.shape[-1]:
        return orthogonalize_unit(unit.mT, triples, tuning).mT
    return _evaluate_flat(unit, triples, "standard", tuning, of_norm_one=True)


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


def _evaluate_flat(
    x: Tensor,
    triples: Sequence[Triple],
    form: Form,
    tuning: Tuning | None,
    of_norm_one: bool = False,
) -> Tensor:
    """(k, m, n) or (m, n); one matrix without the overhead of a batch."""
    flat = x[0] if x.ndim == 3 and len(x) == 1 else x
    products = products_for(tuning if x.dtype in DTYPES else None, x)
    result = evaluate(flat, triples, form, products=products, of_norm_one=of_norm_one)
    return result.unsqueeze(0) if flat is not x else result


def _near_one(matrix: Tensor, largest: Tensor | None) -> Tensor:
    """The matrices, each divided by its largest magnitude where its squares would leave float32.

    On a CPU a look at the numbers saves the division; elsewhere the look would cost more.
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if largest is None:
        least, most = (function(matrix, dim=(-2, -1)) for function in (torch.amin, torch.amax))
        largest = torch.maximum(-least, most)
    if largest.device.type == "cpu":
        low, high = _SAFE
        if all(low < value < high or value == 0.0 for value in largest.flatten().tolist()):
            return matrix
    return matrix / largest.masked_fill(largest == 0, 1.0)[..., None, None]
