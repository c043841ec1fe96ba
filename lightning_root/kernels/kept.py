"""Measurements of a machine that are made once and kept in the cache folder."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from lightning_root._files import cache_folder, read_json, write_json

_log = logging.getLogger(__name__)

Measured = TypeVar("Measured")
Read = Callable[[Mapping[str, Any]], Measured | None]


def machine_file(words: str) -> Path:
    """Where a measurement of what the words describe is kept."""
    name = "-".join("".join(c if c.isalnum() else " " for c in words).split())
    try:
        return cache_folder() / "rates-2" / f"{name}.json"
    except RuntimeError:  # no home folder: a file that nobody can write
        return Path(os.devnull) / f"{name}.json"


def kept(file: Path, measure: Callable[[], Any], read: Read[Measured]) -> Measured | None:
    """What the file holds, measured and kept now if it holds nothing sound.

    Of several processes that start together, who writes first decides for all.

    Args:
        file: From `machine_file`.
        measure: Gives a dataclass.
        read: Makes one of a file's values; None, or a KeyError, TypeError or ValueError, if they
            are not sound.

    Returns:
        None if it cannot be kept: nothing is measured then, or results would depend on what else
        the machine was doing.
    """
    found = _read(file, read)
    if found is not None:
        return found
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        began = time.perf_counter()
        write_json(draft, asdict(measure()))
        _log.info("measured this machine in %.1f s, once: %s", time.perf_counter() - began, file)
        if _read(file, read) is None:
            os.replace(draft, file)
    except OSError:
        return None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return _read(file, read)


def _read(file: Path, read: Read[Measured]) -> Measured | None:
    try:
        return read(read_json(file))
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
