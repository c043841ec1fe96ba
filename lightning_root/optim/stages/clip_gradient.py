"""Clip of single entries of the gradient (`gradient_clip_entries`), before the momentum.

    |G_ij| <= c r_i c_j / r          r_i, c_j, r: root mean squares of row i, of column j, of all
    r_i^2 <- 0.95 r_i^2 + 0.05 mean_j G_ij^2 of the clipped G, c_j likewise; the first G seeds

Rows and columns count as at least a tenth of the whole, so that one without gradients so far can
begin. State: r_i and c_j, m + n numbers per matrix. Cost: four passes over G, and a copy of it.
An outlier that gets into the momentum stays there for some 20 steps, which a clip of N cannot mend.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.matrices import magnitude, nonzero
from lightning_root.optim.blocks import BoundParameter, Group, StateSpec, state_dtype

KEY: Final = "gradient_rms"
BETA: Final = 0.95
FLOOR: Final = 0.1


def is_on(group: Group) -> bool:
    """Return whether entries of the gradients of a group's matrices are clipped."""
    return group["gradient_clip_entries"] is not None


STATE: Final = (
    StateSpec(KEY, "matrices", lambda p, _: state_dtype(p), "root", is_on, lambda m, _: sum(m)),
)


def clip_gradient_twin(
    gradient: Tensor,  # (m, n)
    rows: Tensor,  # (m,), mean squares before the step; zeros at first
    columns: Tensor,  # (n,)
    limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return G clipped and the mean squares after the step, as the formula has it."""
    fresh, whole = not rows.any(), rows.mean()
    if not fresh:
        r, c = (mean.clamp(min=FLOOR**2 * float(whole)) for mean in (rows, columns))
        bound = limit * (r[:, None] * c / whole).sqrt()
        gradient = gradient.clamp(-bound, bound)
    squares, kept = gradient.square(), 0.0 if fresh else BETA
    rows = kept * rows + (1 - kept) * squares.mean(1)
    return gradient, rows, kept * columns + (1 - kept) * squares.mean(0)


def clip_gradients(
    parameters: Sequence[BoundParameter],
    group: Group,
    states: Callable[[BoundParameter], Sequence[Mapping[str, Tensor]]],
) -> None:
    """Put a clipped copy in the place of each gradient; matrices without state stay as they are."""
    for bound in parameters:
        dtype = state_dtype(bound.gradient)
        given = bound.gradient.to(dtype, copy=True, memory_format=torch.contiguous_format)
        for block, own in zip(bound.blocks, states(bound), strict=True):
            if own:
                clip_entries_(
                    block.of(given), own[KEY], group["gradient_clip_entries"], bound.finite
                )
        bound.gradient = given


def clip_entries_(
    gradient: Tensor,  # (m, n)
    state: Tensor,  # (m + n,): root mean squares of rows and columns
    limit: float,
    finite: Tensor | None = None,
) -> None:
    """Clip G in place and advance the running root mean squares."""
    rows, columns = torch.split(state, list(gradient.shape))
    whole = torch.linalg.vector_norm(rows) / math.sqrt(len(rows))
    share = [(mean / nonzero(whole)).clamp_(min=FLOOR) for mean in (rows, columns)]
    # Of one that is not finite nothing is used, and with nothing so far there is no bound.
    bound = torch.where(whole > 0, limit * whole, math.inf) * share[0][:, None] * share[1]
    gradient.copy_(torch.minimum(torch.maximum(gradient, -bound), bound))
    largest = magnitude(gradient)
    unit = gradient / nonzero(largest)
    kept = torch.where(whole > 0, BETA, 0.0).to(state)
    for mean, dim in ((rows, 1), (columns, 0)):
        new = torch.linalg.vector_norm(unit, dim=dim) / math.sqrt(unit.shape[dim]) * largest[0, 0]
        new = torch.hypot(kept.sqrt() * mean, (1.0 - kept).sqrt() * new)
        mean.copy_(new if finite is None else torch.where(finite, new, mean))
