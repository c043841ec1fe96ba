"""Coefficient sets that the command line names: by name, by file, or written out.

Nothing is refused here: a set that ROOT would not take is shown with the reason.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_root._files import read_json
from lightning_root.coefficients import COEFFICIENT_NAMES, Coefficients, lookup
from lightning_root.coefficients.published import AUTHORS_SCRIPT, MUON
from lightning_root.coefficients.record import BOUND, certified
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.functional import Triple, as_schedule


def find_sets(text: str, shapes: Sequence[Shape], steps: Sequence[int]) -> list[Coefficients]:
    """The sets that one word of the command line stands for.

    Args:
        text: A name, a .json file, or triples.
        shapes: Which shapes; none for all that a file has.
        steps: Which T; none for all that a file has, and for 5 otherwise.

    Raises:
        ValueError: If there is no such set.
    """
    if text.endswith(".json"):
        return _chosen(text, shapes, steps)
    wanted: Sequence[Shape | None] = shapes or [None]
    if text in COEFFICIENT_NAMES:
        if not shapes and text in ("adaptive", "paper", "published"):
            raise ValueError(f"`{text}` depends on the shape; add one, for example 768x3072")
        return [named(text, shape, count) for shape in wanted for count in steps or [5]]
    schedules = _written_out(text, steps)
    return [
        certified(triples, "given", shape=shape, trusted=True)
        for shape in wanted
        for triples in schedules
    ]


def named(name: str, shape: Shape | None, steps: int) -> Coefficients:
    """The set of that name, as `lookup` gives it, bounded or not."""
    if shape is None:
        return replace(lookup((1, 1), name, steps), shape=None, spectrum=None, mse=None)
    if name == "published":
        schedule = (AUTHORS_SCRIPT.get(shape, MUON),) * steps
        source = "the authors' script" + ("" if shape in AUTHORS_SCRIPT else ": Muon's triple")
        return certified(schedule, source, shape=shape, trusted=True)
    return lookup(shape, name, steps)


def from_file(path: str) -> list[Coefficients]:
    """The sets in a file of `fit --output`, or the one in a file of `Coefficients.to_json`.

    Raises:
        ValueError: If the file is missing or malformed.
    """
    values = read_json(path)
    rows = values.get("coefficients", [values]) if isinstance(values, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"`{path}` holds no coefficients; `fit --output FILE.json` writes them")
    try:
        return [_entry(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}` is not a file of coefficients: {error}") from error


def pick(sets: Iterable[Coefficients], shape: Shape, steps: int) -> Coefficients | None:
    """The set that a file has for a shape and a number of steps, if any."""
    return next((e for e in sets if e.steps == steps and e.shape in (shape, None)), None)


def image(triples: Iterable[Triple], sigma: Tensor) -> Tensor:
    """p_T(sigma), elementwise."""
    for a, b, c in triples:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma


def is_bounded(entry: Coefficients) -> bool:
    """Whether ROOT takes it: p_T within [-2, 2] on [0, 1]."""
    low, high = entry.certificate
    return max(-low, high) <= BOUND


def why_unbounded(entry: Coefficients) -> str:
    """Which singular values are sent where."""
    sigma = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    outside = sigma[~(image(entry.triples, sigma).abs() <= BOUND)]  # NaN is outside as well
    where = f" first at sigma = {outside[0].item():.3g}" if len(outside) else ""
    low, high = entry.certificate
    farthest = high if high >= -low else low
    reach = f"reaches {farthest:.3g}" if math.isfinite(farthest) else "overflows"
    return f"p_T {reach} on [0, 1]; beyond [-{BOUND:g}, {BOUND:g}]{where}"


def _chosen(path: str, shapes: Sequence[Shape], steps: Sequence[int]) -> list[Coefficients]:
    sets = from_file(path)
    chosen = [
        entry
        for entry in sets
        if (not shapes or entry.shape in (*shapes, None)) and (not steps or entry.steps in steps)
    ]
    if not chosen:
        held = "; ".join(map(title, sets[:8])) + ("; ..." if len(sets) > 8 else "")
        raise ValueError(f"`{path}` has none of the sets asked for; it has {held}")
    return chosen


def title(entry: Coefficients) -> str:
    """Shape and number of steps, in words."""
    steps = f"{entry.steps} step{'s' if entry.steps > 1 else ''}"
    return f"{shape_text(entry.shape)}, {steps}" if entry.shape else steps


def _written_out(text: str, steps: Sequence[int]) -> list[tuple[Triple, ...]]:
    """Triples as "a,b,c a,b,c" or as JSON; a single one is repeated."""
    try:
        rows = _numbers(text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a set is one of {', '.join(COEFFICIENT_NAMES)}, a .json file, or triples like "
            f"'3.4445,-4.775,2.0315', got {text!r}"
        ) from error
    if len(rows) == 1:
        return [as_schedule(rows[0], count) for count in steps or [5]]
    return [as_schedule(rows, count) for count in steps or [len(rows)]]


def _numbers(text: str) -> list[list[float]]:
    if "[" not in text:
        parts = re.sub(r",\s+", ",", text).split()
        return [[float(number) for number in part.split(",")] for part in parts]
    values = json.loads(text)
    rows = values if isinstance(values[0], list) else [values]
    return [[float(number) for number in row] for row in rows]


def _entry(row: Any) -> Coefficients:
    if not isinstance(row, Mapping) or not isinstance(row.get("triples"), list):
        raise ValueError("a set needs `triples`, one (a, b, c) per step")
    shape = sorted(int(size) for size in row.get("shape") or ())
    if shape and (len(shape) != 2 or shape[0] < 1):
        raise ValueError(f"`shape` must be two whole numbers >= 1, got {row['shape']}")
    source, mse = str(row.get("source") or "a file"), row.get("mse")
    return replace(
        certified(as_schedule(row["triples"]), source, trusted=True),
        shape=(shape[0], shape[1]) if shape else None,
        spectrum=str(row.get("spectrum") or "") or None,
        mse=None if mse is None else float(mse),
    )
