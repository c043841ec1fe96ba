"""`coefficients show`: what a set is and what it can do."""

import argparse
from collections.abc import Sequence
from typing import Any, Final

from lightning_root.cli.coefficients.sets import find_sets, is_bounded, named, title
from lightning_root.cli.terminal import interval, print_json, small, text_table, wrapped
from lightning_root.coefficients import Coefficients, marchenko_pastur, training_model
from lightning_root.coefficients.record import FORMAT
from lightning_root.coefficients.shapes import shape_text
from lightning_root.coefficients.store import RATIOS, ROWS, grid_shape

ABILITIES: Final = ("p_T on [0, 1]", "stable up to", "bfloat16")
"""Columns that `abilities` fills."""

LEGEND: Final = (
    "stable up to: largest input that stays within [-2, 2]; bfloat16: rounding error, r.m.s."
)


def show(options: argparse.Namespace) -> int:
    """Print the sets asked for, or a summary of the shipped table."""
    if options.coefficients == "adaptive" and not options.shapes:
        return _show_shipped(options.steps or [5], as_json=options.json)
    sets = find_sets(options.coefficients, options.shapes, options.steps)
    if options.json:
        print_sets([_as_dict(entry) for entry in sets])
        return 0
    print(_table(sets))
    print(
        "\nGaussian: mean (p_T(sigma) - 1)^2 on Gaussian matrices; training: on a model of momentum"
    )
    print(LEGEND)
    for entry in sets:
        print(f"\n{_heading(entry)}\n{triples_text(entry)}")
    if not all(map(is_bounded, sets)):
        print("\nNot all of them are bounded; `coefficients certify` says why.")
    return 0


def print_sets(sets: Sequence[dict[str, Any]]) -> None:
    """Print sets as JSON, in the format of a coefficient file."""
    print_json({"format": FORMAT, "coefficients": sets})


def abilities(entry: Coefficients) -> tuple[str, str, str]:
    """Range, largest stable input and bfloat16 error of a set, for a table."""
    reach = interval(entry.certificate)
    return reach, f"{entry.stable_up_to:.4g}", small(entry.bfloat16_error)


def _heading(entry: Coefficients) -> str:
    """What a set is for, where it comes from, and how it does on what it was fitted to."""
    line = f"{title(entry)}: {entry.source}"
    if entry.mse is not None and entry.spectrum and entry.spectrum in entry.source:
        line += f"; error {small(entry.mse)} there"
    return wrapped(line)


def triples_text(entry: Coefficients) -> str:
    """One line of a, b, c per step."""
    if len(set(entry.triples)) == 1 and entry.steps > 1:
        return _line(entry.triples[0]) + "  in every step"
    return "\n".join(_line(triple) for triple in entry.triples)


def _line(triple: Sequence[float]) -> str:
    return "  " + "  ".join(f"{value:13.8f}" for value in triple)


def _table(sets: Sequence[Coefficients]) -> str:
    header = ("shape", "T", "Gaussian", "training", *ABILITIES)
    rows = []
    for entry in sets:
        errors = _errors(entry)
        name = shape_text(entry.shape) if entry.shape else "any"
        rows.append((name, str(entry.steps), *map(small, errors.values()), *abilities(entry)))
    return text_table(header, rows)


def _errors(entry: Coefficients) -> dict[str, float | None]:
    if entry.shape is None:
        return {"gaussian": None, "training": None}
    return {
        "gaussian": marchenko_pastur(*entry.shape).mean_square_error(entry.triples),
        "training": training_model(*entry.shape, entry.steps).mean_square_error(entry.triples),
    }


def _as_dict(entry: Coefficients) -> dict[str, Any]:
    return {**entry.as_dict(), "bounded": is_bounded(entry), "errors": _errors(entry)}


def _show_shipped(steps: Sequence[int], *, as_json: bool) -> int:
    """The grid behind "adaptive": the error of each of its schedules."""
    grid = [[grid_shape(rows, ratio) for ratio in RATIOS] for rows in ROWS]
    sets = {
        (shape, count): named("adaptive", shape, count)
        for count in steps
        for row in grid
        for shape in row
    }
    if as_json:
        print_sets([_as_dict(entry) for entry in sets.values()])
        return 0
    for count in steps:
        print(f"The shipped table, T = {count}: mean (p_T(sigma) - 1)^2 on the model of training\n")
        rows = []
        for row in grid:
            errors = [_errors(sets[shape, count])["training"] for shape in row]
            rows.append((str(row[0][0]), *map(small, errors)))
        print(text_table(("m", *(f"n = {ratio:g} m" for ratio in RATIOS)), rows))
        print(f"\n{_summary([sets[shape, count] for row in grid for shape in row])}\n")
    print("A shape takes the nearest of these; `coefficients show 768x3072` shows which.")
    return 0


def _summary(sets: Sequence[Coefficients]) -> str:
    low = min(entry.certificate[0] for entry in sets)
    high = max(entry.certificate[1] for entry in sets)
    stable = min(entry.stable_up_to for entry in sets)
    rounding = max(entry.bfloat16_error for entry in sets)
    return (
        f"All {len(sets)}: p_T in [{low:.3g}, {high:.3g}] on [0, 1], stable up to {stable:.3g}, "
        f"bfloat16 error at most {small(rounding)}"
    )
