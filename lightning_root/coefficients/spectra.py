"""The singular values that Gaussian matrices have, without drawing any matrix."""

import math

import torch
from torch import Tensor


def marchenko_pastur(rows: int, columns: int, nodes: int = 1024) -> tuple[Tensor, Tensor]:
    """Quadrature of the singular values of a Gaussian matrix divided by its Frobenius norm.

    With y = m / n and the substitution x = 1 + y + 2 sqrt(y) cos(phi), the Marchenko-Pastur law of
    the eigenvalues of X X' / n has the density 2 sin(phi)^2 / (pi x) on (0, pi), smooth even for
    square matrices. The singular values are sqrt(x / m).

    Args:
        rows: m; the smaller dimension (the two are exchanged when it is not).
        columns: n.
        nodes: Number of midpoints; 1024 gives means of smooth functions to about 1e-6.

    Returns:
        Singular values and their weights (sum 1), both float64 of shape (nodes,).

    Example:
        >>> from lightning_root.coefficients import marchenko_pastur
        >>> sigma, weight = marchenko_pastur(64, 256)
        >>> round(float(64 * (weight * sigma**2).sum()), 6)  # squared Frobenius norm
        1.0
    """
    m, n = sorted((rows, columns))
    ratio = m / n
    phi = (torch.arange(nodes, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / nodes)
    eigenvalue = 1.0 + ratio + 2.0 * math.sqrt(ratio) * phi.cos()
    weight = phi.sin().square() / eigenvalue
    return (eigenvalue / m).sqrt().clamp_(max=1.0), weight / weight.sum()
