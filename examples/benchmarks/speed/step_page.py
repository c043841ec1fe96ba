"""The results page of `examples.benchmarks.step`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.clock import Quartiles, quartiles
from examples.benchmarks.speed.optimizers import BASELINE, DEFAULT, OPTIMIZERS, PLAIN, TORCHS
from examples.benchmarks.speed.words import (
    CLOCKS,
    digits,
    how_timed,
    limits_table,
    mebibytes,
    milliseconds,
    percent,
    quick_warning,
    ratio,
)

NOTICEABLE = 1.05
"""Time passed over CPU time from which on other programs are mentioned."""


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    about, sets = numbers["about"], numbers["sets"]
    parts = [
        "# Time and memory of one step",
        f"One `optimizer.step()` for the hidden matrices of some models; {numbers['dtype']} "
        "parameters and gradients. Every optimizer has its own copies of the same parameters and "
        "is given the same gradients.",
        provenance(about, *_versions(numbers["versions"])),
        quick_warning(about),
        "## Two numbers first",
        "How many operations a step needs, and how many the machine does in a second.",
        limits_table(numbers["limits"]),
        _work(sets),
        "A multiply-add is two operations. Published: the standard form of Newton-Schulz, 5 steps. "
        "Cheapest: for every matrix the cheapest form that consists of matrix products (standard "
        "or in Gram space), symmetric products at half their cost. Floor: the cheapest operations "
        "at the best rate above, plus the bytes that every way of doing a step has to read and "
        "write (28 for an element in float32) at the bandwidth above. A way without matrix "
        "products alone, by an eigendecomposition for example, can in principle be faster.",
        "## How to read the tables",
        how_timed(about, numbers["clock"]),
        _columns(about, numbers["clock"]),
        _disturbance(sets, numbers["clock"]),
        "## ROOT's time as a share of Muon's",
        _shares(sets, numbers["clock"]),
        *(part for name, values in sets.items() for part in _set(name, values, numbers["clock"])),
        "## What the threshold costs",
        _threshold(sets),
        "## The optimizers",
        _optimizers(sets),
        _missing(sets),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _versions(versions: Mapping[str, str]) -> list[str]:
    """A sentence, if anything but torch is known."""
    listed = [f"{name} {number}" for name, number in sorted(versions.items()) if name != "torch"]
    return [f"With {', '.join(listed)}."] if listed else []


def _work(sets: Mapping[str, Any]) -> str:
    head = ["set", "matrices", "elements", "published", "cheapest", "floor", "largest stack"]
    body = [
        [
            name,
            str(values["matrices"]),
            f"{values['elements'] / 1e6:.3g} M",
            f"{digits(values['published'] / 1e9)} GFLOP",
            f"{digits(values['cheapest'] / 1e9)} GFLOP",
            f"{milliseconds(values['floor'])} ms",
            f"{mebibytes(values['largest_stack'])} MiB",
        ]
        for name, values in sets.items()
    ]
    listed = "\n".join(f"- `{name}`: {values['about']}" for name, values in sets.items())
    return f"{markdown_table(head, body)}\n\n{listed}"


def _columns(about: Mapping[str, Any], clock: str) -> str:
    counted = "counted at torch's allocator"
    if about["threads"] > 1 and not about["gpu"]:
        counted = "seen as growth of the process (a few MiB too low at times)"
    return (
        f"**Speed** is that of the fair baseline divided by this time, in {CLOCKS[clock]}: 2 is "
        "twice as fast. **Floor** is the share of the floor in the time; 100 % cannot be passed "
        "by matrix products. **Extra memory** is the most that a step needs beyond parameters, "
        f"gradients and state, {counted} apart from the timing, and as a multiple of the "
        "parameters; the largest stack above is what all matrices of the most frequent size take "
        "together. **First step** makes the state, and compiles where an optimizer does so."
    )


def _disturbance(sets: Mapping[str, Any], clock: str) -> str:
    """A sentence where CPU time is compared and other programs have taken much of the rest."""
    rows = [row for values in sets.values() for row in values["optimizers"].values()]
    used, passed = (sum(sum(row[key]) for row in rows) for key in ("cpu", "wall"))
    if clock != "cpu" or passed < NOTICEABLE * used:
        return ""
    return (
        "Other programs were running beside this one: time passed was "
        f"{percent(passed / used - 1.0)} more than the CPU time."
    )


def _shares(sets: Mapping[str, Any], clock: str) -> str:
    """ROOT's time over that of the baseline, of the plain loop and of torch's Muon."""
    compared = {
        BASELINE: "of the fair baseline",
        PLAIN: "of a plain loop",
        TORCHS: "of `torch.optim.Muon`",
    }
    measured = {name: values["optimizers"] for name, values in sets.items()}
    others = [name for name in compared if any(name in rows for rows in measured.values())]
    body = [
        [
            name,
            *(
                ratio(_share(rows[DEFAULT], rows[other], clock)) if other in rows else "-"
                for other in others
            ),
        ]
        for name, rows in measured.items()
        if DEFAULT in rows
    ]
    if not body:
        return "Not measured: it takes ROOT."
    words = f"In {CLOCKS[clock]}; below 1 ROOT is the faster one."
    words += " The plain loop is what most people write." if PLAIN in others else ""
    return words + "\n\n" + markdown_table(["set", *(compared[other] for other in others)], body)


def _share(row: Mapping[str, Any], other: Mapping[str, Any], clock: str) -> Quartiles:
    return quartiles([time / than for time, than in zip(row[clock], other[clock], strict=True)])


def _set(name: str, values: Mapping[str, Any], clock: str) -> list[str]:
    head = ["optimizer", "CPU ms", "wall ms", "speed", "floor", "extra MiB", "x parameters"]
    head.append("first step, s")
    if clock == "wall":
        head[1:3] = reversed(head[1:3])
    body = []
    for optimizer, row in values["optimizers"].items():
        medians = [milliseconds(float(np.median(row[key]))) for key in ("cpu", "wall")]
        floor = row["floor_share"]
        body.append(
            [
                OPTIMIZERS[optimizer].title,
                *(medians if clock == "cpu" else reversed(medians)),
                ratio(row["speed"]),
                "-" if floor is None else percent(floor),
                *_extra(row["peak"], values["bytes"]),
                digits(row["first"]),
            ]
        )
    about = values["about"][0].upper() + values["about"][1:] + "."
    return [f"## {name}", about, markdown_table(head, body)]


def _extra(peak: int | None, parameters: int) -> tuple[str, str]:
    """In MiB, and as a multiple of the parameters."""
    return ("-", "-") if peak is None else (mebibytes(peak), f"{peak / parameters:.2f}")


def _threshold(sets: Mapping[str, Any]) -> str:
    measured = {name: v["threshold_share"] for name, v in sets.items() if "threshold_share" in v}
    if not measured:
        return "Not measured: it takes ROOT with the threshold and without."
    body = [
        [name, percent(median), f"{percent(low)} to {percent(high)}"]
        for name, (low, median, high) in measured.items()
    ]
    return (
        "Share of ROOT's step that is saved by `outlier_quantile=None`: the quantile, and the pass "
        "that clips.\n\n" + markdown_table(["set", "share", "interquartile range"], body)
    )


def _optimizers(sets: Mapping[str, Any]) -> str:
    present = {name for values in sets.values() for name in values["optimizers"]}
    lines = ["| optimizer | `--optimizers` | what it does |", "|---|---|---|"]
    lines += [
        f"| {entry.title} | `{name}` | {entry.about} |"
        for name, entry in OPTIMIZERS.items()
        if name in present
    ]
    return "\n".join(lines)


def _missing(sets: Mapping[str, Any]) -> str:
    reasons = {
        (name, reason) for values in sets.values() for name, reason in values["missing"].items()
    }
    lines = [f"- {OPTIMIZERS[name].title}: {reason}" for name, reason in sorted(reasons)]
    return "\n".join(["Left out:", "", *lines]) if lines else ""
