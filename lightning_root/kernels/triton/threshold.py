# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, name-defined"
"""Order statistics of magnitudes without sorting: their bits are found eleven at a time.

Magnitudes are in the order of their 31 bits. Counting the entries by their upper 11 bits tells
which of them the order statistic has; of the entries that share these the next 11 bits are counted,
then the last 9. Counts are whole numbers, so the result does not depend on who counts first. The
plain twin is `functional.outlier_threshold(mode="sampled")`.
"""

from __future__ import annotations

import struct
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.outliers import sample_stride
from lightning_root.kernels.triton.language import jit, tl

CHUNK: Final = 4096
"""Entries that are looked at at a time."""


def sampled_threshold(matrices: Tensor, quantile: float) -> Tensor:
    """The `quantile` of the non-zero magnitudes of the same sample, equal up to one rounding.

    Args:
        matrices: Shape (k, m, n), float32, contiguous.
        quantile: p in (0, 1].

    Returns:
        Shape (k,), float32; 0 where no entry of the sample has a magnitude.
    """
    flat = matrices.flatten(1)
    if quantile < 1.0:
        flat = flat[:, :: sample_stride(flat.shape[1], matrices.shape[-1])].contiguous()
    out = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
    coarse = struct.unpack("f", struct.pack("f", quantile))[0]  # arguments are float32
    _quantile[(len(flat),)](
        flat,
        out,
        flat.shape[1],
        coarse,
        quantile - coarse,
        CHUNK=CHUNK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return out


@jit
def _bits(matrix, start, entries, CHUNK: tl.constexpr):
    """Magnitudes as whole numbers; beyond the end -1, which is less than any."""
    index = start + tl.arange(0, CHUNK)
    inside = index < entries
    values = tl.load(matrix + index, mask=inside, other=0.0)
    return tl.where(inside, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)


@jit
def _next_digit(
    matrix,
    entries,
    known,
    rank,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The bits, down to `SHIFT`, of the entry with this rank, and its rank among those with them.

    Of the entries that share the `known` bits, those above, the next `WIDTH` bits are counted.
    """
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
