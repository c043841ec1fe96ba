"""Files that are never half-written, JSON, and the folder for what is kept between runs."""

import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Return the folder for fits and measurements; RuntimeError without a home to put it in."""
    chosen = os.environ.get("LIGHTNING_ROOT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lightning_root"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces it at the end if nothing is raised."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=_prefix(target))
    os.close(descriptor)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_unfinished(path: str | Path) -> None:
    """Remove temporary files that killed writers of `path` left; nobody else may be writing it."""
    target = Path(path)
    for temporary in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        temporary.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    """Return how the names of temporary files for `target` begin."""
    return f".{target.name}.unfinished-"


def write_json(path: str | Path, values: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file atomically: readers see the old file or the new one."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=indent) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Return the contents of a JSON file; raise ValueError if it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"`{path}` is not a JSON file: {error}") from error
