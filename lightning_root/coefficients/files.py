"""Coefficient sets in JSON files, and files that are never half-written."""

import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lightning_root.coefficients.record import Coefficients

FORMAT: Final = "lightning_root coefficients 1"


def save_coefficients(path: str | Path, coefficients: Iterable[Coefficients]) -> None:
    """Write coefficient sets to a JSON file, which `coefficients=` and `load_coefficients` read.

    Args:
        path: The file; it is replaced as a whole or not at all.
        coefficients: Sets for any shapes and numbers of steps.
    """
    rows = [entry.as_dict() for entry in coefficients]
    write_json(path, {"format": FORMAT, "coefficients": rows})


def load_coefficients(path: str | Path) -> list[Coefficients]:
    """Read the sets of a JSON file; certificates are computed again.

    Args:
        path: A file that `save_coefficients` wrote.

    Returns:
        All sets, in their order.

    Raises:
        ValueError: If the file is missing or malformed, or a set in it is unbounded.
    """
    values = read_json(path)
    rows = values.get("coefficients") if isinstance(values, Mapping) else None
    if not isinstance(rows, list) or not rows or values.get("format") != FORMAT:
        raise ValueError(
            f"`{path}` is not a file of coefficients: it needs `format` {FORMAT!r} and a list "
            "`coefficients`. `python -m lightning_root coefficients fit --output FILE` writes one"
        )
    return [_entry(path, row) for row in rows]


def _entry(path: str | Path, row: Any) -> Coefficients:
    try:
        return Coefficients.from_dict(row)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` has a malformed entry: {error}") from error


def write_json(path: str | Path, values: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON file atomically: readers see the old file or the new one."""
    with replaced_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=indent) + "\n", encoding="utf-8")


@contextmanager
def replaced_whole(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place at the end if nothing is raised."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=_unfinished(target))
    os.close(descriptor)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_unfinished(path: str | Path) -> None:
    """Remove what writers of `path` have left that were killed; nobody else may be writing it."""
    target = Path(path)
    for draft in target.parent.glob(f"{glob.escape(_unfinished(target))}*"):
        draft.unlink(missing_ok=True)


def _unfinished(target: Path) -> str:
    """How the names of files begin that are to take the place of `target`."""
    return f".{target.name}.unfinished-"


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ValueError: If it is missing or malformed.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"`{path}` is not a JSON file: {error}") from error
