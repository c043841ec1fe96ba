"""Inverse roots of covariances, by eigenvalues or by products alone."""

from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.matrices import nonzero

NEWTON_STEPS: Final = 32
"""Of the coupled iteration: enough for a condition number of 1e7, in which it grows by 2.25."""

POWER_STEPS: Final = 16
"""For the largest eigenvalue, which the damping is relative to."""


def inverse_root(covariance: Tensor, exponent: float, damping: float) -> Tensor:
    """Compute P = (C / c + damping I)^-exponent, c the largest eigenvalue of C, by `eigh`.

    All eigenvalues of P lie between (1 + damping)^-exponent and damping^-exponent, so that its
    condition number is at most (1 + 1 / damping)^exponent, whatever C is.

    Args:
        covariance: C, symmetric and positive semidefinite up to rounding, shape (*batch, m, m),
            float32 or float64. The lower triangle is read.
        exponent: Greater than 0; 1/2 and 1/4 are usual.
        damping: Greater than 0, relative to the largest eigenvalue.

    Returns:
        P, shape and dtype as C. The identity for a C of zeros.
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance.mT, UPLO="U")
    largest = eigenvalues[..., -1:]
    relative = (eigenvalues / nonzero(largest.clamp(min=0.0))).clamp_(min=0.0)
    powers = (relative + damping).pow_(-exponent)
    powers = torch.where(largest > 0, powers, 1.0)
    root: Tensor = (vectors * powers.unsqueeze(-2)) @ vectors.mT
    return root


def inverse_root_by_products(covariance: Tensor, root: int, damping: float) -> Tensor:
    """Compute what `inverse_root` does with the exponent 1 / root, without a decomposition.

    The coupled Newton iteration, X <- X T, M <- T^root M with T = ((root + 1) I - M) / root, from
    M a multiple of the damped C: M tends to the identity and X to the inverse root (N. Higham,
    Functions of Matrices, 2008, section 7.3). A fixed number of steps, so that nothing waits for
    the device.

    Args:
        covariance: C, shape (*batch, m, m), float32 or float64; all of it is read.
        root: 1, 2 or 4.
        damping: At least 1e-7, relative to the largest eigenvalue.

    Returns:
        P, shape and dtype as C. The identity for a C of zeros.
    """
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    vector = covariance.sum(-1, keepdim=True) + covariance.diagonal(dim1=-2, dim2=-1)[..., None]
    for _ in range(POWER_STEPS):
        vector = covariance @ (
            vector / nonzero(torch.linalg.vector_norm(vector, dim=-2, keepdim=True))
        )
    largest = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)  # (*batch, 1, 1)
    damped = covariance / nonzero(largest) + damping * identity
    # The estimate lies below the largest eigenvalue, by less than the room that is left here.
    scale = (root + 1) / (2.0 * 1.3)
    power, inverse = damped * scale, identity * scale ** (1.0 / root)
    for _ in range(NEWTON_STEPS):
        factor = ((root + 1) * identity - power) / root
        inverse = inverse @ factor
        for _ in range(root.bit_length() - 1):
            factor = factor @ factor
        power = factor @ power
    return torch.where(largest > 0, inverse, identity)
