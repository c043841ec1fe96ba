"""Pictures of curves and maps, drawn with matplotlib where it is installed."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_root.diagnostics.report.curves import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Of curves, in turn; told apart by colour-blind eyes (Okabe and Ito)
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
DASHES: Final = ("-", "--", ":", "-.")  # of curves beyond the colours
WIDTH: Final = 10.0  # inches, of every picture of a page
ROW_HEIGHTS: Final = {1: 3.4, 2: 3.3, 3: 2.7, 4: 2.4}  # inches, by the number of columns
MAX_COLUMNS: Final = 4  # panels beside each other
MAX_MARKERS: Final = 25  # curves of at most so many points show them
MAX_OTHERS: Final = 16  # curves without a place of their own that are drawn
# Positive values whose largest is so many times the smallest have a logarithmic axis
WIDE_RANGE: Final = 20.0
STYLE: Final = Path(__file__).with_name("templates") / "page.mplstyle"


class Line(NamedTuple):
    """One curve of a panel, thin if it is a bound of what another line shows."""

    label: str  # in the legend; "" for none
    series: Series
    place: int = 0  # which colour it has
    smooth: float | None = 0.0  # weight of the past, see `Series.smoothed`
    faint: bool = False


class Panel(NamedTuple):
    """A pair of axes."""

    title: str
    lines: Sequence[Line]  # at least one
    about: str = ""  # the definition, for the caption
    unit: str = ""
    references: Sequence[tuple[float, str]] = ()  # values to compare with, and their labels
    over: Literal["step", "minutes"] = "step"
    width: float = 1.0  # relative to other panels of the row
    zero: bool = False  # have the vertical axis begin at zero, and not be logarithmic


class Picture(NamedTuple):
    """A figure with its caption."""

    name: str  # of the PNG file, without its ending
    caption: str
    height: float  # in inches
    draw: Callable[["Figure"], None]
    is_map: bool = False  # its colours are values, which a dark page must leave as they are


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure, in inches, that belongs to no window; without matplotlib raise."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "drawing needs matplotlib; install it with `pip install 'lightning-root[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: "Axes") -> None:
    """Draw a light grid and no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def log_numbers(axis: "Axis", values: NDArray[np.float64]) -> None:
    """Write numbers like 0.02 on a logarithmic axis, more where it spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    narrow = values.max() < 100 * values.min()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def colour(place: int) -> str:
    """Return the colour of the curve at this place."""
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    """Return the line style of the curve at this place."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def draw_png(height: float, draw: Callable[["Figure"], None]) -> bytes:
    """Have a picture of a page drawn, and return the bytes of a PNG file."""
    figure = new_figure(WIDTH, height)
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(fname=STYLE):
        draw(figure)
        figure.savefig(file, format="png", pil_kwargs={"optimize": True})
    return file.getvalue()


def picture_of(
    name: str,
    panels: Sequence[Panel],
    intro: str = "",
    *,
    min_columns: int = 1,
    common_legend: bool = False,
) -> list[Picture]:
    """Return one picture of rows of panels, their definitions as its caption; none of no panels."""
    if not panels:
        return []
    rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = max(math.ceil(len(panels) / rows), min_columns)
    lettered = len(panels) > 1 and any(panel.about for panel in panels)
    letters = [f"({chr(ord('a') + place)}) " if lettered else "" for place in range(len(panels))]
    about = [f"{x}{panel.about}" for x, panel in zip(letters, panels, strict=True) if panel.about]

    def draw(figure: "Figure") -> None:
        ratios = [panel.width for panel in panels[:columns]] + [1.0] * (columns - len(panels))
        grid = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        named: dict[str, Any] = {}
        for axes, letter, panel in zip(grid, letters, panels, strict=False):
            _draw_panel(axes, panel)
            axes.set_title(letter + panel.title)
            handles, labels = axes.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
            if labels and not common_legend:
                axes.legend()
        if common_legend:
            figure.legend(named.values(), named, loc="outside lower center", ncols=4)

    height = rows * ROW_HEIGHTS[columns] + (0.3 if common_legend else 0.0)
    return [Picture(name, " ".join([intro, *about]).strip(), height, draw)]


def other_curves(
    curves: Mapping[str, Sequence[Line]], *, common_legend: bool = False
) -> list[Picture | str]:
    """Return a picture of curves that only their tags explain, and what was left out, in words."""
    panels = [Panel(tag, lines) for tag, lines in list(curves.items())[:MAX_OTHERS]]
    intro = "Other metrics, by their tags."
    pictures = picture_of("others", panels, intro, min_columns=3, common_legend=common_legend)
    left = list(curves)[MAX_OTHERS:]
    if not left:
        return [*pictures]
    named = ", ".join(left[:MAX_OTHERS]) + (", ..." if len(left) > MAX_OTHERS else "")
    return [*pictures, f"{len(left):,} more curves are left out: {named}."]


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line, panel.over)
    for place, (value, label) in enumerate(panel.references):
        pattern = (0, (1.5 + 2.0 * place, 2.0))
        axes.axhline(value, label=label, color="#666666", lw=1.0, ls=pattern, zorder=1.5)
    _scale(axes, panel)
    axes.set(ylabel=panel.unit, xlabel="step" if panel.over == "step" else "minutes of training")
    plain_axes(axes)


def _draw_line(axes: "Axes", line: Line, over: Literal["step", "minutes"]) -> None:
    series = line.series
    x: NDArray[Any] = series.steps if over == "step" else series.seconds / 60
    style: dict[str, Any] = {"color": colour(line.place), "linestyle": dashes(line.place)}
    style["zorder"] = 3 - 0.01 * line.place  # the first run lies on top of those like it
    if np.isfinite(series.values).sum() <= MAX_MARKERS:
        style |= {"marker": "o", "markersize": 1.8 if line.faint else 2.8}
    style |= {"linewidth": 0.9, "alpha": 0.7} if line.faint else {"linewidth": 1.5, "alpha": 1.0}
    smoothed = series.smoothed(line.smooth)
    if not np.array_equal(smoothed, series.values, equal_nan=True):
        axes.plot(x, series.values, color=style["color"], linewidth=0.7, alpha=0.3, zorder=1.8)
        style |= {"marker": ""}
    axes.plot(x, smoothed, label=line.label or None, **style)


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


def draw_map(
    axes: "Axes",
    steps: Sequence[int],
    values: NDArray[np.float64],  # (rows, steps)
    unit: str,
) -> None:
    """Draw values as colours, grey where there is none, with a colour bar below."""
    from matplotlib.colors import LogNorm

    middles = [(left + right) / 2 for left, right in pairwise(steps)]
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    edges = [steps[0] - half, *middles, steps[-1] + half]
    finite = values[np.isfinite(values)]
    log = len(finite) > 0 and 0 < 10 * finite.min() < finite.max()
    norm = LogNorm(finite.min(), finite.max()) if log else None
    masked, rows = np.ma.masked_invalid(values), np.arange(len(values) + 1)
    image = axes.pcolormesh(edges, rows, masked, cmap="viridis", norm=norm, rasterized=True)
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(unit)
    if log:
        log_numbers(bar.ax.xaxis, finite)
    axes.set(facecolor="#c8c8c8", xlabel="step", yticks=[])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
