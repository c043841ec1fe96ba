"""The coefficients that a run used, from the text that `ROOTMonitor` wrote."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from lightning_root.coefficients import COEFFICIENT_NAMES, lookup, training_model
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.shapes import Shape
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.report.typography import printed

TAG: Final = "root/coefficients"

_LINE: Final = re.compile(
    r"(\d+) x (\d+): ((\d+) steps, (.+); p_T in \[(\S+), (\S+)\] on \[0, 1\])$"
)


class InUse(NamedTuple):
    """The coefficients of one shape, from some step on."""

    step: int
    shape: Shape
    steps: int
    source: str
    low: float
    high: float
    expected: float | None
    """Mean of (sigma - 1)^2 on the model of momentum in training, for sets that have a name."""


def in_use(run: Run) -> list[InUse]:
    """What the run used, by shape, each from the step at which it was first seen; may be empty."""
    found: dict[tuple[str, ...], InUse] = {}
    for step, text in run.texts.get(TAG, ()):
        for line in text.splitlines():
            match = _LINE.match(line.strip())
            if match is not None:
                found.setdefault(match.groups(), _parsed(step, match))
    return sorted(found.values(), key=lambda entry: (entry.shape, entry.step))


def promised(run: Run) -> Mapping[Shape, float]:
    """The error that coefficients of a name give on the model of training, by shape.

    Of shapes whose coefficients were never replaced.
    """
    entries = in_use(run)
    shapes = [entry.shape for entry in entries]
    return {
        entry.shape: entry.expected
        for entry in entries
        if entry.expected is not None and shapes.count(entry.shape) == 1
    }


def shape_text(shape: Shape) -> str:
    """192 x 768, with a cross."""
    return printed(f"{shape[0]} x {shape[1]}")


def _parsed(step: int, match: re.Match[str]) -> InUse:
    m, n, description, steps, source, low, high = match.groups()
    shape = (int(m), int(n))
    expected = _expected(shape, int(steps), description)
    return InUse(step, shape, int(steps), source, float(low), float(high), expected)


@lru_cache(maxsize=256)
def _expected(shape: Shape, steps: int, description: str) -> float | None:
    """The error of the set of that description, if it is one that needs no fit."""
    for name in COEFFICIENT_NAMES:
        if not needs_fit(shape, name, steps):
            try:
                entry = lookup(shape, name, steps)
            except ValueError:  # unbounded in so many steps
                continue
            if str(entry) == description:
                return training_model(*shape).mean_square_error(entry.triples)
    return None
