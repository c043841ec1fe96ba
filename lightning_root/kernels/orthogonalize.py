"""Orthogonalization by whichever form of the iteration is the cheapest here."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_root.functional import Triple
from lightning_root.kernels.forms import FORMS, Form, orthogonalize_by, segments
from lightning_root.kernels.rates import Rates, rates
from lightning_root.kernels.triton.tiles import Tuning

FormOption: TypeAlias = Literal["auto", "standard", "gram", "eigh", "polar"]
"""Names that `ns_form` takes."""


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
    resolved = resolved_form(form, (rows, columns), triples, dtype, matrix.device)
    flat = matrix
    if matrix.ndim > 3:
        flat = matrix.reshape(-1, rows, columns)
        largest = None if largest is None else largest.flatten()
    result = orthogonalize_by(
        flat, triples, form=resolved, dtype=dtype, largest=largest, tuning=tuning
    )
    return result.reshape(matrix.shape)


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
    return cheapest_form((min(shape), max(shape)), tuple(triples), dtype, of_cpu)


@lru_cache(maxsize=4096)
def cheapest_form(
    shape: tuple[int, int],  # (m, n), m <= n
    triples: tuple[Triple, ...],
    dtype: torch.dtype,
    measured: Rates | None,  # None for an accelerator, where only `standard` has been tried
) -> Form:
    """Return the form that takes the least time, by operation counts and measured rates."""
    if measured is None or dtype not in (torch.float32, torch.float64):
        return "standard"
    found = costs(shape, triples, dtype, measured)
    return min(found, key=lambda form: found[form])


def costs(
    shape: tuple[int, int], triples: Sequence[Triple], dtype: torch.dtype, measured: Rates
) -> dict[Form, float]:
    """Estimate the time of each form, in units of the plain product of two m x m matrices."""
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
