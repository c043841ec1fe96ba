"""A role and a route for each parameter, and a table of them to read.

The table has one row for equal parameters of repeated blocks.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from torch import Tensor

from lightning_root.partition.views import MatrixView

Role = Literal["root", "adamw"]
"""Who updates a parameter: the orthogonalized update, or AdamW."""

Kind = Literal["hidden", "embedding", "head", "vector", "table"]
"""The part that a parameter has in its model, whatever a rule makes of it.

hidden: a weight between features, which can be orthogonalized. embedding: of tokens, categories or
patches of the input. head: computes an output. vector: up to one dimension, in effect or in truth;
biases and gains. table: all whose entries stand alone: positions, learned tokens, codebooks, decay
rates, depthwise convolutions, complex weights, and stacks that are not known to hold matrices.
"""

# A block's number: a whole component of a name, or the end of one as in `encoder_layer_0.fc.weight`
# (but the two norms `ln_1.weight` and `ln_2.weight` are not two blocks).
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])|(?<=_)\d+(?=\.[^.]+\.)")
_LABELS: dict[Role, str] = {"root": "ROOT", "adamw": "AdamW"}
_HEADER = ("parameter", "shape", "rule", "reason")
_GAP = "  "
_MAX_WIDTH = 110
_MAX_NAME = 52
_MIN_REASON = 24

Cells = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where one parameter goes, and why.

    Args:
        name: Fully qualified name, without the components that wrappers put in (`torch.compile`,
            activation checkpointing, FSDP).
        shape: Shape of the whole parameter, also where it is sharded.
        role: "root" for hidden matrices, "adamw" for everything else.
        kind: "hidden", "embedding", "head", "vector" or "table"; rules do not change it.
        reason: Why, in a few words; for people, not to be parsed.
        view: How the parameter is cut into matrices. None takes it whole, flattened to
            (shape[0], rest).
        suggestion: A rule that would change an uncertain decision, to be pasted into `rules`, such
            as `"*.bank": {"stack": 1}`; None when there is no doubt.
        frozen: Whether it is not trained now, and gets this rule once it is unfrozen.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    kind: Kind
    reason: str
    view: MatrixView | None = None
    suggestion: str | None = None
    frozen: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the matrices that are orthogonalized one by one; none for AdamW."""
        return (self.view or MatrixView()).matrices(self.shape) if self.role == "root" else []


@dataclass(frozen=True, repr=False)
class Partition:
    """Every parameter with the rule that updates it; `str()` is a table to read.

    Args:
        routes: One route for each parameter, in the order in which the model registered them.
        parameters: The live parameters, parallel to `routes`.
        note: What is doubtful about the model as a whole, such as that it has no output head.
    """

    routes: tuple[Route, ...]
    parameters: tuple[Tensor, ...] = field(compare=False)
    note: str = field(default="", compare=False)

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer: "root", then "adamw", also when they are empty.

        Each is `{"name": role, "role": role, "params": [(name, parameter), ...]}`.
        """
        params: dict[str, list[tuple[str, Tensor]]] = {"root": [], "adamw": []}
        for route, parameter in zip(self.routes, self.parameters, strict=True):
            params[route.role].append((route.name, parameter))
        return [{"name": role, "role": role, "params": pairs} for role, pairs in params.items()]

    def __str__(self) -> str:
        """Return the readable table: parameter, shape, rule, reason, and totals."""
        notes = [self.note] if self.note else []
        if frozen := [math.prod(route.shape) for route in self.routes if route.frozen]:
            plural, verb = ("s", "are") if len(frozen) > 1 else ("", "is")
            count = f"{len(frozen)} frozen parameter{plural}, {_with_unit(sum(frozen))} entries"
            notes.insert(0, f"{count}, {verb} trained once unfrozen")
        return _render_table([route for route in self.routes if not route.frozen], notes)

    def summary(self) -> str:
        """Return the sums of the table: what each rule updates, and its share of the work."""
        return "\n".join(_summarize_roles([route for route in self.routes if not route.frozen]))

    def __repr__(self) -> str:
        """Return how many parameters go where."""
        count = Counter(route.role for route in self.routes)
        return f"Partition(root={count['root']}, adamw={count['adamw']})"


def _render_table(routes: Sequence[Route], notes: Sequence[str]) -> str:
    """Return the table in at most 110 columns, then totals, notes, and suggested rules, if any."""
    rows = _collapse_blocks(routes)
    name, shape, rule, reason = (max(map(len, each)) for each in zip(_HEADER, *rows, strict=True))
    name = min(name, _MAX_NAME)
    used = name + shape + rule + 3 * len(_GAP)
    widths = (name, shape, rule, min(reason, max(_MAX_WIDTH - used, _MIN_REASON)))
    lines = [_pad_cells(_HEADER, widths), _GAP.join("-" * width for width in widths)]
    for row in rows:
        lines += _wrap_row(row, widths)
    return "\n".join([*lines, "", *_summarize_roles(routes), *notes, *_list_suggestions(routes)])


def _collapse_blocks(routes: Sequence[Route]) -> list[Cells]:
    """Make one row of routes that differ only in block numbers, in order of first appearance."""
    groups: dict[tuple[str, tuple[int, ...], Role, str], dict[tuple[int, ...], int]] = {}
    for position, route in enumerate(routes):
        key = (_INDEX.sub("{}", route.name), route.shape, route.role, route.reason)
        index = tuple(map(int, _INDEX.findall(route.name)))
        groups.setdefault(key, {})[index] = position
    rows: dict[int, Cells] = {}
    for (_, shape, role, reason), positions in groups.items():
        for axes in _split_into_products(list(positions)):
            first = positions[tuple(axis[0] for axis in axes)]
            name = _name_with_ranges(routes[first].name, axes)
            rows[first] = (name, str(shape), _LABELS[role], reason)
    return [rows[position] for position in sorted(rows)]


def _split_into_products(indices: list[tuple[int, ...]]) -> list[list[list[int]]]:
    """Split index tuples into sets that are products of one list of numbers for each position."""
    axes = [sorted(set(axis)) for axis in zip(*indices, strict=True)]
    if len(indices) == math.prod(map(len, axes)):  # the indices are distinct
        return [axes]
    split = next(i for i, axis in enumerate(axes) if len(axis) > 1)
    return [
        product
        for value in axes[split]
        for product in _split_into_products([index for index in indices if index[split] == value])
    ]


def _name_with_ranges(name: str, axes: Sequence[list[int]]) -> str:
    """Put lists of numbers in the place of a name's indices, and say how many names that makes."""
    ranges = map(_format_range, axes)
    count = math.prod(map(len, axes))
    return _INDEX.sub(lambda _: next(ranges), name) + (f"  x{count}" if count > 1 else "")


