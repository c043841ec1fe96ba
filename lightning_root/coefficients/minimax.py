"""Schedules that are best for the worst case: where a fit starts from.

The best odd quintic on [l, u] takes its largest error at l, at two points between, and at u, with
alternating signs (Chebyshev). Applying the best one to what the steps before have left is optimal
for the worst singular value of [l, u] (arXiv:2505.16932).
"""

from functools import lru_cache

import torch

from lightning_root.coefficients.certificate import critical_points, output_range
from lightning_root.functional import Triple


def equioscillating(lower: float, upper: float) -> Triple:
    """The odd quintic with the smallest largest |p(x) - 1| on [lower, upper], by Remez exchange."""
    if upper - lower < 1e-3 * upper:  # nothing left to flatten; the classical step at this scale
        middle = 0.5 * (lower + upper)
        return 1.875 / middle, -1.25 / middle**3, 0.375 / middle**5
    inner = [lower + share * (upper - lower) for share in (0.25, 0.75)]
    a = b = c = 0.0
    for _ in range(30):
        points = [lower, *inner, upper]
        signs = (1.0, -1.0, 1.0, -1.0)
        system = [[x, x**3, x**5, s] for x, s in zip(points, signs, strict=True)]
        matrix = torch.tensor(system, dtype=torch.float64, device="cpu")
        solution = torch.linalg.solve(matrix, matrix.new_ones(4))
        a, b, c = solution[:3].tolist()
        moved = sorted(x for x in critical_points((a, b, c)) if lower < x < upper)
        if len(moved) != 2 or max(abs(x - y) for x, y in zip(moved, inner, strict=True)) < 1e-12:
            break
        inner = moved
    return a, b, c


@lru_cache(maxsize=256)
def greedy_schedule(
    lower: float, steps: int, upper: float = 1.0, cushion: float = 0.0, slack: float = 0.0
) -> tuple[Triple, ...]:
    """The composition of best quintics for singular values in [lower, upper].

    Args:
        lower: Smallest singular value that matters.
        steps: T.
        upper: Largest singular value that may enter.
        cushion: Each step looks at no value below this share of the largest, so that the first
            steps lift small values less and treat large ones better.
        slack: Relative error that values may pick up before every step after the first.
    """
    triples = []
    low, high = lower, upper
    for _ in range(steps):
        triple = equioscillating(max(low, cushion * high), high)
        low, high = output_range([triple], upper=high, lower=low)
        low, high = low * (1.0 - slack), high * (1.0 + slack)
        triples.append(triple)
    return tuple(triples)
