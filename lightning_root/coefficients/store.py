"""Fits that are made once: kept in memory, and on disk between runs.

The folder is `LIGHTNING_ROOT_CACHE`, or `lightning_root` in the user's cache folder. A folder that
cannot be written and a file that cannot be read cost a fit (a second), never a run.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from lightning_root._files import cache_folder
from lightning_root.coefficients.certificate import output_range
from lightning_root.coefficients.files import load_coefficients, save_coefficients
from lightning_root.coefficients.record import BOUND, Coefficients
from lightning_root.coefficients.shapes import Shape, shape_text

_log = logging.getLogger(__name__)
_VERSION: Final = 2
"""Part of the folder's name; to be raised when the fits change."""


class FitKey(NamedTuple):
    """What a fit depends on."""

    name: str
    shape: Shape
    steps: int


_memory: dict[FitKey, Coefficients] = {}


def remembered(key: FitKey, fit: Callable[[], Coefficients]) -> Coefficients:
    """The fit for `key`: from memory, from disk, or made now and kept."""
    if key not in _memory:
        _memory[key] = _from_disk(key) or _to_disk(key, fit())
    return _memory[key]


def fits_in_use() -> dict[FitKey, Coefficients]:
    """What has been fitted or read from disk in this process."""
    return dict(_memory)


def adopt(fits: Mapping[FitKey, Coefficients]) -> None:
    """Use these from now on, in place of this process's own."""
    _memory.update(fits)


def forget() -> None:
    """Empty the memory; the disk keeps what it has."""
    _memory.clear()


def _file(key: FitKey) -> Path:
    name = f"{key.name}-{shape_text(key.shape)}-{key.steps}.json"
    return cache_folder() / f"coefficients-{_VERSION}" / name


def _from_disk(key: FitKey) -> Coefficients | None:
    try:
        (entry,) = load_coefficients(_file(key))
    except (OSError, RuntimeError, TypeError, ValueError):  # missing, unreadable or damaged
        return None
    sound = output_range(entry.triples, upper=1.02)[1] <= BOUND
    return entry if sound and entry.shape == key.shape and entry.steps == key.steps else None


def _to_disk(key: FitKey, entry: Coefficients) -> Coefficients:
    """Keep it if possible; what is used is what any later run reads, to the last digit."""
    m, n = key.shape
    _log.info("fitted %r coefficients for %d x %d, %d steps", key.name, m, n, key.steps)
    try:
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_coefficients(file, [entry])
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        _log.info("not kept for later runs: %s", error)
    return entry
