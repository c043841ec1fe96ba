"""Golden files: one line for equal parameters of repeated blocks, to be reviewed by a person.

A line says role, name, shape and, for matrices, how the parameter is cut:

    root   h.*.attn.c_attn.weight x2  (16, 48)  columns 16 + 16 + 16, stored as (in, out)

`*` stands for all the numbers that the model has in this place of a name.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lightning_root.partition import Partition, Route

FOLDER = Path(__file__).parent / "golden"
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def golden_file(name: str) -> Path:
    """Return where an architecture's split is written down."""
    return FOLDER / f"{name}.txt"


def render(partition: Partition) -> str:
    """Write a split as text; two different splits of a model have two different texts."""
    lines = [line for family in _families(partition.routes) for line in _lines(family)]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True))
        for line in lines
    )
    return "".join(f"{row.rstrip()}\n" for row in rows)


def _families(routes: Iterable[Route]) -> Iterable[list[Route]]:
    """Group routes whose names differ in numbers alone, in order of first appearance."""
    families: dict[str, list[Route]] = {}
    for route in routes:
        families.setdefault(NUMBER.sub("*", route.name), []).append(route)
    return families.values()


def _lines(family: Sequence[Route]) -> list[tuple[str, ...]]:
    """Write a family in as few lines as its differences allow."""
    if len({_cells(route) for route in family}) == 1:
        role, shape, cut = _cells(family[0])
        name = _pattern(family)
        return [(role, f"{name} x{len(family)}" if len(family) > 1 else name, shape, cut)]
    numbers = [NUMBER.findall(route.name) for route in family]
    position = next(i for i, column in enumerate(zip(*numbers, strict=True)) if len({*column}) > 1)
    split: dict[str, list[Route]] = {}
    for route, own in zip(family, numbers, strict=True):
        split.setdefault(own[position], []).append(route)
    return [line for part in split.values() for line in _lines(part)]


def _pattern(family: Sequence[Route]) -> str:
    """Replace the numbers in which the names of a family differ."""
    columns = zip(*(NUMBER.findall(route.name) for route in family), strict=True)
    shown = iter([column[0] if len({*column}) == 1 else "*" for column in columns])
    pattern = NUMBER.sub(lambda _: next(shown), family[0].name)
    assert all(fnmatchcase(route.name, pattern) for route in family)
    return pattern


def _cells(route: Route) -> tuple[str, str, str]:
    """Return role, shape and cut as text."""
    if route.role == "adamw":
        return "adamw", str(route.shape), ""
    view, parts = route.view, []
    if view is not None and view.stack:
        parts.append(f"stack of {' x '.join(map(str, route.shape[: view.stack]))}")
    if view is not None and view.rows:
        parts.append(f"rows {' + '.join(map(str, view.rows))}")
    if view is not None and view.columns:
        parts.append(f"columns {' + '.join(map(str, view.columns))}")
    if view is not None and view.transposed:
        parts.append("stored as (in, out)")
    return "root", str(route.shape), ", ".join(parts) or "whole"
