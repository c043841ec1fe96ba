"""Sets of coefficients by name, from files or as given, and what they can do; none is refused."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from lightning_root._files import read_json
from lightning_root.cli import output
from lightning_root.coefficients import (
    COEFFICIENT_NAMES,
    Coefficients,
    lookup,
    marchenko_pastur,
    output_range,
    training_model,
)
from lightning_root.coefficients.certificate import compose
from lightning_root.coefficients.published import AUTHORS_SCRIPT, MUON
from lightning_root.coefficients.record import BOUND, FORMAT, certified
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.functional import Triple, as_schedule

# Tables of sets, by their headers
COLUMNS: Final[Mapping[str, Callable[[Coefficients], str]]] = {
    "shape": lambda entry: shape_text(entry.shape) if entry.shape else "any",
    "T": lambda entry: str(entry.steps),
    "Gaussian": lambda entry: output.error_text(errors_of(entry)["gaussian"]),
    "training": lambda entry: output.error_text(errors_of(entry)["training"]),
    "p_T on [0, 1]": lambda entry: output.range_text(entry.certificate),
    "on [0, 1.02]": lambda entry: output.range_text(output_range(entry.triples, upper=1.02)),
    "stable up to": lambda entry: f"{entry.stable_up_to:.4g}",
    "bfloat16": lambda entry: output.error_text(entry.bfloat16_error),
    "verdict": lambda entry: "bounded" if is_bounded(entry) else "UNBOUNDED",
}
PROPERTIES: Final = ("p_T on [0, 1]", "stable up to", "bfloat16")


def errors_of(entry: Coefficients) -> dict[str, float | None]:
    """Return the errors on Gaussian matrices and on the model of training; None for any shape."""
    if entry.shape is None:
        return {"gaussian": None, "training": None}
    return {
        "gaussian": marchenko_pastur(*entry.shape).mean_square_error(entry.triples),
        "training": training_model(*entry.shape, entry.steps).mean_square_error(entry.triples),
    }


def shared_triple(entry: Coefficients) -> Triple | None:
    """Return the triple that all steps have; None if they have several."""
    return entry.triples[0] if len(set(entry.triples)) == 1 else None


def fixed_points(triple: Triple) -> list[tuple[float, float]]:
    """Return positive fixed points of sigma -> a sigma + b sigma^3 + c sigma^5, with slopes."""
    a, b, c = triple
    if c == 0.0:
        squares = [(1.0 - a) / b] if b != 0.0 else []
    else:
        discriminant = b * b - 4.0 * c * (a - 1.0)
        root = math.sqrt(discriminant) if discriminant >= 0.0 else math.nan
        squares = [(-b - root) / (2.0 * c), (-b + root) / (2.0 * c)]
    points = sorted(math.sqrt(square) for square in squares if square > 0.0)
    return [(x, a + x * x * (3.0 * b + 5.0 * c * x * x)) for x in points]


def fixed_points_text(triple: Triple) -> str:
    """Format fixed points with what they do to values nearby."""
    points = fixed_points(triple)
    texts = [f"{x:.4g} ({'attracts' if abs(slope) < 1 else 'repels'})" for x, slope in points]
    if points and points[-1][1] > 1:  # p(sigma) > sigma from there on
        texts.append("larger values grow without limit")
    return ", ".join(texts) or "none but 0"


def print_sets(
    sets: Sequence[Coefficients], more: Callable[[Coefficients], dict[str, Any]] = lambda _: {}
) -> None:
    """Print sets as JSON, in the format of a coefficient file, and `more` of each."""
    rows = [entry.as_dict() | more(entry) for entry in sets]
    output.print_json({"format": FORMAT, "coefficients": rows})


def sets_table(
    sets: Sequence[Coefficients], header: Sequence[str], more: Mapping[str, Sequence[str]] = {}
) -> str:
    """Lay out a row for each set; `more` are columns that `COLUMNS` does not make."""
    columns = [more.get(name) or [COLUMNS[name](entry) for entry in sets] for name in header]
    return output.text_table(header, list(zip(*columns, strict=True)))


def triples_text(entry: Coefficients) -> str:
    """Format one line of a, b, c per step."""
    lines = ["  " + "  ".join(f"{value:13.8f}" for value in triple) for triple in entry.triples]
    if shared_triple(entry) and entry.steps > 1:
        return f"{lines[0]}  in every step"
    return "\n".join(lines)


def find_sets(text: str, shapes: Sequence[Shape], steps: Sequence[int]) -> list[Coefficients]:
    """Return the sets that an argument names: by name, as a .json file, or as triples.

    No shapes or steps: all that a file has; otherwise sets for any shape, of 5 steps.
    """
    wanted: Sequence[Shape | None] = shapes or [None]
    if text.endswith(".json"):
        sets = read_sets(text)
        fitting = [entry for entry in sets if entry.shape in (*wanted, None) or not shapes]
        chosen = [entry for entry in fitting if entry.steps in steps or not steps]
        if not chosen:
            found = "; ".join(map(set_title, sets[:8])) + ("; ..." if len(sets) > 8 else "")
            raise ValueError(f"`{text}` has none of the sets asked for; it has {found}")
        return chosen
    if text in COEFFICIENT_NAMES:
        if not shapes and text in ("adaptive", "paper", "published"):
            raise ValueError(f"`{text}` depends on the shape; add one, for example 768x3072")
        return [set_by_name(text, shape, count) for shape in wanted for count in steps or [5]]
    rows = _parse_triples(text)
    given, usual = (rows[0], 5) if len(rows) == 1 else (rows, len(rows))
    schedules = [as_schedule(given, count) for count in steps or [usual]]
    return [
        certified(triples, "given", shape=shape, trusted=True)
        for shape in wanted
        for triples in schedules
    ]


def _parse_triples(text: str) -> list[list[float]]:
    """Parse "a,b,c a,b,c", or lists as in JSON."""
    try:
        if "[" in text:
            values = json.loads(text)
            rows = values if isinstance(values[0], list) else [values]
        else:
            rows = [part.split(",") for part in re.sub(r",\s+", ",", text).split()]
        return [[float(number) for number in row] for row in rows]
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"a set is one of {', '.join(COEFFICIENT_NAMES)}, a .json file, or triples like "
            f"'3.4445,-4.775,2.0315', got {text!r}"
        ) from error


def set_by_name(name: str, shape: Shape | None, steps: int) -> Coefficients:
    """Return the set that `lookup` gives for a name, bounded or not."""
    if shape is None:
        return replace(lookup((1, 1), name, steps), shape=None, spectrum=None, mse=None)
    if name == "published":
        schedule = (AUTHORS_SCRIPT.get(shape, MUON),) * steps
        source = "the authors' script" + ("" if shape in AUTHORS_SCRIPT else ": Muon's triple")
        return certified(schedule, source, shape=shape, trusted=True)
    return lookup(shape, name, steps)


def read_sets(path: str) -> list[Coefficients]:
    """Read the sets of a file of `fit --output`, or the one of `Coefficients.to_json`."""
    values = read_json(path)
    rows = values.get("coefficients", [values]) if isinstance(values, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"`{path}` holds no coefficients; `fit --output FILE.json` writes them")
    try:
        return [Coefficients.from_dict(row, trusted=True) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}` is not a file of coefficients: {error}") from error


def is_bounded(entry: Coefficients) -> bool:
    """Return whether ROOT takes the set: p_T within [-2, 2] on [0, 1]."""
    low, high = entry.certificate
    return max(-low, high) <= BOUND


def why_unbounded(entry: Coefficients) -> str | None:
    """Say which singular values are sent where; None if the set is bounded."""
    if is_bounded(entry):
        return None
    sigma = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    image = compose(torch.tensor(entry.triples, dtype=torch.float64), sigma)
    outside = sigma[~(image.abs() <= BOUND)]  # NaN is outside as well
    where = f" first at sigma = {outside[0].item():.3g}" if len(outside) else ""
    low, high = entry.certificate
    farthest = high if high >= -low else low
    reach = f"reaches {farthest:.3g}" if math.isfinite(farthest) else "overflows"
    return f"p_T {reach} on [0, 1]; beyond [-{BOUND:g}, {BOUND:g}]{where}"


def joint_range(sets: Iterable[Coefficients]) -> tuple[float, float]:
    """Return the range of p_T on [0, 1] that holds for all."""
    lows, highs = zip(*(entry.certificate for entry in sets), strict=True)
    return min(lows), max(highs)


def set_title(entry: Coefficients) -> str:
    """Format a set's shape, if it has one, and number of steps."""
    steps = output.counted(entry.steps, "step")
    return f"{shape_text(entry.shape)}, {steps}" if entry.shape else steps
