"""The results page of `examples.benchmarks.monitor_overhead`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.benchmarks.page import markdown_table, provenance

LIMIT = 0.02
"""Share of the time of a step that the monitor may take."""


def write_page(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write the Markdown page.

    Args:
        path: Of the page; the JSON file is expected beside it.
        numbers: What the JSON file holds.
    """
    about, run = numbers["about"], numbers["run"]
    parts = [
        "# What ROOTMonitor costs",
        "The quick start with `ROOTMonitor` at its defaults, a point every 10 steps, and without "
        "it.",
        provenance(about, f"Lightning {about['lightning']}."),
        f"**{verdict(numbers)}**",
        "## A step, with the monitor and without",
        f"{about['pairs']} pairs of blocks of {about['steps']} steps in one process: off, on, on, "
        "off, and so on; no validation. Each block on has one point, one in ten has histograms "
        "too. The last lines compare neighbouring blocks that are both off: what such a comparison "
        "finds where there is nothing to find.",
        _ratios(numbers["blocks"]),
        _totals(numbers["blocks"]),
        "CPU time is that of the whole process, so what TensorBoard writes in the background is "
        "in it. Time passed is also what other programs leave: the machine was not idle.",
        "## A whole run",
        f"{run['steps']} steps, {run['validations']} validations, checkpoints: "
        f"{run['cpu']:.1f} s of CPU time, {run['monitor']:.2f} s of them within the monitor, "
        f"{_percent(run['monitor'] / (run['cpu'] - run['monitor']))} of the rest.",
        _parts(run),
        "Heat maps are drawn after a validation once there are 16 points, then each time that "
        "their number has doubled, and at the end.",
    ]
    path.write_text("\n\n".join(parts) + "\n", "utf-8")


def verdict(numbers: Mapping[str, Any]) -> str:
    """In one sentence, what was found, and whether it is within the limit."""
    cpu, run = numbers["blocks"]["cpu"], numbers["run"]
    low, high = cpu["share_interval"]
    outcome = "within" if high <= LIMIT else "above" if low > LIMIT else "not decided against"
    return (
        f"With the monitor a step takes {_percent(cpu['share'])} more CPU time "
        f"(95 %: {_percent(low)} to {_percent(high)}; {outcome} the limit of {_percent(LIMIT)}); "
        f"by its own clock {_percent(run['per_step'])} of a run, and "
        f"{_percent(run['monitor'] / (run['cpu'] - run['monitor']))} with all heat maps."
    )


def _ratios(blocks: Mapping[str, Any]) -> str:
    rows = []
    for title, key in (("on to off", "with_and_without"), ("off to off", "without_and_without")):
        for clock, name in (("cpu", "CPU time"), ("wall", "time passed")):
            found = blocks[clock][key]
            quartiles, interval = found["quartiles"], found["median_interval"]
            rows.append(
                [
                    f"{title}, {name}",
                    str(found["pairs"]),
                    f"{found['median']:.4f}",
                    f"{interval[0]:.4f} to {interval[1]:.4f}",
                    f"{quartiles[0]:.4f} to {quartiles[1]:.4f}",
                ]
            )
    head = ["ratio of a pair", "pairs", "median", "95 % of the median", "quartiles"]
    return markdown_table(head, rows)


def _totals(blocks: Mapping[str, Any]) -> str:
    words = []
    for clock, name in (("cpu", "CPU time"), ("wall", "time passed")):
        low, high = blocks[clock]["share_interval"]
        words.append(
            f"{_percent(blocks[clock]['share'])} in {name} (95 %: {_percent(low)} to "
            f"{_percent(high)})"
        )
    return (
        "All blocks on to all blocks off, which counts the blocks with histograms at their true "
        f"share: {', '.join(words)}. Intervals by bootstrap over the pairs. A block "
        f"without the monitor takes {blocks['cpu']['block']:.2f} s of CPU time."
    )


def _parts(run: Mapping[str, Any]) -> str:
    rest = run["cpu"] - run["monitor"]
    rows = [[part, f"{value:.3f}", _percent(value / rest)] for part, value in run["parts"].items()]
    return markdown_table(["within the monitor", "CPU seconds", "of the run without it"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
