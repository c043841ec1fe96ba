"""Which form of the iteration is the cheapest for a stack of matrices."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from lightning_root.functional import Triple
from lightning_root.kernels.forms import Form, segments
from lightning_root.kernels.rates import Rates


def cheapest_form(
    shape: tuple[int, int], triples: Sequence[Triple], dtype: torch.dtype, rates: Rates | None
) -> Form:
    """The form that takes the least time, by operation counts and measured rates.

    Args:
        shape: (m, n), m <= n.
        triples: One triple per step.
        dtype: Of the iteration.
        rates: Of the CPU; None for an accelerator, where `standard` is the form that has been
            tried.
    """
    if rates is None or dtype not in (torch.float32, torch.float64):
        return "standard"
    return _cheapest(shape, tuple(triples), dtype, rates)


def costs(
    shape: tuple[int, int], triples: Sequence[Triple], dtype: torch.dtype, rates: Rates
) -> dict[Form, float]:
    """Expected time of each form, in units of the plain product of two m x m matrices.

    With w = n / m, s the time of a symmetric product, f that of one with a sum and e that of an
    eigendecomposition, T steps in r segments:

    .. code-block:: text

        standard   T (s w + s + f w)
        gram       r (s w + w) + (3 T - 2 r) s + T - r
        eigh       r (s w + e + s + w)
    """
    m, n = shape
    wide = n / m
    eigh, symmetric, fused = rates.at(m)
    steps, parts = len(triples), len(segments(triples, dtype))
    ends = parts * (symmetric * wide + wide)
    return {
        "standard": steps * (symmetric * wide + symmetric + fused * wide),
        "gram": ends + (3 * steps - 2 * parts) * symmetric + steps - parts,
        "eigh": ends + parts * (eigh + symmetric),
    }


@lru_cache(maxsize=4096)
def _cheapest(
    shape: tuple[int, int], triples: tuple[Triple, ...], dtype: torch.dtype, rates: Rates
) -> Form:
    found = costs(shape, triples, dtype, rates)
    return min(found, key=lambda form: found[form])