def _format_range(numbers: list[int]) -> str:
    """Write numbers as `7`, `{0..3}` or `{0,2,5}`."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    listed = f"{first}..{last}" if last - first == len(numbers) - 1 else ",".join(map(str, numbers))
    return f"{{{listed}}}"


def _wrap_row(row: Cells, widths: Sequence[int]) -> list[str]:
    """Lay out one row, on several lines when its name or reason is too long."""
    name, shape, rule, reason = row
    names = _wrap(re.findall(r"(?:\{[^}]*\}|[^. ])+\.?|\s+x\d+$", name), widths[0])
    # Shapes and rules stay in one piece.
    reasons = _wrap(re.findall(r"(?:\([\d, ]+\)|\{[^{}]*\}|\S)+\s*", reason), widths[3])
    cells = zip_longest(names, [shape], [rule], reasons, fillvalue="")
    return [_pad_cells(line, widths) for line in cells]


def _wrap(pieces: Iterable[str], width: int) -> list[str]:
    """Fill lines with pieces; a piece that is longer than a line is cut."""
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    stripped = [line.rstrip() for line in lines]
    return [line[i : i + width] for line in stripped for i in range(0, len(line), width)]


def _pad_cells(cells: Iterable[str], widths: Iterable[int]) -> str:
    """Join cells that are padded to their column's width."""
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _summarize_roles(routes: Sequence[Route]) -> list[str]:
    """Count matrices or tensors, parameters, and the work of a step for both roles."""
    total = sum(math.prod(route.shape) for route in routes)
    total_work = sum(map(_estimate_operations, routes))
    lines = []
    for role, label in _LABELS.items():
        chosen = [route for route in routes if route.role == role]
        size = sum(math.prod(route.shape) for route in chosen)
        work = sum(map(_estimate_operations, chosen))
        counted = tensors = f"{len(chosen)} tensor{'s' if len(chosen) != 1 else ''}"
        if role == "root":
            matrices = sum(len(route.matrices) for route in chosen)
            counted = f"{matrices} matri{'ces' if matrices != 1 else 'x'}"
            counted += f" in {tensors}" if matrices != len(chosen) else ""
        lines.append(
            f"{label + ':':6} {counted}, {_with_unit(size)} parameters "
            f"({100 * size / max(total, 1):.1f} %), work {100 * work / max(total_work, 1):.1f} %"
        )
    return lines


def _estimate_operations(route: Route) -> int:
    """Estimate the operations of one step: five Newton-Schulz iterations, or about 15 an entry."""
    if route.role == "adamw":
        return 15 * math.prod(route.shape)
    # An iteration multiplies an m x n matrix, m <= n, with its transpose and with a polynomial of
    # that (4 m^2 n) and squares (2 m^3).
    sides = (sorted(matrix) for matrix in route.matrices)
    return sum(20 * m**2 * n + 10 * m**3 for m, n in sides)


def _list_suggestions(routes: Sequence[Route]) -> list[str]:
    """List the rules that would change what is not certain, to be pasted into YAML or Python."""
    suggestions = dict.fromkeys(route.suggestion for route in routes if route.suggestion)
    if not suggestions:
        return []
    lines = (f"  {rule}," for rule in suggestions)
    return ["", "In doubt; rules that would change it:", "rules: {", *lines, "}"]


def _with_unit(number: int) -> str:
    """Write a number with one decimal and a unit: 812, 3.1 k, 3.1 M, 1.2 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
