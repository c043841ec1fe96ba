"""Pictures of a sweep: each seed a dot, curves, the metric over an axis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.sweeps.curves import draw_curves, name_of
from examples.sweeps.plan import Labels, Plot, in_short
from examples.sweeps.results import Results, Row, as_number
from examples.sweeps.statistics import describe
from lightning_root.cli.output import plain_axes
from lightning_root.diagnostics.report.drawing import colour, dashes, draw_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 12
"""Combinations whose curves are drawn; more are a tangle."""


@dataclass(frozen=True)
class Dots:
    """Values of the metric at a place of a picture.

    Args:
        panel: Which panel.
        line: Which line of it.
        label: Along the bottom.
        values: Of the seeds.
    """

    panel: str
    line: str
    label: str
    values: Sequence[float]


def draw_all(results: Results, output: Path) -> list[Path]:
    """Draw what there is to draw: `results.png`, `curves.png`, `over_AXIS.png`, `tuning.png`.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    rows, sweep = results.rows, results.sweep
    drawn = [
        _write(output / "results.png", 1.2 + 0.3 * len(rows), lambda f: _draw_rows(f, results))
    ]
    if len(rows) <= MOST_CURVES:
        drawn.append(_write(output / "curves.png", 4.2, lambda f: draw_curves(f, results)))
    if sweep.plot is not None:
        over, plot = _dots_of_rows(rows, sweep.plot), sweep.plot
        path = output / f"over_{plot.over}.png"
        drawn.append(_write(path, 4.2, lambda f: draw_over(f, over, plot.over, sweep.metric)))
    if results.tuning:
        groups = [in_short(labels) for labels, _ in sweep.groups()]
        tuned = [
            Dots("", groups[place], label, values)
            for place, found in results.tuning.items()
            for label, values in found.items()
        ]
        axis = str(sweep.tune)
        drawn.append(
            _write(output / "tuning.png", 4.2, lambda f: draw_over(f, tuned, axis, sweep.metric))
        )
    return drawn


def draw_over(figure: Any, dots: Sequence[Dots], axis: str, metric: str) -> None:
    """The metric over numbers, a line for each of `Dots.line`, with a band of one deviation.

    A label that is no number is a level line.
    """
    panels = _panels(dots)
    lines = list(dict.fromkeys(entry.line for entry in dots))
    shown = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    ticks = _places(dots)
    for axes, panel in zip(shown, panels, strict=True):
        for place, line in enumerate(lines):
            found = [entry for entry in dots if (entry.panel, entry.line) == (panel, line)]
            _draw_line(axes, found, ticks, line, place)
        axes.set_xticks(list(ticks.values()), list(ticks), rotation=45 if len(ticks) > 8 else 0)
        axes.set(xlabel=axis, title=panel)
        plain_axes(axes)
    shown[0].set_ylabel(metric)
    if len(lines) > 1 or not ticks:
        figure.legend(*shown[0].get_legend_handles_labels(), loc="outside right upper")


def _panels(dots: Sequence[Dots]) -> list[str]:
    """Titles from left to right: by their numbers, if they have any."""
    found = dict.fromkeys(entry.panel for entry in dots)
    return sorted(found, key=lambda panel: as_number(panel.rpartition(" ")[2]) or 0.0)


def _places(dots: Sequence[Dots]) -> dict[str, float]:
    """Where each label that is a number stands, from left to right.

    By value if they are in equal steps or differ by no more than a factor of 4; else by logarithm,
    and zero a decade left of the least.
    """
    numbers = {entry.label: as_number(entry.label) for entry in dots}
    known = dict(
        sorted(((k, v) for k, v in numbers.items() if v is not None), key=lambda entry: entry[1])
    )
    positive = [value for value in known.values() if value > 0]
    least, greatest = min(positive, default=1.0), max(positive, default=1.0)
    steps = np.diff(list(known.values()))
    if np.allclose(steps, steps[:1]) or greatest <= 4 * least or min(known.values()) < 0:
        return known
    return {label: math.log10(value or least / 10) for label, value in known.items()}


def _draw_line(
    axes: "Axes", dots: Sequence[Dots], ticks: Mapping[str, float], line: str, place: int
) -> None:
    style: Any = {"color": colour(place), "linestyle": dashes(place)}
    on_axis = sorted(
        (entry for entry in dots if entry.label in ticks), key=lambda e: ticks[e.label]
    )
    if on_axis:
        x = np.array([ticks[entry.label] for entry in on_axis])
        samples = [describe(entry.values) for entry in on_axis]
        means = np.array([sample.mean for sample in samples])
        spread = np.array([sample.deviation or 0.0 for sample in samples])
        axes.plot(x, means, marker="o", markersize=4, linewidth=1.5, label=line or None, **style)
        axes.fill_between(x, means - spread, means + spread, color=style["color"], alpha=0.15)
        for at, entry in zip(x, on_axis, strict=True):
            axes.scatter(
                [at] * len(entry.values), entry.values, s=8, alpha=0.5, color=colour(place)
            )
    levels: dict[float, list[str]] = {}  # those of one height have one line and one text
    for entry in dots:
        if entry.label not in ticks:
            levels.setdefault(describe(entry.values).mean, []).append(entry.label)
    for mean, labels in levels.items():
        axes.axhline(mean, color=style["color"], linewidth=1.0, linestyle=":")
        axes.annotate(
            f"{line} {', '.join(labels)}".strip(),
            (1.0, mean),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(-2, 3),
            ha="right",
            fontsize=8,
            color=style["color"],
        )


def _dots_of_rows(rows: Sequence[Row], plot: Plot) -> list[Dots]:
    """Where each row stands; one at 0 that is tried in a single panel stands in all of them.

    Of nothing there is no size or kind.
    """

    def label(labels: Labels, axis: str | None) -> str:
        return "" if axis is None else labels[axis]

    found = [
        Dots(
            "" if plot.panels is None else f"{plot.panels} {row.labels[plot.panels]}",
            label(row.labels, plot.lines),
            row.labels[plot.over],
            list(row.values.values()),
        )
        for row in rows
    ]
    panels = list(dict.fromkeys(entry.panel for entry in found))
    for entry in list(found):
        alike = [e for e in found if (e.line, e.label) == (entry.line, entry.label)]
        if len(alike) == 1 and entry.label in ("0", "0.0", "none"):
            found += [
                Dots(p, entry.line, entry.label, entry.values) for p in panels if p != entry.panel
            ]
    return found


def _draw_rows(figure: Any, results: Results) -> None:
    """Each combination a line of dots, its mean a bar."""
    axes = figure.subplots()
    for place, row in enumerate(results.rows):
        values = list(row.values.values())
        axes.scatter(values, [place] * len(values), s=22, alpha=0.55, color=colour(0), linewidths=0)
        mean = row.sample.mean
        axes.plot([mean, mean], [place - 0.32, place + 0.32], color=colour(1), linewidth=2)
    names = [name_of(row, results.sweep.tune) for row in results.rows]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel=f"{results.sweep.metric} of each seed, and the mean")
    plain_axes(axes)


def _write(path: Path, height: float, draw: Any) -> Path:
    path.write_bytes(draw_png(height, draw))
    return path
