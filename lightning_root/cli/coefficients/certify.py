"""`coefficients certify`: whether a set is safe, and why not."""

import argparse
import math
from typing import Any

from lightning_root.cli.coefficients.sets import find_sets, is_bounded, title, why_unbounded
from lightning_root.cli.coefficients.show import ABILITIES, LEGEND, abilities, print_sets
from lightning_root.cli.terminal import interval, text_table
from lightning_root.coefficients import Coefficients, output_range
from lightning_root.coefficients.shapes import shape_text
from lightning_root.functional import Triple


def certify(options: argparse.Namespace) -> int:
    """Print what each set does to [0, 1] and a little beyond; 1 if one is not bounded."""
    sets = find_sets(options.set, options.shapes, options.steps)
    failed = [entry for entry in sets if not is_bounded(entry)]
    if options.json:
        print_sets([_as_dict(entry) for entry in sets])
        return 1 if failed else 0
    header = ("shape", "T", ABILITIES[0], "on [0, 1.02]", *ABILITIES[1:], "verdict")
    rows = []
    for entry in sets:
        reach, *others = abilities(entry)
        beyond = interval(output_range(entry.triples, upper=1.02))
        verdict = "bounded" if is_bounded(entry) else "UNBOUNDED"
        name = shape_text(entry.shape) if entry.shape else "any"
        rows.append((name, str(entry.steps), reach, beyond, *others, verdict))
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
        print(f"  {title(entry)}: {why_unbounded(entry)}")
    return 1 if failed else 0


def fixed_points(triple: Triple) -> list[tuple[float, float]]:
    """Positive fixed points of sigma -> a sigma + b sigma^3 + c sigma^5, each with its slope."""
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
    words = [f"{x:.4g} ({'attracts' if abs(slope) < 1 else 'repels'})" for x, slope in points]
    if points and points[-1][1] > 1:  # p(sigma) > sigma from there on
        words.append("larger values grow without limit")
    return ", ".join(words) or "none but 0"


def _as_dict(entry: Coefficients) -> dict[str, Any]:
    bounded = is_bounded(entry)
    shared = len(set(entry.triples)) == 1
    return {
        **entry.as_dict(),
        "range_to_1.02": output_range(entry.triples, upper=1.02),
        "fixed_points": [x for x, _ in fixed_points(entry.triples[0])] if shared else None,
        "bounded": bounded,
        "reason": None if bounded else why_unbounded(entry),
    }
