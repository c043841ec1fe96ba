# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, name-defined"
"""Symmetric products at half the operations: the lower triangle's tiles, each written twice."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lightning_root.kernels.triton.language import cdiv, interpreted, jit, tl
from lightning_root.kernels.triton.tiles import Tile

GROUP: Final = 8  # rows of tiles whose programs run at one time and share what the cache holds


def symmetric_product(a: Tensor, b: Tensor, tile: Tile) -> Tensor:
    """Multiply a (*, m, p) by b (*, p, m), whose product is symmetric, accumulated in float32.

    float32, bfloat16 or float16, any strides; exactly symmetric outside the diagonal tiles.
    """
    return _run(a, b, None, 1.0, 0.0, tile)


def quadratic(r: Tensor, b: float, c: float, tile: Tile) -> Tensor:
    """Compute b R + c R^2 for a symmetric R of shape (m, m) or (k, m, m), rounded once."""
    return _run(r, r, r, c, b, tile)


def _run(
    a: Tensor, b: Tensor, addend: Tensor | None, alpha: float, beta: float, tile: Tile
) -> Tensor:
    """Compute alpha a b + beta addend."""
    m, depth = a.shape[-2:]
    out = torch.empty(*a.shape[:-1], m, dtype=a.dtype, device=a.device)
    given = (a, b, out if addend is None else addend)
    stacks = [t.unsqueeze(0) if t.ndim == 2 else t for t in given]
    tiles = cdiv(m, tile.block)
    triangle = tiles * (tiles + 1) // 2
    _lower_tiles[(triangle * len(stacks[0]),)](
        *stacks,
        out,
        m,
        depth,
        *(stride for stack in stacks for stride in stack.stride()),
        alpha,
        beta,
        HAS_ADDEND=addend is not None,
        EVEN=depth % tile.depth == 0,
        WIDEN=interpreted(),  # which knows no products of bfloat16
        GROUP=GROUP,
        BLOCK=tile.block,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out


@jit
def _triangle_row(number):
    """Return the row of an entry, where those of a lower triangle are numbered row by row."""
    row = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > number, row - 1, row)  # the root may be rounded
    return tl.where((row + 1) * (row + 2) // 2 <= number, row + 1, row)


@jit
def _tile_of(number, tiles, GROUP: tl.constexpr):
    """Return row and column: `GROUP` rows at a time, column by column, then their triangle."""
    # The rows before row r have r (r + 1) / 2 tiles, so a group begins where its first row would.
    first = _triangle_row(number) // GROUP * GROUP
    rows = tl.minimum(GROUP, tiles - first)
    local = number - first * (first + 1) // 2
    corner = tl.maximum(local - first * rows, 0)
    below = _triangle_row(corner)
    whole = local < first * rows
    row = first + tl.where(whole, local % rows, below)
    return row, tl.where(whole, local // rows, first + corner - below * (below + 1) // 2)


@jit
def _lower_tiles(
    a,
    b,
    addend,
    out,
    m,
    depth,
    a_stack,
    a_row,
    a_column,
    b_stack,
    b_row,
    b_column,
    addend_stack,
    addend_row,
    addend_column,
    alpha,
    beta,
    HAS_ADDEND: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tiles = tl.cdiv(m, BLOCK)
    triangle = tiles * (tiles + 1) // 2
    number = tl.program_id(0)
    stack = (number // triangle).to(tl.int64)
    row, column = _tile_of(number % triangle, tiles, GROUP)
    rows = row * BLOCK + tl.arange(0, BLOCK)
    columns = column * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, DEPTH)
    # Beyond the last row others are read again: their results are not written.
    left = a + stack * a_stack + (rows % m)[:, None] * a_row + inner[None, :] * a_column
    right = b + stack * b_stack + inner[:, None] * b_row + (columns % m)[None, :] * b_column
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        if EVEN:
            x, y = tl.load(left), tl.load(right)
        else:
            x = tl.load(left, mask=inner[None, :] < depth - start, other=0.0)
            y = tl.load(right, mask=inner[:, None] < depth - start, other=0.0)
        if WIDEN:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y, total, input_precision="ieee")
        left += DEPTH * a_column
        right += DEPTH * b_row
    total *= alpha
    inside = (rows < m)[:, None] & (columns < m)[None, :]
    if HAS_ADDEND:
        place = addend + stack * addend_stack
        place += rows[:, None] * addend_row + columns[None, :] * addend_column
        total += beta * tl.load(place, mask=inside, other=0.0).to(tl.float32)
    values = total.to(out.dtype.element_ty)
    out += stack * m * m
    tl.store(out + rows[:, None] * m + columns[None, :], values, mask=inside)
    if row != column:
        mirrored = out + columns[:, None] * m + rows[None, :]
        tl.store(mirrored, tl.trans(values), mask=tl.trans(inside))
