"""The triples for a shape, by name, from a file, or as given."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from lightning_root.coefficients import published
from lightning_root.coefficients.fit import SLACK, fit_coefficients
from lightning_root.coefficients.record import Coefficients, certified, load_coefficients
from lightning_root.coefficients.shapes import Shape, check_shape, shape_text
from lightning_root.coefficients.spectra import training_model
from lightning_root.coefficients.store import FitKey, get_or_fit, in_table, shipped
from lightning_root.functional import Triple, as_schedule
from lightning_root.functional.orthogonalize import check_steps

# Schedules by shape, "768x3072" (smaller size first), and under "otherwise" the name of what all
# other shapes use.
ByShape: TypeAlias = Mapping[str, Any]
OTHERWISE: Final = "otherwise"


def lookup(
    shape: Sequence[int],
    coefficients: str | Sequence[float] | Sequence[Sequence[float]] | ByShape = "adaptive",
    steps: int = 5,
) -> Coefficients:
    """Return the coefficients for matrices of one shape.

    Args:
        shape: (m, n) in either order.
        coefficients: A name, a JSON file, one triple (a, b, c), one triple per step, or a mapping.

            * `"adaptive"`: a triple of its own for every step, from a table of shapes, each fitted
              to a model of the momentum's singular values in training (`training_model`). Shapes
              beyond the table are fitted once and cached on disk.
            * `"paper"`: one triple per shape, the paper's Table 1 or, for other shapes and numbers
              of steps, the same fit to Gaussian matrices, cached likewise.
            * `"published"`: the authors' script: four shapes, Muon's triple elsewhere.
            * `"muon"`, `"polar_express"`, `"cans"`, `"quintic"`: the published schedules of those
              names, Polar Express and CANS with room for round-off (see `with_margin`). Beyond
              their length the classical Newton-Schulz step is appended; Muon has one triple.
            * a path that ends in `.json`: a file that `python -m lightning_root coefficients fit`
              wrote; shapes that it does not hold get `"adaptive"`.
            * a mapping from "768x3072" (smaller size first) to one triple per step, with
              "otherwise" naming what all other shapes get.
        steps: T, at least 1. With one triple per step it must be their number.

    Returns:
        The triples, their source, their certificate and, where the shape decides, their error.

    Raises:
        ValueError: If the name is unknown, a file is not readable, `steps` does not fit, or the set
            is unbounded: its range over [0, 1] exceeds 2. The published 2048 x 2048 triple, which
            reaches 3.3 in 5 steps, is let through up to 5 steps.

    Example:
        >>> from lightning_root import lookup
        >>> print(lookup((768, 3072), "muon"))
        5 steps, Muon (K. Jordan et al., 2024); p_T in [0, 1.2] on [0, 1]
    """
    if isinstance(coefficients, str):
        if coefficients.endswith(".json"):
            return lookup(shape, schedules_from_file(coefficients, steps), steps)
        check_steps(steps)
        sizes = check_shape(shape)
        if needs_fit(sizes, coefficients, steps):
            key = FitKey(coefficients, sizes, steps)
            return get_or_fit(key, lambda: _fitted(key))
        return _listed(sizes, coefficients, steps)
    if isinstance(coefficients, Mapping):
        name = shape_text(check_shape(shape))
        entry = coefficients.get(name)
        if entry is None:
            return lookup(shape, coefficients.get(OTHERWISE, "adaptive"), steps)
        return _certified(as_schedule(entry, steps), f"set for {name}")
    return _certified(as_schedule(coefficients, steps), "given by the user")


def needs_fit(shape: Sequence[int], coefficients: object, steps: int) -> bool:
    """Return whether `lookup` fits, or reads the cache, for this shape: alike on every rank."""
    shape = check_shape(shape)
    if isinstance(coefficients, Mapping):
        given = shape_text(shape) in coefficients
        return not given and needs_fit(shape, coefficients.get(OTHERWISE, "adaptive"), steps)
    if coefficients == "adaptive":
        return not in_table(shape)
    return coefficients == "paper" and not (steps == 5 and shape in published.TABLE_1)


def schedules_from_file(path: str | Path, steps: int) -> dict[str, Any]:
    """Return the schedules of `steps` triples in a JSON file, by shape, or raise ValueError."""
    check_steps(steps)
    entries = [(entry.shape, entry) for entry in load_coefficients(path) if entry.shape]
    fitting = {shape_text(shape): e.triples for shape, e in entries if e.steps == steps}
    if not fitting:
        lengths = sorted({entry.steps for _, entry in entries})
        raise ValueError(f"`{path}` holds schedules of {lengths} steps for shapes, not of {steps}")
    return {OTHERWISE: "adaptive", **fitting}


_certified = lru_cache(maxsize=4096)(certified)


@lru_cache(maxsize=4096)
def _listed(shape: Shape, name: str, steps: int) -> Coefficients:
    """Return a set that needs no fit."""
    if name == "adaptive":
        triples, neighbour = shipped(shape, steps)
        return certified(triples, f"the shipped table, {shape_text(neighbour)}", shape=shape)
    if name == "paper":
        triples = (published.TABLE_1[shape],) * steps
        return certified(triples, "arXiv:2511.20626, Table 1", shape=shape)
    if name == "published":
        return _published(shape, steps)
    if name in published.PUBLISHED:
        known = published.PUBLISHED[name]
        triples = with_margin(known.triples, known.margin) if known.margin else known.triples
        return certified(_extended(triples, steps, known.then), known.source, shape=shape)
    names = list(published.COEFFICIENT_NAMES)
    raise ValueError(
        f"`coefficients` must be one of {names}, a JSON file, a triple (a, b, c) or one triple per "
        f"step, got {name!r}"
    )


def _fitted(key: FitKey) -> Coefficients:
    """Fit a triple per step to the model of training, or for "paper" one triple, as it does."""
    _, shape, steps = key
    if key.name == "adaptive":
        fitted = fit_coefficients(shape, min(steps, 8), training_model(*shape, steps))
        triples = _extended(fitted.triples, steps)
        return certified(triples, "fitted to the model of training", shape=shape)
    fitted = fit_coefficients(shape, min(steps, 12), per_step=False)
    source = "one triple, fitted to Gaussian matrices"
    return certified((fitted.triples[0],) * steps, source, shape=shape)


def _published(shape: Shape, steps: int) -> Coefficients:
    """Return the set of the authors' script."""
    known = published.AUTHORS_SCRIPT
    triples = (known.get(shape, published.MUON),) * steps
    if shape == (2048, 2048) and steps <= 5:
        source = "the authors' script, unstable beyond 5 steps"
        return certified(triples, source, shape=shape, trusted=True)
    source = "the authors' script" + ("" if shape in known else ": Muon's triple")
    return certified(triples, source, shape=shape)


def with_margin(schedule: Sequence[Triple], margin: float) -> tuple[Triple, ...]:
    """Divide the input of a schedule by `margin`, and by 1.004 before the steps between."""
    # As published, inputs past 1 and round-off in bfloat16 drive the steepest schedules beyond the
    # interval on which their polynomials are small: CANS turns a constant matrix into 1e11.
    last = len(schedule) - 1
    divisors = [margin if i == 0 else 1.0 if i == last else 1.0 + SLACK for i in range(last + 1)]
    return tuple(
        (a / d, b / d**3, c / d**5) for (a, b, c), d in zip(schedule, divisors, strict=True)
    )


def _extended(
    schedule: Sequence[Triple], steps: int, then: Triple = published.NEWTON_SCHULZ
) -> tuple[Triple, ...]:
    """Cut a schedule to `steps` triples, or continue it with one more step."""
    return (*schedule[:steps], *(then,) * (steps - len(schedule)))
