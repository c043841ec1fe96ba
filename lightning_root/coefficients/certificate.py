"""What a coefficient set can do to any singular value: its exact range, not a sample of it."""

import math
from collections.abc import Sequence

from lightning_root.functional import Triple


def output_range(
    triples: Sequence[Triple], upper: float = 1.0, lower: float = 0.0
) -> tuple[float, float]:
    """Smallest and largest p_T(sigma) for sigma in [lower, upper].

    The image of an interval under a polynomial is an interval, whose ends are reached at the ends
    or at critical points; so the range of the composition follows from one step after the other,
    exactly, up to float64 rounding.

    Args:
        triples: One triple (a, b, c) per step.
        upper: Largest singular value that may enter; 1 for a Frobenius-normalised matrix.
        lower: Smallest singular value that may enter.

    Returns:
        (low, high); infinite where the composition overflows.

    Example:
        >>> from lightning_root.coefficients import output_range
        >>> output_range([(1.5, -0.5, 0.0)])
        (0.0, 1.0)
    """
    low, high = lower, upper
    for triple in triples:
        points = [low, high, *(x for x in _critical_points(triple) if low < x < high)]
        values = [_evaluate(triple, x) for x in points]
        low, high = min(values), max(values)
        if not (math.isfinite(low) and math.isfinite(high)) or max(-low, high) > 1e100:
            return -math.inf, math.inf
    return low, high


def _evaluate(triple: Triple, x: float) -> float:
    a, b, c = triple
    square = x * x
    return x * (a + square * (b + square * c))


def _critical_points(triple: Triple) -> list[float]:
    """Real roots of a + 3 b x^2 + 5 c x^4, a quadratic in y = x^2."""
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
