"""A role and a route for each parameter, and a table of them to read.

The table has one row for equal parameters of repeated blocks.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from torch import Tensor

from lightning_root.partition.names import last_component, prefixes
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
# What is between angles stands for siblings.
_INDEX = re.compile(r"<[^>]*>|(?<![^.])\d+(?![^.])|(?<=_)\d+(?=\.[^.]+\.)")
_LABELS: dict[Role, str] = {"root": "ROOT", "adamw": "AdamW"}
_HEADER = ("parameter", "shape", "rule", "reason")
_GAP = "  "
_MAX_WIDTH = 110
_MAX_NAME = 52
_MIN_REASON = 24
_LONG = 30  # rows, beyond which vectors share one

Cells = tuple[str, str, str, str]
Index = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where one parameter goes, and why.

    Args:
        name: Fully qualified name, without the components that wrappers put in (`torch.compile`,
            activation checkpointing, DDP, FSDP, Fabric).
        shape: Shape of the whole parameter, also where it is sharded.
        role: "root" for hidden matrices, "adamw" for everything else.
        kind: "hidden", "embedding", "head", "vector" or "table"; rules do not change it.
        reason: Why, in a few words; for people, not to be parsed.
        view: How the parameter is cut into matrices. None takes it whole, flattened to
            (shape[0], rest).
        suggestion: A rule that would change an uncertain decision, to be pasted into `rules`, such
            as `"*.bank": {"stack": 1}`; None when there is no doubt.
        frozen: Whether it is not trained now, and gets this rule once it is unfrozen.
        lr_scale: Factor on the learning rate of its group that a rule gives; None for none.
        weight_decay: Decay in the place of its group's that a rule gives; None for none.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    kind: Kind
    reason: str
    view: MatrixView | None = None
    suggestion: str | None = None
    frozen: bool = False
    lr_scale: float | None = None
    weight_decay: float | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Route":
        """Make a route of what `dataclasses.asdict` returns of one."""
        view = plain.get("view")
        return cls(**{**plain, "view": MatrixView(**view) if view is not None else None})

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
        keyed: Paths of dicts of modules, whose keys are data: `str()` collapses equal ones.
    """

    routes: tuple[Route, ...]
    parameters: tuple[Tensor, ...] = field(compare=False)
    note: str = field(default="", compare=False)
    keyed: frozenset[str] = field(default=frozenset(), compare=False)

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
        trained = [route for route in self.routes if not route.frozen]
        return _render_table(trained, self.keyed, notes)

    def summary(self) -> str:
        """Return the sums of the table: what each rule updates, and its share of the work."""
        return "\n".join(_summarize_roles([route for route in self.routes if not route.frozen]))

    def __repr__(self) -> str:
        """Return how many parameters go where."""
        count = Counter(route.role for route in self.routes)
        return f"Partition(root={count['root']}, adamw={count['adamw']})"


def _render_table(routes: Sequence[Route], keyed: Collection[str], notes: Sequence[str]) -> str:
    """Return the table in at most 110 columns, then totals, notes, and suggested rules, if any."""
    rows = _collapse_repeats(routes, keyed)
    matrices = [route for route in routes if len(route.shape) > 1 or route.role == "root"]
    if len(rows) > _LONG and matrices:
        count = f"{{all of one dimension}}  x{len(routes) - len(matrices)}"
        vectors = (count, "", _LABELS["adamw"], "bias or gain")
        rows = [*_collapse_repeats(matrices, keyed), vectors]
    return "\n".join(
        [*_lay_out(rows), "", *_summarize_roles(routes), *notes, *_list_suggestions(routes)]
    )


def _lay_out(rows: Sequence[Cells]) -> list[str]:
    """Lay out the rows below their header."""
    name, shape, rule, reason = (max(map(len, each)) for each in zip(_HEADER, *rows, strict=True))
    name = min(name, _MAX_NAME)
    used = name + shape + rule + 3 * len(_GAP)
    widths = (name, shape, rule, min(reason, max(_MAX_WIDTH - used, _MIN_REASON)))
    header = [_pad_cells(_HEADER, widths), _GAP.join("-" * width for width in widths)]
    return header + [line for row in rows for line in _wrap_row(row, widths)]


