# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, name-defined"
"""Momentum in 16 and 8 bits, in one pass over memory; for twins see `optim.stages.momentum`."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

import lightning_root.kernels.rounding as numbers
from lightning_root.kernels.rounding import BLOCK
from lightning_root.kernels.triton.language import cdiv, jit, tl

ROWS: Final = 32  # blocks of a program: 32 entries for each of its 128 threads


def momentum_step_float8_(
    gradient: Tensor,  # G, any floating dtype
    buffer: Tensor,  # M as `optim.low_precision` stores it, uint8
    step: Tensor,  # (), number of steps, float32, on the host or on the device; one more now
    out: Tensor,  # N, float32, as large as G
    mu: float,
    *,
    nesterov: bool,
    maximize: bool,  # G counts negative
    capturable: bool = False,  # a CUDA graph may hold this: `step` is read where the kernel runs
    finite: Tensor | None = None,  # (); where it is False, M stays as it is and G counts as zero
) -> None:
    """Set M <- mu M + G and N <- G + mu M, or M without `nesterov`, all contiguous."""
    step.add_(1 if finite is None else finite)
    entries = gradient.numel()
    on_device = capturable or step.device.type != "cpu"
    _look_ahead_float8[(cdiv(entries, ROWS * BLOCK),)](
        gradient,
        buffer,
        out,
        step if on_device else buffer,
        buffer if finite is None else finite,
        entries,
        mu,
        -1.0 if maximize else 1.0,
        0.0 if on_device else float(step),
        NESTEROV=nesterov,
        GUARDED=finite is not None,
        ON_DEVICE=on_device,
        ROWS=ROWS,
        BLOCK=BLOCK,
        MIN_NORMAL=numbers.MIN_NORMAL,
        FROM_HALF=numbers.FROM_HALF,
        PER_STEP=numbers.PER_STEP,
        PER_PLACE=numbers.PER_PLACE,
        FIRST_MIXER=numbers.MIXERS[0],
        SECOND_MIXER=numbers.MIXERS[1],
        enable_fp_fusion=True,
    )


def decoded(buffer: Tensor, entries: int) -> Tensor:
    """Decode a buffer to float32: exact, slow, and not by way of the kernels."""
    codes, exponents = buffer[:entries].int(), buffer[entries:].int()
    places, exponent = codes & 0xF, (codes >> 4) & 0x7
    value = torch.ldexp((places + 16 * (exponent > 0)) / 16.0, exponent.clamp(min=1) - 6)
    value = torch.where(codes > 127, -value, value)
    return torch.ldexp(value, exponents.repeat_interleave(BLOCK)[:entries] - 127)


@jit
def advance(m, g, mu, finite, NESTEROV: tl.constexpr, GUARDED: tl.constexpr):
    """Return M after this step, before it is rounded, and N."""
    advanced = g + mu * m
    if GUARDED:
        keep = tl.load(finite) == 0
        g = tl.where(keep, 0.0, g)
        advanced = tl.where(keep, m, advanced)
    return advanced, g + mu * advanced if NESTEROV else advanced


@jit
def to_bfloat16(value, LARGEST: tl.constexpr, MIXER: tl.constexpr):
    """Round stochastically: the upper 16 bits after a number below 2^16 has been added."""
    bits = tl.minimum(tl.maximum(value, -LARGEST), LARGEST).to(tl.int32, bitcast=True)
    noise = ((bits * MIXER) >> 16) & 0xFFFF
    return ((bits + noise) & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


@jit
def _look_ahead_float8(
    gradient,
    buffer,
    out,
    step,
    finite,
    entries,
    mu,
    sign,
    number,
    NESTEROV: tl.constexpr,
    GUARDED: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MIN_NORMAL: tl.constexpr,
    FROM_HALF: tl.constexpr,
    PER_STEP: tl.constexpr,
    PER_PLACE: tl.constexpr,
    FIRST_MIXER: tl.constexpr,
    SECOND_MIXER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    place = row[:, None] * BLOCK + column[None, :]
    inside = place < entries
    exponents = buffer + entries + row
    own = row * BLOCK < entries
    codes = tl.load(buffer + place, mask=inside, other=0)
    scale = tl.load(exponents, mask=own, other=0).to(tl.int32) << 23
    m = _read(codes, FROM_HALF) * scale.to(tl.float32, bitcast=True)[:, None]
    g = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * sign
    advanced, direction = advance(m, g, mu, finite, NESTEROV, GUARDED)
    tl.store(out + place, direction, mask=inside)
    largest = tl.max(tl.abs(advanced), axis=1).to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum((largest - 1) >> 23, 0), 253)
    tl.store(exponents, exponent.to(tl.uint8), mask=own)
    current = tl.load(step) if ON_DEVICE else number
    salts = column * PER_PLACE + current.to(tl.int32) * PER_STEP
    salts = (salts ^ (salts >> 15)) * FIRST_MIXER
    salts = (salts ^ (salts >> 15)) * SECOND_MIXER
    noise = (advanced.to(tl.int32, bitcast=True) ^ salts[None, :]) * FIRST_MIXER
    factor = ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    written = _code(advanced, factor, (noise >> 13) & 0x7FFFF, MIN_NORMAL)
    tl.store(buffer + place, written.to(tl.uint8), mask=inside)


@jit
def _read(codes, FROM_HALF: tl.constexpr):
    """Decode by way of float16: a code is its sign, last exponent bits, and mantissa."""
    bits = codes.to(tl.int16)
    half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 6)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * FROM_HALF


@jit
def _code(value, factor, noise, MIN_NORMAL: tl.constexpr):
    """Encode a value whose block's largest entry times factor is near 1."""
    scaled = tl.abs(value) * factor
    below = (scaled.to(tl.int32, bitcast=True) - MIN_NORMAL) >> 31  # all bits, or none
    scaled += (below & MIN_NORMAL).to(tl.float32, bitcast=True)
    bits = (scaled.to(tl.int32, bitcast=True) + noise) >> 19
    bits += ((below + 1) << 4) - (MIN_NORMAL >> 19)
    return tl.minimum(bits, 127) | ((value.to(tl.int32, bitcast=True) >> 24) & 0x80)
