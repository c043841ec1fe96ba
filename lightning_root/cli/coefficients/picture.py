"""Comparisons of coefficients, and the picture of `fit --plot` and `compare --plot`."""

import math
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from lightning_root.cli.output import error_text, new_figure, plain_axes
from lightning_root.coefficients import Coefficients, Spectrum
from lightning_root.coefficients.certificate import compose
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.diagnostics.report.drawing import log_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_SETS: Final = tomllib.loads(Path(__file__).with_name("sets.toml").read_text("utf-8"))
# Colours and markers of fitted sets and files, in turn
OTHER_STYLES: Final = (("#000000", "*"), ("#e69f00", "<"), ("#6a3d9a", ">"), ("#b15928", "h"))

BINS: Final = 400  # of sigma, from 1e-4 to 1: four decades in steps of 1/100
MAX_ERROR: Final = 10.0  # greater ones would squeeze all others together

Styles = dict[str, dict[str, Any]]  # what `plot` takes, by the name of a set


@dataclass(frozen=True)
class Comparison:
    """Sets for one shape (m, n), m <= n, and T steps, by the name to show, on one spectrum."""

    shape: Shape
    steps: int
    spectrum: Spectrum
    sets: Mapping[str, Coefficients]

    @property
    def title(self) -> str:
        """Shape and number of steps."""
        return f"{shape_text(self.shape)}, T = {self.steps}"

    @cached_property
    def errors(self) -> dict[str, float]:
        """Mean (p_T(sigma) - 1)^2 of each set."""
        error = self.spectrum.mean_square_error
        return {name: error(entry.triples) for name, entry in self.sets.items()}


def draw_comparisons(
    path: Path, comparisons: Sequence[Comparison], names: Sequence[str], spectrum: str
) -> None:
    """Draw p_T of the first shape's sets, of 5 steps if there are, and the errors of all sets."""
    first = [comparison for comparison in comparisons if comparison.shape == comparisons[0].shape]
    shown = next((comparison for comparison in first if comparison.steps == 5), first[-1])
    figure, styles = new_figure(12.0, max(4.8, 1.8 + 0.28 * len(comparisons))), _styles(names)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_spectrum(left, shown.spectrum)
    _draw_curves(left, shown, styles)
    if len(comparisons) == 1:
        _draw_one(right, shown.errors)
    else:
        _draw_several(right, comparisons, styles, over_steps=len(first) == len(comparisons))
    text = f"Error, mean (p_T(sigma) - 1)^2, on {spectrum}"
    right.set_title(textwrap.fill(text, 62, break_on_hyphens=False), fontsize=9, loc="left")
    plain_axes(right)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=9, frameon=False)
    figure.savefig(path, dpi=150)


def _styles(names: Sequence[str]) -> Styles:
    """Return colour, marker and width of each set's marks."""
    others, styles = cycle(OTHER_STYLES), {}
    for name in names:
        named = NAMED_SETS.get(name)
        color, marker = (named["color"], named["marker"]) if named else next(others)
        styles[name] = {
            "color": color,
            "linewidth": 1.2 if name in NAMED_SETS and name != "adaptive" else 1.9,
            "marker": marker,
            "markersize": 13 if marker == "*" else 8,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }
    return styles


def _draw_spectrum(axes: "Axes", spectrum: Spectrum) -> None:
    """Shade the density over log sigma, smoothed over a tenth of a decade."""
    sigma = torch.logspace(-4, 0, 200, dtype=torch.float64)
    distance = sigma.log10()[:, None] - spectrum.sigma.clamp(min=1e-12).log10()
    density = (spectrum.weight * (-0.5 * (distance / 0.1) ** 2).exp()).sum(1)
    height = (0.45 * density / density.max()).tolist()
    axes.fill_between(sigma.tolist(), height, color="#dde3ea", label="singular values", zorder=0)


def _draw_curves(axes: "Axes", comparison: Comparison, styles: Styles) -> None:
    """Draw p_T, a line for its local mean and a band for the range: it oscillates towards 1."""
    sigma = torch.logspace(-4, 0, BINS * 100 + 1, dtype=torch.float64)[:-1]
    middle = sigma.view(BINS, -1).log().mean(1).exp().tolist()
    axes.axhline(1.0, color="black", linewidth=0.6, alpha=0.5)
    for name, entry in comparison.sets.items():
        value = compose(torch.tensor(entry.triples, dtype=torch.float64), sigma)
        value = value.clamp(-10, 10).view(BINS, -1)
        mean = avg_pool1d(value.mean(1)[None], 7, 1, 3, count_include_pad=False)[0].tolist()
        high = max_pool1d(value.amax(1)[None], 7, 1, 3)[0].tolist()
        low = (-max_pool1d(-value.amin(1)[None], 7, 1, 3))[0].tolist()
        color, width = styles[name]["color"], styles[name]["linewidth"]
        dashes = "--" if name == "published" else "-"  # often it is Muon's triple
        axes.fill_between(middle, low, high, color=color, alpha=0.1, linewidth=0)
        axes.plot(middle, mean, label=name, color=color, linewidth=width, linestyle=dashes)
    axes.set(xscale="log", xlim=(1e-4, 1.0), ylim=(0.0, 1.4))
    axes.set(xlabel="sigma: singular value before", ylabel="p_T(sigma): singular value after")
    axes.set_title(f"{comparison.title} (line: local mean, band: range)", fontsize=9, loc="left")
    plain_axes(axes)


def _draw_one(axes: "Axes", errors: Mapping[str, float]) -> None:
    """Draw one comparison: a row for each set, with its error in figures."""
    errors = {name: error for name, error in errors.items() if error < MAX_ERROR}
    for row, (name, style) in enumerate(_styles(list(errors)).items()):
        text, place, offset = error_text(errors[name]), (errors[name], row), (8, 0)
        axes.plot([errors[name]], [row], **style)
        axes.annotate(text, place, offset, textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(errors)), list(errors))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xscale="log")
    log_numbers(axes.xaxis, np.array(list(errors.values())))


def _draw_several(
    axes: "Axes", comparisons: Sequence[Comparison], styles: Styles, *, over_steps: bool
) -> None:
    """Draw one shape as a line for each set over T, several as a row for each comparison."""
    drawn = []
    for name, style in styles.items():
        errors = [comparison.errors.get(name, math.inf) for comparison in comparisons]
        rows = [row for row, error in enumerate(errors) if error < MAX_ERROR]
        errors = [errors[row] for row in rows]
        if over_steps:
            axes.plot([comparisons[row].steps for row in rows], errors, **style)
        else:
            axes.plot(errors, rows, linestyle="", **style)
        drawn += errors
    if over_steps:
        axes.set_xticks(sorted({comparison.steps for comparison in comparisons}))
        axes.set(xlabel="T, number of steps", ylabel="error", yscale="log")
    else:
        axes.set_yticks(range(len(comparisons)), [comparison.title for comparison in comparisons])
        axes.invert_yaxis()
        axes.set(xlabel="error", xscale="log")
    log_numbers(axes.yaxis if over_steps else axes.xaxis, np.array(drawn))