def _collapse_repeats(routes: Sequence[Route], keyed: Collection[str]) -> list[Cells]:
    """Make one row of routes that differ only in block numbers, or in which of equal siblings."""
    repeats = _find_repeats(routes, keyed)
    groups: dict[tuple[str, tuple[int, ...], Role, str], dict[Index, tuple[int, str]]] = {}
    for position, route in enumerate(routes):
        paths = prefixes(route.name)[1:]
        marked = ".".join(f"<{repeats[p]}>" if p in repeats else last_component(p) for p in paths)
        siblings = (last_component(p) for p in paths if p in repeats)
        found = _INDEX.findall(marked)
        index = tuple(next(siblings) if text[0] == "<" else int(text) for text in found)
        template = _INDEX.sub(lambda text: text[0] if text[0][0] == "<" else "{}", marked)
        key = (template, route.shape, route.role, route.reason)
        groups.setdefault(key, {})[index] = (position, marked)
    rows: dict[int, Cells] = {}
    for (_, shape, role, reason), positions in groups.items():
        for axes in _split_into_products(list(positions)):
            first, marked = positions[tuple(axis[0] for axis in axes)]
            rows[first] = (_name_with_ranges(marked, axes), str(shape), _LABELS[role], reason)
    return [rows[position] for position in sorted(rows)]


def _find_repeats(routes: Sequence[Route], keyed: Collection[str]) -> dict[str, str]:
    """Return the first of the siblings that are equal below their names, by the path of each."""
    below: dict[str, list[tuple[str, tuple[int, ...], Role, str]]] = {}
    for route in routes:
        for path in prefixes(route.name)[1:]:
            below.setdefault(path, []).append(
                (route.name.removeprefix(path), route.shape, route.role, route.reason)
            )
    equal: dict[tuple[object, ...], list[str]] = {}
    for path, inner in below.items():
        parent, _, own = path.rpartition(".")
        # Two norms, or q and k, have names of their own; keys of a dict are only data.
        deep = parent in keyed or any(name.count(".") > 1 for name, *_ in inner)
        if deep and not own.isdigit():
            equal.setdefault((parent, *inner), []).append(path)
    several = (paths for paths in equal.values() if len(paths) > 1)
    return {path: last_component(paths[0]) for paths in several for path in paths}


def _split_into_products(indices: list[Index]) -> list[list[Sequence[int | str]]]:
    """Split index tuples into sets that are products of one list of values for each position."""
    axes: list[Sequence[int | str]] = [
        sorted({*axis}) if isinstance(axis[0], int) else list(dict.fromkeys(axis))
        for axis in zip(*indices, strict=True)
    ]
    if len(indices) == math.prod(map(len, axes)):  # the indices are distinct
        return [axes]
    split = next(i for i, axis in enumerate(axes) if len(axis) > 1)
    return [
        product
        for value in axes[split]
        for product in _split_into_products([index for index in indices if index[split] == value])
    ]


def _name_with_ranges(marked: str, axes: Sequence[Sequence[int | str]]) -> str:
    """Put lists of values in the place of a name's indices, and say how many names that makes."""
    ranges = map(_format_range, axes)
    count = math.prod(map(len, axes))
    return _INDEX.sub(lambda _: next(ranges), marked) + (f"  x{count}" if count > 1 else "")


def _format_range(values: Sequence[int | str]) -> str:
    """Write numbers as `7`, `{0..3}` or `{0,2,5}`, names as `{age, income, +5}`."""
    first, last = values[0], values[-1]
    if len(values) == 1:
        return str(first)
    if isinstance(first, str):
        most = len(values) if len(values) < 4 else 2
        shown = next(n for n in (most, 2, 1) if n == 1 or len(", ".join(map(str, values[:n]))) < 31)
        more = [f"+{len(values) - shown}"] if shown < len(values) else []
        return f"{{{', '.join(map(str, [*values[:shown], *more]))}}}"
    consecutive = isinstance(last, int) and last - first == len(values) - 1
    return f"{{{f'{first}..{last}' if consecutive else ','.join(map(str, values))}}}"


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
