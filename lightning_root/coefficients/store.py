"""Schedules that need no fit: the shipped table behind `"adaptive"`, and fits made before.

A shape takes the schedule of the nearest shape of a grid, in log m and log n / m; how much one of
its own would gain `python -m examples.benchmarks.default_schedule` measures, which also makes the
table. Fits are kept in memory, and in the cache folder between runs: one that cannot be written or
read costs a fit (a second), never a run.
"""

import json
import logging
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from lightning_root._files import cache_folder
from lightning_root.coefficients import record
from lightning_root.coefficients.certificate import output_range
from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.coefficients.shapes import Shape, parse_shape, shape_text
from lightning_root.functional import Triple, as_schedule

TABLE: Final = Path(__file__).parent / "tables" / "adaptive.json"
# The grid of m, and of n / m.
ROWS: Final = (16, 48, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384)
RATIOS: Final = (1.0, 1.5, 2.5, 4.0, 8.0, 20.0)
STEPS: Final = 8  # longest schedules in the table; beyond it the classical step is appended

_log = logging.getLogger(__name__)
_VERSION: Final = 2  # part of the folder's name; to be raised when the fits change


class FitKey(NamedTuple):
    """All that a fit depends on."""

    name: str
    shape: Shape
    steps: int


known: dict[FitKey, record.Coefficients] = {}  # fitted or read from disk in this process


def get_or_fit(key: FitKey, fit: Callable[[], record.Coefficients]) -> record.Coefficients:
    """Return the fit from memory or from disk, or make and save it now."""
    if key not in known:
        known[key] = _from_disk(key) or _to_disk(key, fit())
    return known[key]


def _file(key: FitKey) -> Path:
    """Return the file of a fit."""
    name = f"{key.name}-{shape_text(key.shape)}-{key.steps}.json"
    return cache_folder() / f"coefficients-{_VERSION}" / name


def _from_disk(key: FitKey) -> record.Coefficients | None:
    """Load a fit; None if there is none, or it is not sound."""
    try:
        (entry,) = record.load_coefficients(_file(key))
    except (OSError, RuntimeError, TypeError, ValueError):  # missing, unreadable or damaged
        return None
    sound = output_range(entry.triples, upper=1.02)[1] <= record.BOUND
    return entry if sound and entry.shape == key.shape and entry.steps == key.steps else None


def _to_disk(key: FitKey, entry: record.Coefficients) -> record.Coefficients:
    """Save a fit if possible, and return it; later runs read it back to the last digit."""
    m, n = key.shape
    _log.debug("fitted %r coefficients for %d x %d, %d steps", key.name, m, n, key.steps)
    try:
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        record.save_coefficients(file, [entry])
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        _log.info("not kept for later runs: %s", error)
    return entry


def in_table(shape: Shape) -> bool:
    """Return whether the grid reaches as far as this shape."""
    return ROWS[0] // 2 <= shape[0] <= 2 * ROWS[-1]


def shipped(shape: Shape, steps: int) -> tuple[tuple[Triple, ...], Shape]:
    """Return the schedule for a shape, and the grid shape it was fitted to."""
    neighbour = nearest(shape)
    triples = _table()[neighbour][min(steps, STEPS) - 1]
    return (*triples, *(NEWTON_SCHULZ,) * (steps - len(triples))), neighbour


def nearest(shape: Shape) -> Shape:
    """Return the grid shape whose singular values are most alike."""
    m, n = shape
    rows = min(ROWS, key=lambda size: abs(math.log(size / m)))
    ratio = min(RATIOS, key=lambda value: abs(math.log(value * m / n)))
    return grid_shape(rows, ratio)


def grid_shape(rows: int, ratio: float) -> Shape:
    """Return a point of the grid as a shape."""
    return rows, round(rows * ratio)


@lru_cache(maxsize=1)
def _table() -> dict[Shape, list[tuple[Triple, ...]]]:
    """Read the schedules for 1 to 8 steps, by grid shape."""
    schedules = json.loads(TABLE.read_text("utf-8"))["schedules"]
    return {parse_shape(key): [*map(as_schedule, rows)] for key, rows in schedules.items()}
