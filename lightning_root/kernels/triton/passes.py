# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, name-defined"
"""What a step does to every entry on its own, in four passes over memory instead of a dozen.

The first pass reads G and M and writes M and N; the second reads N, the third reads N and writes
what is orthogonalized, in the dtype of the iteration; the last one reads U, in that dtype, and
changes W. Sums are taken block by block and then over the blocks in a fixed order, so that results
are the same from run to run. The plain twins are `optim.elementwise`'s functions of these names,
`torch.clamp` and `functional.orthogonalize.unit_frobenius`.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lightning_root.kernels.rounding import BFLOAT16_LARGEST, MIXERS
from lightning_root.kernels.triton.language import cdiv, jit, tl
from lightning_root.kernels.triton.rounding import advance, to_bfloat16

BLOCK: Final = 4096
"""Elements of a program: 32 of each of its 128 threads."""


def blocks(matrix: Tensor) -> int:
    """How many there are in a matrix."""
    return cdiv(matrix.numel(), BLOCK)


def look_ahead_(
    gradient: Tensor,
    momentum: Tensor,
    out: Tensor,
    mu: float,
    largest: Tensor,
    *,
    nesterov: bool,
    maximize: bool,
    finite: Tensor | None = None,
) -> None:
    """M <- mu M + G and N <- G + mu M, or M; and the largest magnitudes of N.

    Args:
        gradient: G, contiguous, any floating dtype.
        momentum: M, contiguous, float32 or bfloat16, which is changed; rounded stochastically.
        out: N, contiguous, float32.
        mu: Of the momentum.
        largest: Of each block, shape (`blocks(momentum)`,), float32, written.
        nesterov: Whether N looks ahead.
        maximize: Whether G counts negative.
        finite: Where it is False, M stays as it is and G counts as zero; no dimensions.
    """
    size = momentum.numel()
    _look_ahead[(blocks(momentum),)](
        gradient,
        momentum,
        out,
        largest,
        momentum if finite is None else finite,
        size,
        mu,
        -1.0 if maximize else 1.0,
        NESTEROV=nesterov,
        GUARDED=finite is not None,
        ROUNDED=momentum.dtype == torch.bfloat16,
        LARGEST=BFLOAT16_LARGEST,
        MIXER=MIXERS[0],
        BLOCK=BLOCK,
        enable_fp_fusion=True,
    )


def clipped_unit(matrices: Tensor, bounds: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix held within its bound and divided by its Frobenius norm.

    Args:
        matrices: N, shape (k, m, n), contiguous.
        bounds: Shape (k,), positive but for zero matrices; the largest magnitude clips nothing.
        dtype: Of the result.

    Returns:
        Shape (k, m, n); zero for a zero matrix.
    """
    stack, size, parts = len(matrices), matrices[0].numel(), blocks(matrices[0])
    squares = torch.empty(stack, parts, dtype=torch.float32, device=matrices.device)
    _squares[(stack * parts,)](
        matrices, bounds, squares, size, parts, BLOCK=BLOCK, enable_fp_fusion=True
    )
    norms = squares.sum(dim=1).sqrt_()
    out = torch.empty_like(matrices, dtype=dtype)
    _clip[(stack * parts,)](
        matrices, bounds, norms, out, size, parts, BLOCK=BLOCK, enable_fp_fusion=True
    )
    return out


def decay_and_descend_(
    weight: Tensor,
    update: Tensor,
    lr: float | Tensor,
    weight_decay: float,
    scale: float,
    finite: Tensor | None = None,
) -> None:
    """W <- (1 - lr wd) W - lr scale U, computed in float32 and rounded once.

    Args:
        weight: W, contiguous, float32, bfloat16 or float16.
        update: U, contiguous, any floating dtype.
        lr: On the host, or a tensor without dimensions on the device.
        weight_decay: wd.
        scale: Factor on the learning rate.
        finite: Where it is False, W stays as it is; no dimensions.
    """
    on_device = isinstance(lr, Tensor)
    _decay_and_descend[(blocks(weight),)](
        weight,
        update,
        lr if on_device else weight,
        weight if finite is None else finite,
        weight.numel(),
        weight_decay if on_device else 1.0 - lr * weight_decay,
        scale if on_device else lr * scale,
        ON_DEVICE=on_device,
        GUARDED=finite is not None,
        BLOCK=BLOCK,
        enable_fp_fusion=True,
    )


@jit
def _look_ahead(
    gradient,
    momentum,
    out,
    largest,
    finite,
    size,
    mu,
    sign,
    NESTEROV: tl.constexpr,
    GUARDED: tl.constexpr,
    ROUNDED: tl.constexpr,
    LARGEST: tl.constexpr,
    MIXER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    m = tl.load(momentum + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * sign
    advanced, direction = advance(m, g, mu, finite, NESTEROV, GUARDED)
    if ROUNDED:
        tl.store(momentum + place, to_bfloat16(advanced, LARGEST, MIXER), mask=inside)
    else:
        tl.store(momentum + place, advanced, mask=inside)
    tl.store(out + place, direction, mask=inside)
    tl.store(largest + tl.program_id(0), tl.max(tl.abs(direction), axis=0))


@jit
def _scaled(matrices, bounds, size, parts, BLOCK: tl.constexpr):
    """Part of N / bound held within 1, which matrix it is of, and where it lies."""
    number = tl.program_id(0)
    stack = number // parts
    local = (number % parts) * BLOCK + tl.arange(0, BLOCK)
    inside = local < size
    place = stack.to(tl.int64) * size + local
    bound = tl.load(bounds + stack)
    values = tl.load(matrices + place, mask=inside, other=0.0) / tl.where(bound == 0, 1.0, bound)
    return tl.minimum(tl.maximum(values, -1.0), 1.0), stack, place, inside


@jit
def _squares(matrices, bounds, squares, size, parts, BLOCK: tl.constexpr):
    values, _, _, _ = _scaled(matrices, bounds, size, parts, BLOCK)
    tl.store(squares + tl.program_id(0), tl.sum(values * values, axis=0))


@jit
def _clip(matrices, bounds, norms, out, size, parts, BLOCK: tl.constexpr):
    values, stack, place, inside = _scaled(matrices, bounds, size, parts, BLOCK)
    norm = tl.load(norms + stack)
    unit = values / tl.where(norm == 0, 1.0, norm)
    tl.store(out + place, unit.to(out.dtype.element_ty), mask=inside)


@jit
def _decay_and_descend(
    weight,
    update,
    lr,
    finite,
    size,
    kept,
    taken,
    ON_DEVICE: tl.constexpr,
    GUARDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    if ON_DEVICE:
        rate = tl.load(lr).to(tl.float32)
        kept = 1.0 - rate * kept
        taken = rate * taken
    changed = w * kept - taken * u
    if GUARDED:
        changed = tl.where(tl.load(finite) == 0, w, changed)
    tl.store(weight + place, changed.to(weight.dtype.element_ty), mask=inside)
