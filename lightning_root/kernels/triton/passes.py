# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, name-defined"
"""A few passes over memory in the place of a dozen, with sums in the same order in every run."""

from __future__ import annotations

import struct
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.outliers import sample_stride
from lightning_root.kernels.rounding import BFLOAT16_LARGEST, MIXERS
from lightning_root.kernels.triton.language import cdiv, jit, tl
from lightning_root.kernels.triton.rounding import advance, to_bfloat16

BLOCK: Final = 4096  # elements of a program: 32 of each of its 128 threads
CHUNK: Final = 4096  # entries that are counted at a time


def blocks(matrix: Tensor) -> int:
    """Return the number of blocks of a matrix."""
    return cdiv(matrix.numel(), BLOCK)


def momentum_step_(
    gradient: Tensor,  # G, any floating dtype
    momentum: Tensor,  # M, float32, or bfloat16 and rounded stochastically
    out: Tensor,  # N, float32
    mu: float,
    largest: Tensor,  # (`blocks(momentum)`,), float32
    *,
    nesterov: bool,
    maximize: bool,  # G counts negative
    finite: Tensor | None = None,  # (); where it is False, M stays as it is and G counts as zero
) -> None:
    """Set M <- mu M + G, N <- G + mu M, or M without `nesterov`; all contiguous."""
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


def clipped_unit(
    matrices: Tensor,  # N, (k, m, n), contiguous
    bounds: Tensor,  # (k,), positive but for zero matrices; the largest magnitude clips nothing
    dtype: torch.dtype,
) -> Tensor:  # (k, m, n), of this dtype
    """Hold each matrix within its bound and divide it by its Frobenius norm; zero stays zero."""
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


def apply_update_(
    weight: Tensor,  # W, contiguous, float32, bfloat16 or float16
    update: Tensor,  # U, contiguous, any floating dtype
    lr: float | Tensor,  # a tensor has no dimensions and is on the device
    weight_decay: float,  # wd
    scale: float,
    finite: Tensor | None = None,  # (); where it is False, W stays as it is
) -> None:
    """Set W <- (1 - lr wd) W - lr scale U, computed in float32 and rounded once."""
    on_device = isinstance(lr, Tensor)
    _apply_update[(blocks(weight),)](
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


def sampled_threshold(
    matrices: Tensor,  # (k, m, n), float32, contiguous
    quantile: float,  # p in (0, 1]
) -> Tensor:  # (k,), float32; 0 where no entry of the sample has a magnitude
    """Compute the `quantile` of the non-zero magnitudes of a sample, as its plain twin does."""
    flat = matrices.flatten(1)
    if quantile < 1.0:
        flat = flat[:, :: sample_stride(flat.shape[1], matrices.shape[-1])].contiguous()
    out = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
    coarse = struct.unpack("f", struct.pack("f", quantile))[0]  # arguments are float32
    numbers = (flat.shape[1], coarse, quantile - coarse)
    _quantile[(len(flat),)](flat, out, *numbers, CHUNK=CHUNK, num_warps=8, enable_fp_fusion=True)
    return out


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
    """Return part of N / bound held within 1, its matrix's number, and where it lies."""
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
def _apply_update(
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


@jit
def _bits(matrix, start, entries, CHUNK: tl.constexpr):
    """Load magnitudes as whole numbers; beyond the end -1, which is less than any."""
    index = start + tl.arange(0, CHUNK)
    inside = index < entries
    values = tl.load(matrix + index, mask=inside, other=0.0)
    return tl.where(inside, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)


@jit
def _next_digit(
    matrix, entries, known, rank, SHIFT: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr
):
    """Return the bits, down to `SHIFT`, of the entry with this rank, and its rank among equals."""
    # Of the entries that share the `known` bits, those above, the next `WIDTH` bits are counted.
    counts = tl.zeros((1 << WIDTH,), dtype=tl.int32)
    for start in range(0, entries, CHUNK):
        bits = _bits(matrix, start, entries, CHUNK)
        alike = (bits >= 0) & ((bits >> (SHIFT + WIDTH)) == known)
        digits = (bits >> SHIFT) & ((1 << WIDTH) - 1)
        counts += tl.histogram(digits, 1 << WIDTH, mask=alike)
    digit = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32), 0)
    before = tl.sum(tl.where(tl.arange(0, 1 << WIDTH) < digit, counts, 0), 0)
    return (known << WIDTH) | digit, rank - before


@jit
def _quantile(samples, out, entries, coarse, fine, CHUNK: tl.constexpr):
    stack = tl.program_id(0)
    matrix = samples + stack.to(tl.int64) * entries
    zeros = tl.zeros((CHUNK,), dtype=tl.int32)
    for start in range(0, entries, CHUNK):
        zeros += (_bits(matrix, start, entries, CHUNK) == 0).to(tl.int32)
    last = tl.maximum(entries - tl.sum(zeros, 0) - 1, 0)
    position = last.to(tl.float64) * coarse + last.to(tl.float64) * fine
    lower = tl.minimum(position.to(tl.int32), last)
    weight = (position - lower.to(tl.float64)).to(tl.float32)
    rank = entries - 1 - last + lower
    # Magnitudes are in the order of their 31 bits: counting tells the upper 11 of this one, then
    # the next 11, then 9, without sorting.
    known, left = _next_digit(matrix, entries, 0, rank, 20, 11, CHUNK)
    known, left = _next_digit(matrix, entries, known, left, 9, 11, CHUNK)
    low, left = _next_digit(matrix, entries, known, left, 0, 9, CHUNK)
    # The entry that follows is as large, or the least of those that are larger.
    through = tl.zeros((CHUNK,), dtype=tl.int32)
    larger = tl.full((CHUNK,), 0x7FFFFFFF, dtype=tl.int32)
    for start in range(0, entries, CHUNK):
        bits = _bits(matrix, start, entries, CHUNK)
        through += ((bits >= 0) & (bits <= low)).to(tl.int32)
        larger = tl.minimum(larger, tl.where(bits > low, bits, 0x7FFFFFFF))
    alone = (tl.sum(through, 0) == rank + 1) & (lower < last)
    high = tl.where(alone, tl.min(larger, 0), low)
    start_value = low.to(tl.float32, bitcast=True)
    step = high.to(tl.float32, bitcast=True) - start_value
    tl.store(out + stack, start_value + weight * step)
