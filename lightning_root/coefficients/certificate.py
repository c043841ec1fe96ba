"""The exact range of a coefficient set over all singular values, not over a sample of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_root.functional import Triple, newton_schulz


def output_range(
    triples: Sequence[Triple], upper: float = 1.0, lower: float = 0.0, slack: float = 0.0
) -> tuple[float, float]:
    """Compute the smallest and largest p_T(sigma) for sigma in [lower, upper].

    Exact up to float64 rounding: a polynomial takes its extremes over an interval at the ends or at
    critical points, and the range after one step is the interval that enters the next.

    Args:
        triples: One triple (a, b, c) per step.
        upper: Largest singular value that may enter; 1 for a Frobenius-normalised matrix.
        lower: Smallest singular value that may enter.
        slack: Relative error of each singular value before every step; below 0.01 in bfloat16.

    Returns:
        (low, high); infinite where the composition overflows.

    Example:
        >>> from lightning_root.coefficients import output_range
        >>> output_range([(1.5, -0.5, 0.0)])
        (0.0, 1.0)
    """
    low, high = lower, upper
    for triple in triples:
        low, high = low - slack * abs(low), high + slack * abs(high)
        a, b, c = triple
        points = [low, high, *(x for x in critical_points(triple) if low < x < high)]
        values = [x * (a + x * x * (b + x * x * c)) for x in points]
        low, high = min(values), max(values)
        if not all(map(math.isfinite, values)) or max(-low, high) > 1e100:
            return -math.inf, math.inf
    return low, high


def stable_input(triples: Sequence[Triple], bound: float = 2.0) -> float:
    """Compute the largest u such that p_T keeps all of [0, u] within [-bound, bound].

    Round-off pushes singular values a little past 1; beyond u they would be blown up. At most 10.

    Args:
        triples: One triple (a, b, c) per step.
        bound: Largest magnitude that counts as bounded.

    Example:
        >>> from lightning_root.coefficients import stable_input
        >>> round(stable_input([(1.5, -0.5, 0.0)]), 4)  # x (3 - x^2) / 2 = -2
        2.1958
    """
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        bottom, top = output_range(triples, upper=middle)
        if max(-bottom, top) <= bound:
            low = middle
        else:
            high = middle
    return low


def bfloat16_error(triples: Sequence[Triple]) -> float:
    """Measure how far the iteration in bfloat16 strays from the exact one, on one fixed matrix.

    It is 64 x 96 with singular values spread log-uniformly over three decades; the result is
    ||U_bfloat16 - U_exact||_F / sqrt(64), per direction. Muon's five steps give about 0.05.

    Args:
        triples: One triple (a, b, c) per step.
    """
    sigma = torch.logspace(-3, 0, 64, dtype=torch.float64, device="cpu")
    sigma = sigma / sigma.norm()
    image = compose(torch.tensor(tuple(triples), dtype=torch.float64, device="cpu"), sigma)
    left, right = _cosines(64), _cosines(96)[:, :64]
    matrix, exact = (left * sigma) @ right.T, (left * image) @ right.T
    rounded = newton_schulz(matrix.float(), triples, dtype=torch.bfloat16).double()
    return float((rounded - exact).norm()) / math.sqrt(len(matrix))


def _cosines(size: int) -> Tensor:
    """Return the orthogonal matrix of the discrete cosine transform."""
    index = torch.arange(size, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi / size * torch.outer(index + 0.5, index)) * math.sqrt(2.0 / size)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix


def critical_points(triple: Triple) -> list[float]:
    """Return the real roots of a + 3 b x^2 + 5 c x^4, a quadratic in y = x^2."""
    a, b, c = triple
    if c == 0.0:
        squares = [] if b == 0.0 else [-a / (3.0 * b)]
    else:
        discriminant = 9.0 * b * b - 20.0 * a * c
        if discriminant < 0.0:
            return []
        q = -0.5 * (3.0 * b + math.copysign(math.sqrt(discriminant), b))  # no cancellation
        squares = [q / (5.0 * c)] + ([a / q] if q != 0.0 else [])
    roots = [math.sqrt(y) for y in squares if y > 0.0]
    return [*roots, *(-root for root in roots)]


def compose(
    triples: Tensor,  # (*batch, T, 3)
    x: Tensor,  # (nodes,)
    stretch: Tensor | float = 1.0,  # (nodes,)
) -> Tensor:  # (*batch, nodes)
    """Evaluate p_T at every x; not finite where it overflows."""
    for a, b, c in (step.unsqueeze(-1).unbind(-2) for step in triples.unbind(-2)):
        x = stretch * x
        square = x * x
        x = x * (a + square * (b + square * c))
    return x
