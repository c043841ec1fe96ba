"""Orthogonalization, the stage that gives the optimizer its name.

    X <- B / ||B||_F;       `ns_steps` times  X <- a X + b (X X') X + c (X X')^2 X;       U = X

There is a triple (a, b, c) for each step; all singular values end near 1. No state. Cost: two to
four products of the size of X X' X for each step. Source: arXiv:2511.20626, Eq. 5; K. Jordan et
al., Muon, 2024. The plain twin is `functional.newton_schulz`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_root.functional import Triple
from lightning_root.kernels import tuning_for
from lightning_root.kernels.forms import orthogonalize_by, orthogonalize_unit
from lightning_root.kernels.orthogonalize import resolved_form
from lightning_root.kernels.triton.tiles import Tuning
from lightning_root.optim.blocks import Group, MatrixBlock
from lightning_root.optim.options import iteration_dtype


@dataclass(frozen=True, slots=True)
class Orthogonalization:
    """Form, dtype and kernels for matrices of one shape, dtype and device."""

    # takes B, (k, m, n), and its largest magnitudes as `largest`; returns U
    run: Callable[..., Tensor]
    triples: tuple[Triple, ...]  # one per step
    dtype: torch.dtype  # of the iteration
    tuning: Tuning | None  # of Triton's kernels, where they are used


def plan_orthogonalization(
    block: MatrixBlock, like: Tensor, group: Group, threads: int
) -> Orthogonalization:
    """Settle form, dtype and kernels for blocks like this one, whose momentum is `like`."""
    triples = block.coefficients.triples
    dtype = iteration_dtype(group["ns_dtype"], like)
    tuning = tuning_for(group["kernels"], like.device, dtype)
    form = resolved_form(group["ns_form"], block.shape, triples, dtype, like.device, threads)
    run = partial(orthogonalize_by, triples=triples, form=form, dtype=dtype, tuning=tuning)
    return Orthogonalization(run, triples, dtype, tuning)


def orthogonalize_by_kernels(direction: Tensor, bounds: Tensor, how: Orthogonalization) -> Tensor:
    """Clip N, (k, m, n), to its bounds, (k,), and return U in the dtype of the iteration."""
    from lightning_root.kernels.triton import passes

    assert how.tuning is not None
    unit = passes.clipped_unit(direction, bounds, how.dtype)
    return orthogonalize_unit(unit, how.triples, how.tuning)
