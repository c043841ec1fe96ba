"""Products that are symmetric, at little more than half the operations, and decompositions.

Block rows of the lower triangle are computed, each up to its diagonal block, and mirrored. The
plain twin is `a @ b`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lightning_root.kernels.triton.tiles import Tuning

MIN_ROWS: Final = 256
"""Smaller products are done whole: the blocks would be too thin to be fast."""


def quadratic(r: Tensor, b: float, c: float) -> Tensor:
    """Compute b R + c R^2 for a symmetric R of shape (m, m) or (k, m, m)."""
    if not _in_blocks(r, r):
        add = torch.addmm if r.ndim == 2 else torch.baddbmm
        return add(r, r, r, beta=b, alpha=c)
    return symmetric_product(r, r).mul_(c).add_(r, alpha=b)


def symmetric_product(a: Tensor, b: Tensor, *, mirror: bool = True) -> Tensor:
    """Multiply a @ b where that is symmetric: X X', or two polynomials of one matrix.

    Args:
        a: Shape (*batch, m, p).
        b: Shape (*batch, p, m).
        mirror: Fill the upper triangle too. Without it, what lies above the diagonal blocks is
            undefined: enough for `torch.linalg.eigh`, which reads the lower triangle.

    Returns:
        Shape (*batch, m, m), fresh memory.

    Example:
        >>> import torch
        >>> from lightning_root.kernels import symmetric_product
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> symmetric_product(x, x.mT)
        tensor([[ 5., 14.],
                [14., 50.]])
    """
    if a.ndim == 3:
        return torch.bmm(a, b)
    if not _in_blocks(a, b):
        return a @ b
    m = a.shape[-2]
    out = a.new_empty(m, m)
    rows = block_rows(m)
    for start in range(0, m, rows):
        stop = min(start + rows, m)
        torch.mm(a[start:stop], b[:, :stop], out=out[start:stop, :stop])
        if mirror:
            out[:start, start:stop] = out[start:stop, :start].mT
    return out


def _in_blocks(a: Tensor, b: Tensor) -> bool:
    """Return whether a product is computed in blocks."""
    return a.ndim == 2 and a.shape[0] >= MIN_ROWS and a.device.type == b.device.type == "cpu"


def block_rows(m: int) -> int:
    """Return the rows of a block: thin ones save operations, thick ones run faster (AVX-512)."""
    return 96 if m < 512 else 128 if m < 1536 else 256


def decomposed(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of R, of which the lower triangle is read."""
    # Transposed, R lies in memory as LAPACK wants it, and from the upper triangle LAPACK is faster:
    # 6 to 13 % together.
    eigenvalues, vectors = torch.linalg.eigh(gram.mT, UPLO="U")
    return eigenvalues, vectors


@dataclass(frozen=True, slots=True)
class Products:
    """Implementations of `symmetric_product`, with its `mirror`, and of `quadratic`."""

    symmetric: Callable[..., Tensor] = symmetric_product
    quadratic: Callable[[Tensor, float, float], Tensor] = quadratic

    def gram_matrix(self, x: Tensor) -> Tensor:
        """Compute X X' for X of shape (*batch, m, n)."""
        return self.symmetric(x, x.mT)


PLAIN: Final = Products()


def products_for(
    tuning: Tuning | None,
    x: Tensor,  # (*batch, m, n), m <= n
) -> Products:
    """Return Triton's products for matrices like x where they are faster, or else torch's."""
    tile = tuning.tile(*x.shape[-2:]) if tuning is not None else None
    if tile is None:
        return PLAIN
    from lightning_root.kernels.triton import products

    def symmetric(a: Tensor, b: Tensor, *, mirror: bool = True) -> Tensor:
        return products.symmetric_product(a, b, tile)  # both halves cost what one does

    return Products(symmetric, partial(products.quadratic, tile=tile))
