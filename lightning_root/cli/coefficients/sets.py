"""Coefficient sets and spectra that the command line names, and sets compared on a spectrum.

Nothing is refused here: a set that ROOT would not take is shown with the reason.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root._files import read_json
from lightning_root.coefficients import (
    COEFFICIENT_NAMES,
    Coefficients,
    Spectrum,
    SpectrumHistogram,
    load_spectra,
    log_uniform,
    lookup,
    marchenko_pastur,
    training_model,
)
from lightning_root.coefficients.published import AUTHORS_SCRIPT, MUON
from lightning_root.coefficients.record import BOUND, certified
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.functional import Triple, as_schedule

THEORETICAL_SPECTRA: Final[Mapping[str, Callable[[Shape, int], Spectrum]]] = {
    "training": lambda shape, steps: training_model(*shape, steps),
    "gaussian": lambda shape, steps: marchenko_pastur(*shape),
    "log-uniform": lambda shape, steps: log_uniform(),
}
"""Spectra that need no measurement."""


@dataclass(frozen=True)
class Spectra:
    """The spectra that `--spectrum` names, for matrices of any shape or of those captured."""

    choice: str  # a name of `THEORETICAL_SPECTRA`, or the file that `captured` was read from
    captured: Mapping[Shape, SpectrumHistogram] = field(default_factory=dict)

    @classmethod
    def read(cls, choice: str) -> "Spectra":
        """Read what follows `--spectrum`: a name, or a file of captured spectra."""
        if choice in THEORETICAL_SPECTRA:
            return cls(choice)
        if not choice.endswith(".json"):
            raise ValueError(
                f"`--spectrum` must be one of {list(THEORETICAL_SPECTRA)} or a .json file of "
                f"captured spectra, got {choice!r}"
            )
        return cls(choice, load_spectra(choice))

    @property
    def description(self) -> str:
        """Whose singular values these are."""
        return {
            "training": "the model of training",
            "gaussian": "Gaussian matrices",
            "log-uniform": "singular values spread evenly in log sigma over [0.001, 1]",
        }.get(self.choice, f"the singular values captured in {self.choice}")

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        """Return the given shapes, each once, or all captured ones if none is given."""
        if not given and not self.captured:
            raise ValueError("name at least one SHAPE, for example 768x3072")
        missing = [shape for shape in given if shape not in self.captured]
        if self.captured and missing:
            known = ", ".join(map(shape_text, self.captured))
            raise ValueError(
                f"`{self.choice}` holds no spectrum of {shape_text(missing[0])}; it has {known}"
            )
        return list(dict.fromkeys(given or self.captured))

    def spectrum(self, shape: Shape, steps: int) -> Spectrum:
        """Return the spectrum of a shape, for schedules of `steps` triples."""
        if self.choice in THEORETICAL_SPECTRA:
            return THEORETICAL_SPECTRA[self.choice](shape, steps)
        histogram = self.captured[shape]
        count = histogram.matrices
        return histogram.spectrum(
            f"captured {shape_text(shape)} ({count} {'matrix' if count == 1 else 'matrices'})"
        )


@dataclass(frozen=True)
class CoefficientComparison:
    """Sets for one shape (m, n), m <= n, and T steps, by the name to show, on one spectrum."""

    shape: Shape
    steps: int
    spectrum: Spectrum
    sets: Mapping[str, Coefficients | None]  # None: there is none for this shape and length

    @property
    def title(self) -> str:
        """Shape and number of steps."""
        return f"{shape_text(self.shape)}, T = {self.steps}"

    @cached_property
    def errors(self) -> dict[str, float | None]:
        """Mean (p_T(sigma) - 1)^2 of each set."""
        return {
            name: None if entry is None else self.spectrum.mean_square_error(entry.triples)
            for name, entry in self.sets.items()
        }

    @cached_property
    def best(self) -> float:
        """The smallest error of a bounded set."""
        bounded = (
            self.errors[name] for name, entry in self.sets.items() if entry and is_bounded(entry)
        )
        return min(error for error in bounded if error is not None)


def find_sets(text: str, shapes: Sequence[Shape], steps: Sequence[int]) -> list[Coefficients]:
    """Return the sets that an argument names: by name, as a .json file, or as triples.

    No shapes or steps: all that a file has; otherwise sets for any shape, of 5 steps.
    """
    if text.endswith(".json"):
        return _select(text, shapes, steps)
    wanted: Sequence[Shape | None] = shapes or [None]
    if text in COEFFICIENT_NAMES:
        if not shapes and text in ("adaptive", "paper", "published"):
            raise ValueError(f"`{text}` depends on the shape; add one, for example 768x3072")
        return [set_by_name(text, shape, count) for shape in wanted for count in steps or [5]]
    schedules = _parse_triples(text, steps)
    return [
        certified(triples, "given", shape=shape, trusted=True)
        for shape in wanted
        for triples in schedules
    ]


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
        return [_parse_set(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}` is not a file of coefficients: {error}") from error


def evaluate(triples: Iterable[Triple], sigma: Tensor) -> Tensor:
    """Return p_T(sigma), elementwise."""
    for a, b, c in triples:
        square = sigma * sigma
        sigma = sigma * (a + square * (b + square * c))
    return sigma


def is_bounded(entry: Coefficients) -> bool:
    """Return whether ROOT takes the set: p_T within [-2, 2] on [0, 1]."""
    low, high = entry.certificate
    return max(-low, high) <= BOUND


def why_unbounded(entry: Coefficients) -> str:
    """Say which singular values are sent where."""
    sigma = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    outside = sigma[~(evaluate(entry.triples, sigma).abs() <= BOUND)]  # NaN is outside as well
    where = f" first at sigma = {outside[0].item():.3g}" if len(outside) else ""
    low, high = entry.certificate
    farthest = high if high >= -low else low
    reach = f"reaches {farthest:.3g}" if math.isfinite(farthest) else "overflows"
    return f"p_T {reach} on [0, 1]; beyond [-{BOUND:g}, {BOUND:g}]{where}"


def set_title(entry: Coefficients) -> str:
    """Format a set's shape, if it has one, and number of steps."""
    steps = f"{entry.steps} step{'s' if entry.steps > 1 else ''}"
    return f"{shape_text(entry.shape)}, {steps}" if entry.shape else steps


