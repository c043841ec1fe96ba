"""The picture of `fit --plot` and `compare --plot`."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from lightning_root.cli.coefficients.sets import CoefficientComparison, evaluate
from lightning_root.cli.output import error_text, new_figure, plain_axes
from lightning_root.coefficients import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_STYLES: Final = {
    "Muon": ("#d55e00", "o"),
    "paper": ("#cc79a7", "s"),
    "published": ("#8c6d31", "v"),
    "You": ("#999999", "^"),
    "Polar Express": ("#56b4e9", "P"),
    "CANS": ("#009e73", "X"),
    "adaptive": ("#0072b2", "D"),
}
"""Colour and marker of each named set; colour-blind eyes can tell them apart."""

OTHER_STYLES: Final = (("#000000", "*"), ("#e69f00", "<"), ("#6a3d9a", ">"), ("#b15928", "h"))
"""Those of fitted sets and files, in turn."""

MIN_SIGMA: Final = 1e-4
"""Smallest singular value that is drawn."""

BINS: Final = 400
"""Four decades in steps of 1/100."""


def draw_comparisons(
    path: Path, comparisons: Sequence[CoefficientComparison], spectrum: str
) -> None:
    """Draw p_T of each set over log sigma on the left, the errors of all sets on the right.

    The curves are those of the first shape, with 5 steps if that was asked for.
    """
    first = [comparison for comparison in comparisons if comparison.shape == comparisons[0].shape]
    shown = next((comparison for comparison in first if comparison.steps == 5), first[-1])
    figure = new_figure(12.0, max(4.8, 1.8 + 0.28 * len(comparisons)))
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_spectrum(left, shown.spectrum)
    _draw_curves(left, shown)
    if len(comparisons) == 1:
        _draw_one(right, shown)
    elif len(first) == len(comparisons):
        _draw_over_steps(right, comparisons)
    else:
        _draw_rows(right, comparisons)
    text = f"Error, mean (p_T(sigma) - 1)^2, on {spectrum}"
    title = textwrap.fill(text, 62, break_on_hyphens=False)
    right.set_title(title, fontsize=9, loc="left")
    plain_axes(right)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, frameon=False)
    figure.savefig(path, dpi=150)


def style(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker by name, as matplotlib's `plot` takes them."""
    others = [name for name in names if name not in NAMED_STYLES]
    free = {name: OTHER_STYLES[place % len(OTHER_STYLES)] for place, name in enumerate(others)}
    chosen = {name: NAMED_STYLES.get(name) or free[name] for name in names}
    return {
        name: {
            "color": color,
            "linewidth": 1.2 if name in NAMED_STYLES and name != "adaptive" else 1.9,
            "marker": marker,
            "markersize": 13 if marker == "*" else 8,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }
        for name, (color, marker) in chosen.items()
    }


def _draw_spectrum(axes: "Axes", spectrum: Spectrum) -> None:
    """Shade the density over log sigma, smoothed over a tenth of a decade."""
    sigma = torch.logspace(-4, 0, 200, dtype=torch.float64)
    distance = sigma.log10()[:, None] - spectrum.sigma.clamp(min=1e-12).log10()
    density = (spectrum.weight * (-0.5 * (distance / 0.1) ** 2).exp()).sum(1)
    height = (0.45 * density / density.max()).tolist()
    axes.fill_between(sigma.tolist(), height, color="#dde3ea", label="singular values", zorder=0)


def _draw_curves(axes: "Axes", comparison: CoefficientComparison) -> None:
    """Draw p_T, a line for its local mean and a band for its local range.

    Towards 1 a composition oscillates faster than a picture can show.
    """
    sigma = torch.logspace(-4, 0, BINS * 100 + 1, dtype=torch.float64)[:-1]
    middle = sigma.view(BINS, -1).log().mean(1).exp().tolist()
    axes.axhline(1.0, color="black", linewidth=0.6, alpha=0.5)
    for name, look in style(list(comparison.sets)).items():
        entry = comparison.sets[name]
        if entry is not None:
            value = evaluate(entry.triples, sigma).clamp(-10, 10).view(BINS, -1)
            mean = avg_pool1d(value.mean(1)[None], 7, 1, 3, count_include_pad=False)[0].tolist()
            high = max_pool1d(value.amax(1)[None], 7, 1, 3)[0].tolist()
            low = (-max_pool1d(-value.amin(1)[None], 7, 1, 3))[0].tolist()
            line = {"color": look["color"], "linewidth": look["linewidth"]}
            line["linestyle"] = "--" if name == "published" else "-"  # often it is Muon's triple
            axes.fill_between(middle, low, high, color=look["color"], alpha=0.1, linewidth=0)
            axes.plot(middle, mean, label=name, **line)
    axes.set(xscale="log", xlim=(MIN_SIGMA, 1.0), ylim=(0.0, 1.4))
    axes.set(xlabel="sigma: singular value before", ylabel="p_T(sigma): singular value after")
    axes.set_title(f"{comparison.title} (line: local mean, band: range)", fontsize=9, loc="left")
    plain_axes(axes)


def _draw_one(axes: "Axes", comparison: CoefficientComparison) -> None:
    """Draw one comparison: a row for each set, with its error in figures."""
    errors = {name: error for name, error in comparison.errors.items() if _is_drawn(error)}
    looks = style(list(errors))
    for place, (name, error) in enumerate(errors.items()):
        axes.plot([error], [place], **looks[name])
        axes.annotate(
            error_text(error),
            (error, place),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(errors)), list(errors))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    _scale(axes, "x", errors.values())


def _draw_over_steps(axes: "Axes", comparisons: Sequence[CoefficientComparison]) -> None:
    """Draw one shape: a line for each set over T."""
    drawn = []
    for name, look in style(list(comparisons[0].sets)).items():
        points = [(c.steps, e) for c in comparisons if _is_drawn(e := c.errors[name])]
        axes.plot([steps for steps, _ in points], [error for _, error in points], **look)
        drawn += [error for _, error in points]
    axes.set_xticks(sorted({comparison.steps for comparison in comparisons}))
    axes.set(xlabel="T, number of steps", ylabel="error")
    _scale(axes, "y", drawn)


def _draw_rows(axes: "Axes", comparisons: Sequence[CoefficientComparison]) -> None:
    """Draw several shapes: a row for each comparison, a mark for each set."""
    drawn = []
    for name, look in style(list(comparisons[0].sets)).items():
        points = [(e, row) for row, c in enumerate(comparisons) if _is_drawn(e := c.errors[name])]
        axes.plot([error for error, _ in points], [row for _, row in points], linestyle="", **look)
        drawn += [error for error, _ in points]
    axes.set_yticks(range(len(comparisons)), [comparison.title for comparison in comparisons])
    axes.invert_yaxis()
    axes.set(xlabel="error")
    _scale(axes, "x", drawn)


def _is_drawn(error: float | None) -> TypeGuard[float]:
    """Return whether there is an error that does not squeeze all others together."""
    return error is not None and error < 10


def _scale(axes: "Axes", direction: Literal["x", "y"], values: Collection[float]) -> None:
    """Make an axis logarithmic, with numbers like 0.02, more of them below two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{direction}scale": "log"})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    narrow = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
