"""Coefficient sets in JSON files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from lightning_root._files import read_json, write_json
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