def shape_cell(entry: Coefficients) -> str:
    """Format a set's shape for a table."""
    return shape_text(entry.shape) if entry.shape else "any"


def _select(path: str, shapes: Sequence[Shape], steps: Sequence[int]) -> list[Coefficients]:
    sets = read_sets(path)
    chosen = [
        entry
        for entry in sets
        if (not shapes or entry.shape in (*shapes, None)) and (not steps or entry.steps in steps)
    ]
    if not chosen:
        found = "; ".join(map(set_title, sets[:8])) + ("; ..." if len(sets) > 8 else "")
        raise ValueError(f"`{path}` has none of the sets asked for; it has {found}")
    return chosen


def _parse_triples(text: str, steps: Sequence[int]) -> list[tuple[Triple, ...]]:
    """Parse "a,b,c a,b,c" or JSON into schedules; a single triple is repeated."""
    try:
        if "[" in text:
            values = json.loads(text)
            rows = values if isinstance(values[0], list) else [values]
        else:
            rows = [part.split(",") for part in re.sub(r",\s+", ",", text).split()]
        rows = [[float(number) for number in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a set is one of {', '.join(COEFFICIENT_NAMES)}, a .json file, or triples like "
            f"'3.4445,-4.775,2.0315', got {text!r}"
        ) from error
    if len(rows) == 1:
        return [as_schedule(rows[0], count) for count in steps or [5]]
    return [as_schedule(rows, count) for count in steps or [len(rows)]]


def _parse_set(row: Any) -> Coefficients:
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
