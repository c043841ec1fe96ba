"""What to say of a run that a full disk has ended: where it is full, and what to go on from."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zipfile import is_zipfile

from lightning.pytorch import Trainer

from lightning_root.diagnostics.training import error_chain

_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""No space left on the device, or none left to this user."""


def full_disk(error: BaseException) -> OSError | None:
    """The error of a full disk: this one, or one that it came from; None if there is none.

    Args:
        error: Of a run.
    """
    return next(
        (e for e in error_chain(error) if isinstance(e, OSError) and e.errno in _FULL), None
    )


def note_full_disk(error: BaseException, trainer: Trainer) -> None:
    """Note below the error of a full disk which folder is on it and what to go on from.

    Args:
        error: Of a run; left as it is if no disk was full.
        trainer: Of that run. No collective is called: other ranks may know of no error.
    """
    if full_disk(error) is None:
        return
    free = {folder: shutil.disk_usage(folder).free for folder in _folders(trainer)}
    fullest = min(free, key=free.__getitem__, default=None)
    left = "" if fullest is None else f": {free[fullest] / 1e6:,.1f} MB are left in '{fullest}'"
    last = max(_checkpoints(trainer), key=lambda path: path.stat().st_mtime, default=None)
    then = (
        "begin again: no checkpoint is whole" if last is None else f"go on with ckpt_path='{last}'"
    )
    error.add_note(f"The disk is full{left}. Make room, then {then}")


def notes_of(error: BaseException) -> list[str]:
    """The notes below an error and those that it came from, each once."""
    return list(dict.fromkeys(n for e in error_chain(error) for n in getattr(e, "__notes__", ())))


def _folders(trainer: Trainer) -> Iterator[Path]:
    """Where the run writes."""
    places = [getattr(logger, "log_dir", None) or logger.save_dir for logger in trainer.loggers]
    places += [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    yield from (Path(place) for place in places if place and Path(place).is_dir())


def _checkpoints(trainer: Trainer) -> Iterator[Path]:
    """The last ones of this run that are whole: of a file that was cut short the end is missing."""
    for callback in trainer.checkpoint_callbacks:
        for name in ("last_model_path", "best_model_path"):
            path = getattr(callback, name, None)
            if path and (Path(path).is_dir() or is_zipfile(path)):
                yield Path(path)
