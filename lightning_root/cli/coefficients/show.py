"""`coefficients show` and `certify`: what a set is, what it can do, and whether it is safe."""

import argparse
import math
from collections.abc import Sequence
from typing import Any, Final

from lightning_root.cli.coefficients.sets import (
    find_sets,
    is_bounded,
    set_by_name,
    set_title,
    shape_cell,
    why_unbounded,
)
from lightning_root.cli.output import error_text, print_json, range_text, text_table, wrapped
from lightning_root.coefficients import Coefficients, marchenko_pastur, output_range, training_model
from lightning_root.coefficients.record import FORMAT
from lightning_root.coefficients.store import RATIOS, ROWS, grid_shape
from lightning_root.functional import Triple

PROPERTIES: Final = ("p_T on [0, 1]", "stable up to", "bfloat16")
"""Columns that `property_cells` fills."""

LEGEND: Final = (
    "stable up to: largest input that stays within [-2, 2]; bfloat16: rounding error, r.m.s."
)


def show(options: argparse.Namespace) -> int:
    """Print the sets asked for, or a summary of the shipped table."""
    if options.coefficients == "adaptive" and not options.shapes:
        return _show_shipped(options.steps or [5], as_json=options.json)
    sets = find_sets(options.coefficients, options.shapes, options.steps)
    if options.json:
        print_sets([_shown_as_dict(entry) for entry in sets])
        return 0
    header = ("shape", "T", "Gaussian", "training", *PROPERTIES)
    rows = []
    for entry in sets:
        errors = map(error_text, _errors(entry).values())
        rows.append((shape_cell(entry), str(entry.steps), *errors, *property_cells(entry)))
    print(text_table(header, rows))
    print(
        "\nGaussian: mean (p_T(sigma) - 1)^2 on Gaussian matrices; training: on a model of momentum"
    )
    print(LEGEND)
    for entry in sets:
        print(f"\n{_heading(entry)}\n{triples_text(entry)}")
    if not all(map(is_bounded, sets)):
        print("\nNot all of them are bounded; `coefficients certify` says why.")
    return 0


def certify(options: argparse.Namespace) -> int:
    """Print what each set does to [0, 1] and a little beyond; return 1 if one is unbounded."""
    sets = find_sets(options.set, options.shapes, options.steps)
    failed = [entry for entry in sets if not is_bounded(entry)]
    if options.json:
        print_sets([_certified_as_dict(entry) for entry in sets])
        return 1 if failed else 0
    header = ("shape", "T", PROPERTIES[0], "on [0, 1.02]", *PROPERTIES[1:], "verdict")
    rows = []
    for entry in sets:
        reach, *others = property_cells(entry)
        beyond = range_text(output_range(entry.triples, upper=1.02))
        verdict = "bounded" if is_bounded(entry) else "UNBOUNDED"
        rows.append((shape_cell(entry), str(entry.steps), reach, beyond, *others, verdict))
    print(f"{text_table(header, rows)}\n")
    print(LEGEND)
    single = dict.fromkeys(entry.triples[0] for entry in sets if len(set(entry.triples)) == 1)
    if single:
        print("\nFixed points of triples that are used in every step")
    for triple in single:
        print(f"  {triple}: {_fixed_points_text(triple)}")
    if failed:
        print("\nUnbounded")
    for entry in failed:
        print(f"  {set_title(entry)}: {why_unbounded(entry)}")
    return 1 if failed else 0


def print_sets(sets: Sequence[dict[str, Any]]) -> None:
    """Print sets as JSON, in the format of a coefficient file."""
    print_json({"format": FORMAT, "coefficients": sets})


def property_cells(entry: Coefficients) -> tuple[str, str, str]:
    """Format range, largest stable input and bfloat16 error of a set for a table."""
    reach = range_text(entry.certificate)
    return reach, f"{entry.stable_up_to:.4g}", error_text(entry.bfloat16_error)


def triples_text(entry: Coefficients) -> str:
    """Format one line of a, b, c per step."""
    lines = ["  " + "  ".join(f"{value:13.8f}" for value in triple) for triple in entry.triples]
    if len(set(entry.triples)) == 1 and entry.steps > 1:
        return f"{lines[0]}  in every step"
    return "\n".join(lines)


def _heading(entry: Coefficients) -> str:
    """Say what a set is for, where it comes from, and its error on what it was fitted to."""
    line = f"{set_title(entry)}: {entry.source}"
    if entry.mse is not None and entry.spectrum and entry.spectrum in entry.source:
        line += f"; error {error_text(entry.mse)} there"
    return wrapped(line)


def _errors(entry: Coefficients) -> dict[str, float | None]:
    if entry.shape is None:
        return {"gaussian": None, "training": None}
    return {
        "gaussian": marchenko_pastur(*entry.shape).mean_square_error(entry.triples),
        "training": training_model(*entry.shape, entry.steps).mean_square_error(entry.triples),
    }


def _shown_as_dict(entry: Coefficients) -> dict[str, Any]:
    return {**entry.as_dict(), "bounded": is_bounded(entry), "errors": _errors(entry)}


def _show_shipped(steps: Sequence[int], *, as_json: bool) -> int:
    """Print the error of each schedule of the grid behind "adaptive"."""
    grid = [[grid_shape(rows, ratio) for ratio in RATIOS] for rows in ROWS]
    sets = {
        (shape, count): set_by_name("adaptive", shape, count)
        for count in steps
        for row in grid
        for shape in row
    }
    if as_json:
        print_sets([_shown_as_dict(entry) for entry in sets.values()])
        return 0
    for count in steps:
        print(f"The shipped table, T = {count}: mean (p_T(sigma) - 1)^2 on the model of training\n")
        rows = []
        for row in grid:
            errors = [_errors(sets[shape, count])["training"] for shape in row]
            rows.append((str(row[0][0]), *map(error_text, errors)))
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
        f"bfloat16 error at most {error_text(rounding)}"
    )


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


def _fixed_points_text(triple: Triple) -> str:
    points = fixed_points(triple)
    texts = [f"{x:.4g} ({'attracts' if abs(slope) < 1 else 'repels'})" for x, slope in points]
    if points and points[-1][1] > 1:  # p(sigma) > sigma from there on
        texts.append("larger values grow without limit")
    return ", ".join(texts) or "none but 0"


def _certified_as_dict(entry: Coefficients) -> dict[str, Any]:
    bounded = is_bounded(entry)
    shared = len(set(entry.triples)) == 1
    return {
        **entry.as_dict(),
        "range_to_1.02": output_range(entry.triples, upper=1.02),
        "fixed_points": [x for x, _ in fixed_points(entry.triples[0])] if shared else None,
        "bounded": bounded,
        "reason": None if bounded else why_unbounded(entry),
    }
