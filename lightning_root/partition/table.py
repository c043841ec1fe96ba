"""The readable table of a partition: one row for equal parameters of repeated blocks."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from lightning_root.partition.routes import Role, Route

# A block's number: a whole component of a name, or the end of one as in `encoder_layer_0.fc.weight`
# (but the two norms `ln_1.weight` and `ln_2.weight` are not two blocks).
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])|(?<=_)\d+(?=\.[^.]+\.)")
_LABELS: dict[Role, str] = {"root": "ROOT", "adamw": "AdamW"}
_NOUNS: dict[Role, tuple[str, str]] = {
    "root": ("matrix", "matrices"),
    "adamw": ("tensor", "tensors"),
}
_HEADER = ("parameter", "shape", "rule", "reason")
_GAP = "  "
_MAX_WIDTH = 110
_MAX_NAME = 52
_MIN_REASON = 24

Cells = tuple[str, str, str, str]


def render(routes: Sequence[Route]) -> str:
    """Return the table as plain text of at most 110 columns, with totals for both rules below it.

    Names and reasons that are too long go on in the next line. Work is the share of a step's
    operations. At the end come rules for what is in doubt, if anything is.
    """
    rows = _rows(routes)
    columns = list(zip(_HEADER, *rows, strict=True))
    name, shape, rule, reason = (max(map(len, column)) for column in columns)
    name = min(name, _MAX_NAME)
    used = name + shape + rule + 3 * len(_GAP)
    reason = min(reason, max(_MAX_WIDTH - used, _MIN_REASON))
    widths = (name, shape, rule, reason)
    lines = [_line(_HEADER, widths), _GAP.join("-" * width for width in widths)]
    for row in rows:
        lines += _cell_lines(row, widths)
    return "\n".join([*lines, "", *_totals(routes), *_suggestions(routes)])


def _rows(routes: Sequence[Route]) -> list[Cells]:
    """Collapse routes that differ only in block numbers, in order of first appearance."""
    groups: dict[tuple[str, tuple[int, ...], Role, str], dict[tuple[int, ...], int]] = {}
    for position, route in enumerate(routes):
        key = (_INDEX.sub("{}", route.name), route.shape, route.role, route.reason)
        index = tuple(map(int, _INDEX.findall(route.name)))
        groups.setdefault(key, {})[index] = position
    rows: dict[int, Cells] = {}
    for (_, shape, role, reason), positions in groups.items():
        for axes in _boxes(list(positions)):
            first = positions[tuple(axis[0] for axis in axes)]
            rows[first] = (_spanned(routes[first].name, axes), str(shape), _LABELS[role], reason)
    return [rows[position] for position in sorted(rows)]


def _boxes(indices: list[tuple[int, ...]]) -> list[list[list[int]]]:
    """Split index tuples into sets that are products of one list of numbers for each position."""
    axes = [sorted(set(axis)) for axis in zip(*indices, strict=True)]
    if len(indices) == math.prod(map(len, axes)):  # the indices are distinct
        return [axes]
    split = next(i for i, axis in enumerate(axes) if len(axis) > 1)
    return [
        box
        for value in axes[split]
        for box in _boxes([index for index in indices if index[split] == value])
    ]


def _spanned(name: str, axes: Sequence[list[int]]) -> str:
    """Put lists of numbers in the place of a name's indices, and say how many names that makes."""
    spans = map(_span, axes)
    count = math.prod(map(len, axes))
    return _INDEX.sub(lambda _: next(spans), name) + (f"  x{count}" if count > 1 else "")


def _span(numbers: list[int]) -> str:
    """Write numbers as `7`, `{0..3}` or `{0,2,5}`."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    if last - first == len(numbers) - 1:
        return f"{{{first}..{last}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def _cell_lines(row: Cells, widths: Sequence[int]) -> list[str]:
    """Lay out one row, on several lines when its name or reason is too long."""
    name, shape, rule, reason = row
    names = _wrap(re.findall(r"(?:\{[^}]*\}|[^. ])+\.?|\s+x\d+$", name), widths[0])
    # Shapes and rules stay in one piece.
    reasons = _wrap(re.findall(r"(?:\([\d, ]+\)|\{[^{}]*\}|\S)+\s*", reason), widths[3])
    cells = zip_longest(names, [shape], [rule], reasons, fillvalue="")
    return [_line(line, widths) for line in cells]


def _wrap(pieces: Iterable[str], width: int) -> list[str]:
    """Fill lines with pieces; a piece that is longer than a line is cut."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    cut = (
        line[i : i + width] for line in map(str.rstrip, lines) for i in range(0, len(line), width)
    )
    return list(cut)


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    """Join cells that are padded to their column's width."""
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _totals(routes: Sequence[Route]) -> list[str]:
    """Count matrices or tensors, parameters, and the work of a step for both rules."""
    total = sum(math.prod(route.shape) for route in routes)
    work = {role: sum(_work(r) for r in routes if r.role == role) for role in _NOUNS}
    lines = []
    for role, (singular, plural) in _NOUNS.items():
        chosen = [route for route in routes if route.role == role]
        size = sum(math.prod(route.shape) for route in chosen)
        count = sum(len(route.matrices) for route in chosen) if role == "root" else len(chosen)
        counted = f"{count} {singular if count == 1 else plural}"
        if count != len(chosen):
            counted += f" in {len(chosen)} tensor{'s' if len(chosen) != 1 else ''}"
        share = 100 * size / max(total, 1)
        effort = 100 * work[role] / max(sum(work.values()), 1)
        lines.append(
            f"{_LABELS[role] + ':':6} {counted}, {_human(size)} parameters ({share:.1f} %), "
            f"work {effort:.1f} %"
        )
    return lines


def _work(route: Route) -> int:
    """Estimate the operations of one step.

    ROOT's are five Newton-Schulz iterations: for an m x n matrix, m <= n, each multiplies it with
    its transpose and with a polynomial of that (4 m^2 n) and squares (2 m^3). AdamW's are about 15
    per entry.
    """
    if route.role == "adamw":
        return 15 * math.prod(route.shape)
    sides = (sorted(matrix) for matrix in route.matrices)
    return sum(20 * m**2 * n + 10 * m**3 for m, n in sides)


def _suggestions(routes: Sequence[Route]) -> list[str]:
    """List the rules that would settle what is in doubt, to be pasted into YAML or Python."""
    proposed = dict.fromkeys(route.suggestion for route in routes if route.suggestion)
    if not proposed:
        return []
    entries = (f"  {rule}," for rule in proposed)
    return ["", "In doubt; rules that would change it:", "rules: {", *entries, "}"]


def _human(number: int) -> str:
    """Write a number with one decimal and a unit: 812, 3.1 k, 3.1 M, 1.2 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
