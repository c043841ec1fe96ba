"""Panels: what stands on one pair of axes, and how panels are drawn beside each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_root.diagnostics.report.drawing import colour, dashes, log_numbers, plain_axes
from lightning_root.diagnostics.report.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS: Final = 25
"""Curves of at most so many points show them."""

WIDE_RANGE: Final = 20.0
"""Positive values whose largest is so many times the smallest have a logarithmic axis."""

COLUMNS: Final = 4
"""Most panels beside each other."""


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Args:
        label: In the legend; "" for none.
        series: The curve.
        place: Which colour it has.
        smooth: Weight of the past; None chooses it by the number of points, 0 draws it as it is.
        faint: Draw it thin: a bound of what another line shows.
    """

    label: str
    series: Series
    place: int = 0
    smooth: float | None = 0.0
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """A pair of axes.

    Args:
        title: What is shown.
        lines: At least one.
        about: The definition, for the caption; "" where the title says it all.
        unit: Label of the vertical axis.
        references: Values to compare with, each with its label.
        over: What the horizontal axis is.
        width: Relative to other panels of the row.
        zero: Have the vertical axis begin at zero, and not be logarithmic.
    """

    title: str
    lines: Sequence[Line]
    about: str = ""
    unit: str = ""
    references: Sequence[tuple[float, str]] = ()
    over: Literal["step", "minutes"] = "step"
    width: float = 1.0
    zero: bool = False


def height_of(panels: Sequence[Panel], least_columns: int = 1) -> float:
    """Inches that panels need, by the number of rows and columns."""
    rows, columns = _grid(len(panels), least_columns)
    return rows * {1: 3.4, 2: 3.3, 3: 2.7, 4: 2.4}[columns]


def draw_panels(
    figure: "Figure",
    panels: Sequence[Panel],
    *,
    least_columns: int = 1,
    common_legend: bool = False,
) -> None:
    """Draw panels in rows.

    Args:
        figure: An empty one.
        panels: At least one.
        least_columns: Places of a row, even if there are fewer panels.
        common_legend: All panels have the same labels; name them once, below.
    """
    rows, columns = _grid(len(panels), least_columns)
    ratios = [panel.width for panel in panels[:columns]] + [1.0] * (columns - len(panels))
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel)
        if not common_legend and len(axes.get_legend_handles_labels()[1]) > 0:
            axes.legend()
    if common_legend:
        named: dict[str, Any] = {}
        for axes in grid[: len(panels)]:
            handles, labels = axes.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named, loc="outside lower center", ncols=4)


def draw_panel(axes: "Axes", panel: Panel) -> None:
    """Draw the curves of a panel, and what they are to be compared with."""
    for line in panel.lines:
        _draw_line(axes, line, panel.over)
    for place, (value, label) in enumerate(panel.references):
        pattern = (0, (1.5 + 2.0 * place, 2.0))
        axes.axhline(value, label=label, color="#666666", lw=1.0, ls=pattern, zorder=1.5)
    _scale(axes, panel)
    xlabel = "step" if panel.over == "step" else "minutes of training"
    axes.set(title=panel.title, ylabel=panel.unit, xlabel=xlabel)
    plain_axes(axes)


def _grid(count: int, least_columns: int) -> tuple[int, int]:
    rows = math.ceil(count / COLUMNS)
    return rows, max(math.ceil(count / rows), least_columns)


def _draw_line(axes: "Axes", line: Line, over: Literal["step", "minutes"]) -> None:
    series = line.series
    x: NDArray[Any] = series.steps if over == "step" else series.seconds / 60
    style: dict[str, Any] = {"color": colour(line.place), "linestyle": dashes(line.place)}
    style["zorder"] = 3 - 0.01 * line.place  # the first run lies on top of those like it
    if np.isfinite(series.values).sum() <= FEW_POINTS:
        style |= {"marker": "o", "markersize": 1.8 if line.faint else 2.8}
    width = 0.9 if line.faint else 1.5
    smoothed = series.smoothed(line.smooth)
    if not np.array_equal(smoothed, series.values, equal_nan=True):
        axes.plot(x, series.values, color=style["color"], linewidth=0.7, alpha=0.3, zorder=1.8)
        style |= {"marker": ""}
    alpha = 0.7 if line.faint else 1.0
    axes.plot(x, smoothed, label=line.label or None, linewidth=width, alpha=alpha, **style)


def _scale(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = np.concatenate([line.series.values for line in panel.lines])
    values = np.append(values, [value for value, _ in panel.references])
    finite = values[np.isfinite(values)]
    if panel.zero:
        axes.set_ylim(bottom=0.0)
    elif len(finite) and np.ptp(finite) <= 1e-3 * abs(finite[0]) > 0:  # a constant, and rounding
        axes.set_ylim(*sorted((0.5 * finite[0], 1.5 * finite[0])))
    elif len(finite) and finite.min() > 0 and finite.max() > WIDE_RANGE * finite.min():
        axes.set_yscale("log")
        log_numbers(axes.yaxis, finite)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if panel.over == "step" and max(line.series.last.step for line in panel.lines) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
