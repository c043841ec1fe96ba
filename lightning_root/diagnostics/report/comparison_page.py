"""The page of several runs side by side."""

import math
from typing import Final

from lightning_root.diagnostics.report.comparison import Comparison
from lightning_root.diagnostics.report.describe import differences
from lightning_root.diagnostics.report.drawing import colour
from lightning_root.diagnostics.report.numbers import duration, number, whole
from lightning_root.diagnostics.report.page import Page, Paragraph, Part, Section, Table, Verbatim
from lightning_root.diagnostics.report.panel import Line, Panel
from lightning_root.diagnostics.report.pictures import other_curves, picture_of
from lightning_root.diagnostics.report.root_panels import STATISTICS
from lightning_root.diagnostics.report.tags import losses, others, rates
from lightning_root.diagnostics.scalars import AGGREGATES

MOST_DIFFERENCES: Final = 40
"""Options in which the runs differ that are listed."""

LONGEST_TITLE: Final = 90
"""Characters up to which the labels of all runs are the title."""


def page_of(comparison: Comparison) -> Page:
    """Everything that can be compared, as a page.

    Args:
        comparison: From `comparison_of`.
    """
    sections = [
        Section(f"Results: {comparison.metric}", _results(comparison)),
        Section("Training", _training(comparison)),
        Section("Inside ROOT", _root(comparison)),
        Section("Other curves", _others(comparison)),
        Section("Set-up", _set_up(comparison)),
    ]
    title, count = " · ".join(comparison.labels), len(comparison.runs)
    return Page(
        kind=f"Comparison of {count} runs",
        title=title if len(title) <= LONGEST_TITLE else f"{comparison.metric} of {count} runs",
        subtitle=" · ".join(run.name for run in comparison.runs),
        cards=[],
        sections=[section for section in sections if section.parts],
        notes=[
            f"{label}: {note}"
            for label, run in zip(comparison.labels, comparison.runs, strict=True)
            for note in run.notes
        ],
    )


def result_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of how the runs did."""
    header = ["run", "last", "best", "at step", "steps to target", "speed-up"]
    if comparison.has_clock:
        header += ["time to target", "speed-up"]
    rows = []
    for standing in comparison.standings():
        best, reached = standing.best, standing.reached
        row = [
            standing.label,
            number(standing.last.value),
            number(best.value if best else None),
            whole(best.step if best else None),
            whole(reached.step if reached else None),
            _times(standing.speed_up),
            duration(reached.seconds if reached else None),
            _times(standing.speed_up_in_time),
        ]
        rows.append(row[: len(header)])
    return header, rows


def target_in_words(comparison: Comparison) -> str:
    """What `target` and `speed-up` mean, in a sentence."""
    measures = "fewer steps, or less time," if comparison.has_clock else "fewer steps"
    return (
        f"The target, {number(comparison.target)}, is the last {comparison.metric} of the worst "
        f"run; the speed-up is how many times {measures} a run needs to reach it."
    )


def _results(comparison: Comparison) -> list[Part]:
    metric = comparison.metric
    lines = _lines(comparison, metric)
    panels = [Panel("Over steps", lines, unit=metric)]
    if comparison.has_clock:
        panels.append(Panel("Over time", lines, unit=metric, over="minutes"))
    over = " and over the time since training began" if comparison.has_clock else ""
    header, rows = result_table(comparison)
    last = [series.last.value for series in comparison.curves]
    finite = [value for value in last if math.isfinite(value)]
    best = (min if comparison.mode == "min" else max)(finite, default=None)
    caption = f"{target_in_words(comparison)} Between points, curves are taken as straight lines."
    if comparison.has_clock:
        caption += " Times compare runs only if each had the machine to itself."
    table = Table(
        caption,
        header,
        rows,
        strong=frozenset((row, 1) for row, value in enumerate(last) if value == best),
        colours=[colour(place) for place in range(len(rows))],
    )
    intro = f"{metric} over optimizer steps{over}."
    return [table, *picture_of("metric", panels, intro, common_legend=True)]


def _training(comparison: Comparison) -> list[Part]:
    lines, rated = [], []
    for place, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        for tag in losses(run.scalars, "training")[:1]:
            lines.append(Line(label, run.scalars[tag], place, comparison.smooth))
        for series in list(rates(run.scalars).values())[:1]:
            rated.append(Line(label, series, place))
    panels = []
    if lines:
        faint = "; faint: as logged, before smoothing" if comparison.smooth != 0 else ""
        panels.append(Panel("Training loss", lines, f"Training loss{faint}.", width=2.0))
    if rated:
        about = "Learning rate, of the first parameter group."
        panels.append(Panel("Learning rate", rated, about))
    return picture_of("training", panels, common_legend=True)


def _root(comparison: Comparison) -> list[Part]:
    panels = []
    for statistic, reductions in AGGREGATES.items():
        lines = _lines(comparison, f"root/{statistic}/mean") if "mean" in reductions else []
        if lines and statistic in STATISTICS:
            title, unit, about = STATISTICS[statistic]
            panels.append(Panel(title, lines, about, unit))
    return picture_of(
        "root", panels, "Means over all matrices, of the runs that log them.", common_legend=True
    )


def _others(comparison: Comparison) -> list[Part]:
    """What at least two runs have."""
    tags = dict.fromkeys(tag for run in comparison.runs for tag in others(run.scalars))
    curves = {tag: _lines(comparison, tag) for tag in tags if tag != comparison.metric}
    shared = {tag: lines for tag, lines in curves.items() if len(lines) > 1}
    return other_curves(shared, common_legend=True)


def _set_up(comparison: Comparison) -> list[Part]:
    different = differences(comparison.runs)
    parts: list[Part] = []
    if different:
        rows = [[key, *values] for key, values in different.items()]
        caption = "Options in which the runs differ."
        parts.append(Table(caption, ["option", *comparison.labels], rows[:MOST_DIFFERENCES]))
    if len(different) > MOST_DIFFERENCES:
        left = ", ".join(list(different)[MOST_DIFFERENCES:])
        parts.append(Paragraph(f"Not listed, but different too: {left}."))
    return parts + [
        Verbatim(f"The whole configuration: {label}", run.config_text)
        for label, run in zip(comparison.labels, comparison.runs, strict=True)
        if run.config_text
    ]


def _lines(comparison: Comparison, tag: str) -> list[Line]:
    """A curve of every run that has it, in the run's colour."""
    return [
        Line(label, run.scalars[tag], place)
        for place, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True))
        if tag in run.scalars
    ]


def _times(ratio: float | None) -> str:
    """A speed-up, as "1.41x"."""
    return "-" if ratio is None else f"{ratio:.2f}x"
