"""Ways of evaluating the polynomial iteration, as data: what is published, and ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from examples.benchmarks.speed.muon import fused_newton_schulz
from examples.benchmarks.speed.operations import Count, standard, standard_symmetric
from lightning_root.functional import Triple, newton_schulz
from lightning_root.kernels import orthogonalize, tuning_for
from lightning_root.kernels.forms import MIN_ROWS, block_rows
from lightning_root.kernels.triton.tuning import can_run

Orthogonalize: TypeAlias = Callable[[Tensor, Sequence[Triple]], Tensor]


@dataclass(frozen=True)
class Form:
    """One way of doing it.

    Args:
        run: Takes a matrix (m, n), m <= n, or a stack (k, m, n), and one triple per step.
        operations: How many it does, from m, n and the number of steps.
        about: In a few words.
    """

    run: Orthogonalize
    operations: Count
    about: str


def published(matrix: Tensor, triples: Sequence[Triple]) -> Tensor:
    """The iteration as the authors' script and most of Muon's have it, one matrix at a time."""
    if matrix.ndim == 3:
        return torch.stack([published(single, triples) for single in matrix])
    x: Tensor = matrix / (torch.linalg.vector_norm(matrix) + 1e-7)
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def fused_singly(matrix: Tensor, triples: Sequence[Triple]) -> Tensor:
    """Fused sums, one matrix at a time: each stays in the cache, and no product is batched."""
    if matrix.ndim == 2:
        return fused_newton_schulz(matrix, triples)
    return torch.stack([fused_newton_schulz(single, triples) for single in matrix])


def executed_standard(m: int, n: int, steps: int) -> float:
    """What this project's standard form does: symmetric products by blocks where it has them."""
    share = symmetric_share(m)
    return steps * (2 * m * m * n * (1 + share) + 2 * m**3 * share)


def executed_gram(m: int, n: int, steps: int) -> float:
    """What this project's Gram form does in one segment; the products of Q are whole ones."""
    share = symmetric_share(m)
    ends = 2 * m * m * n * (1 + share)
    return ends + 2 * m**3 * (share * (3 * steps - 2) + steps - 1)


def executed_eigh(m: int, n: int, steps: int) -> float:
    """The products of this project's third form, and 9 m^3 for the eigendecomposition."""
    share = symmetric_share(m)
    return 2 * m * m * n * (1 + share) + 2 * m**3 * share + 9 * m**3


def symmetric_share(m: int) -> float:
    """Share of a whole product that is computed of a symmetric one."""
    rows = block_rows(m) if m >= MIN_ROWS else m
    return sum(min(start + rows, m) * min(rows, m - start) for start in range(0, m, rows)) / m**2


def with_kernels(matrix: Tensor, triples: Sequence[Triple]) -> Tensor:
    """This project's standard form with Triton's products, where they were measured as faster."""
    tuning = tuning_for("auto", matrix.device, matrix.dtype)
    return orthogonalize(matrix, triples, form="standard", tuning=tuning)


BASELINE = "published"

FORMS: dict[str, Form] = {
    BASELINE: Form(published, standard, "three products and elementwise sums, a matrix at a time"),
    "fused": Form(fused_newton_schulz, standard, "sums fused into the products, scratch memory"),
    "fused, singly": Form(fused_singly, standard, "the same, a matrix at a time"),
    "newton_schulz": Form(newton_schulz, standard, "this project, `functional.newton_schulz`"),
    "ours, standard": Form(
        partial(orthogonalize, form="standard"),
        executed_standard,
        'this project, `kernels.orthogonalize(form="standard")`: symmetric products by blocks',
    ),
    "ours, gram": Form(
        partial(orthogonalize, form="gram"),
        executed_gram,
        'this project, `form="gram"`: on the Gram matrix, symmetric products by blocks',
    ),
    "ours, eigh": Form(
        partial(orthogonalize, form="eigh"),
        executed_eigh,
        'this project, `form="eigh"`: through the eigenvalues of the Gram matrix',
    ),
}
"""What is measured; a new form is one line."""

ON_GPUS: dict[str, Form] = {
    "ours, kernels": Form(
        with_kernels,
        standard_symmetric,
        'this project, `form="standard"`: symmetric products by Triton where that is faster',
    ),
}
"""What is measured beside them on a GPU with Triton."""


def forms_for(device: torch.device) -> dict[str, Form]:
    """All that run on a device."""
    return FORMS | ON_GPUS if device.type == "cuda" and can_run(device) else FORMS
