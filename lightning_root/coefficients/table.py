"""The shipped schedules behind `"adaptive"`: a grid of shapes, each fitted and certified.

What a schedule has to be good at changes slowly with the size and the aspect ratio of a matrix, so
a shape takes the schedule of the nearest grid shape, in log m and log n / m. How much a schedule of
its own would gain is measured by `python -m examples.benchmarks.default_schedule`, which also makes
the table.
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Final

from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.coefficients.shapes import Shape, parse_shape
from lightning_root.functional import Triple, as_schedule

TABLE: Final = Path(__file__).parent / "tables" / "adaptive.json"

ROWS: Final = (16, 48, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384)
"""Grid of m."""

RATIOS: Final = (1.0, 1.5, 2.5, 4.0, 8.0, 20.0)
"""Grid of n / m."""

STEPS: Final = 8
"""Longest schedules in the table; beyond it the classical step is appended."""


def in_table(shape: Shape) -> bool:
    """Whether the grid reaches as far as this shape."""
    return ROWS[0] // 2 <= shape[0] <= 2 * ROWS[-1]


def shipped(shape: Shape, steps: int) -> tuple[tuple[Triple, ...], Shape]:
    """The schedule for a shape, and the grid shape it was fitted to.

    Args:
        shape: (m, n), m <= n.
        steps: T >= 1.
    """
    neighbour = nearest(shape)
    triples = _table()[neighbour][min(steps, STEPS) - 1]
    return (*triples, *(NEWTON_SCHULZ,) * (steps - len(triples))), neighbour


def nearest(shape: Shape) -> Shape:
    """The grid shape whose singular values are most alike."""
    m, n = shape
    rows = min(ROWS, key=lambda size: abs(math.log(size / m)))
    ratio = min(RATIOS, key=lambda value: abs(math.log(value * m / n)))
    return grid_shape(rows, ratio)


def grid_shape(rows: int, ratio: float) -> Shape:
    """A point of the grid as a shape."""
    return rows, round(rows * ratio)


@lru_cache(maxsize=1)
def _table() -> dict[Shape, list[tuple[Triple, ...]]]:
    """Schedules for 1 to 8 steps, by grid shape."""
    schedules = json.loads(TABLE.read_text("utf-8"))["schedules"]
    return {
        parse_shape(key): [as_schedule(triples) for triples in by_steps]
        for key, by_steps in schedules.items()
    }
