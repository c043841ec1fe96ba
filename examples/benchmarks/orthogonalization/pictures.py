"""The three pictures of the results page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.benchmarks.orthogonalization.columns import TITLES
from examples.benchmarks.orthogonalization.measures import Row, Run
from lightning_root.coefficients import Spectrum, marchenko_pastur
from lightning_root.functional import Triple

STYLES: dict[str, dict[str, Any]] = {
    "muon": {"color": "#7f7f7f", "marker": "v"},
    "paper": {"color": "#56b4e9", "marker": "^"},
    "you": {"color": "#cc79a7", "marker": "D"},
    "polar_express": {"color": "#e69f00", "marker": "s"},
    "cans": {"color": "#8c564b", "marker": "P"},
    "default": {"color": "#0072b2", "marker": "o", "linewidth": 2.4, "zorder": 4},
    "fitted": {"color": "#009e73", "marker": "o", "linewidth": 2.4, "zorder": 4},
    "captured": {"color": "#d62728", "marker": "o", "linewidth": 2.4, "zorder": 5},
}
"""By column name; colours that remain distinct in the common forms of colour blindness."""

OTHERS = ("muon", "paper", "you", "polar_express", "cans")
OURS = ("default", "fitted", "captured")  # in the order of their ripples, smallest in front

FLOOR = 1e-6  # errors below it are drawn at it
LEAST = 1e-4  # smallest singular value that is drawn


def draw_pictures(path: Path, rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """Draw the pictures beside the page at `path`, named after it; two of them need 5 steps.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401  # no pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing needs matplotlib; install it with `pip install "lightning-root[plot]"`'
        ) from error
    curves, shapes, steps = (
        path.with_name(f"{path.stem}_{name}.png") for name in ("curves", "shapes", "steps")
    )
    for picture in (curves, shapes, steps):
        picture.unlink(missing_ok=True)
    if any(row.steps == 5 for row in rows):
        _draw_curves(curves, rows, runs)
        _draw_shapes(shapes, rows)
    _draw_steps(steps, rows)


def evaluate(triples: Sequence[Triple], sigma: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """p_T at every sigma, in float64."""
    for a, b, c in triples:
        sigma = sigma * (a + sigma**2 * (b + c * sigma**2))
    return sigma


def _draw_curves(path: Path, rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """p_T over log sigma: published schedules left, ours right, a row for each shape."""
    from matplotlib.figure import Figure

    source = runs[0].name if runs else "gaussian"
    chosen = [row for row in rows if row.steps == 5 and row.source == source][:2]
    figure = Figure(figsize=(13, 1.2 + 3.4 * len(chosen)), layout="constrained")
    panels = figure.subplots(len(chosen), 2, sharex=True, sharey=True, squeeze=False)
    grid = np.geomspace(LEAST, 1.0, 8000)
    for line, row in zip(panels, chosen, strict=True):
        for axes, names in zip(line, (OTHERS, OURS), strict=True):
            _shade(axes, marchenko_pastur(*row.shape, nodes=4000), "Gaussian matrix", "#009e73")
            if runs:
                late = runs[0].late[row.shape].double().flatten()
                momentum = Spectrum(late, torch.full_like(late, 1.0 / len(late)))
                _shade(axes, momentum, f"captured momentum ({source})", "#d62728")
            for name in names:
                if name in row.triples:
                    curve = evaluate(row.triples[name], grid)
                    color = STYLES[name]["color"]
                    axes.plot(grid, curve, color=color, linewidth=1.2, label=TITLES[name])
            axes.axhline(1.0, color="black", linewidth=0.6, linestyle=":")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set(xscale="log", xlim=(LEAST, 1.0), ylim=(0, 1.6))
        line[0].set_ylabel(f"{row.shape[0]} x {row.shape[1]}\n$p_5(\\sigma)$")
    for axes, title in zip(panels[0], ("published", "ours"), strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.legend(frameon=False, loc="upper left", ncols=3, fontsize=9)
    figure.supxlabel("singular value $\\sigma$ of the matrix over its Frobenius norm", fontsize=10)
    figure.savefig(path, dpi=110)


def _shade(axes: Any, spectrum: Spectrum, label: str, color: str) -> None:
    """Where the singular values are: a histogram of log sigma along the bottom."""
    edges = np.geomspace(LEAST, 1.0, 81)
    share, _ = np.histogram(spectrum.sigma, edges, weights=spectrum.weight)
    axes.stairs(0.4 * share / share.max(), edges, fill=True, color=color, alpha=0.22, label=label)


def _draw_shapes(path: Path, rows: Sequence[Row]) -> None:
    """The error at 5 steps on every kind of matrix."""
    from matplotlib.figure import Figure

    chosen = [row for row in rows if row.steps == 5]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    axes = figure.subplots()
    for place, (name, style) in enumerate(STYLES.items()):
        points = [
            (x + 0.09 * (place - len(STYLES) / 2), max(row.errors[name], FLOOR))
            for x, row in enumerate(chosen)
            if name in row.errors
        ]
        marks = {"color": style["color"], "marker": style["marker"], "s": 46, "zorder": 3}
        if points:
            axes.scatter(*zip(*points, strict=True), label=TITLES[name], **marks)
    for x, row in enumerate(chosen):
        if x % 2:
            axes.axvspan(x - 0.5, x + 0.5, color="black", alpha=0.04, linewidth=0)
        if x and row.source != chosen[x - 1].source:
            axes.axvline(x - 0.5, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("mean of $(\\sigma_{out} - 1)^2$")
    labels = [f"{row.source}\n{row.shape[0]}\nx {row.shape[1]}" for row in chosen]
    axes.set_xticks(range(len(chosen)), labels, fontsize=9)
    axes.set_xlim(-0.5, len(chosen) - 0.5)
    axes.set_title("error after 5 steps, held-out matrices", loc="left", fontsize=11)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=110)


def _draw_steps(path: Path, rows: Sequence[Row]) -> None:
    """The error over the number of steps, one panel for each kind of matrix."""
    from matplotlib.figure import Figure

    kinds = _telling(rows)
    figure = Figure(figsize=(12, 2 + 2.9 * ((len(kinds) + 2) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(kinds) // 3), min(3, len(kinds)), sharey=True, squeeze=False)
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, (source, shape) in zip(panels.flat, kinds, strict=False):
        chosen = [row for row in rows if (row.source, row.shape) == (source, shape)]
        for name, style in STYLES.items():
            points = [(r.steps, max(r.errors[name], FLOOR)) for r in chosen if name in r.errors]
            if points:
                axes.plot(*zip(*points, strict=True), markersize=5, **style)
        axes.set_title(f"{source} {shape[0]} x {shape[1]}", loc="left", fontsize=11)
        axes.set(yscale="log", ylim=(0.6 * FLOOR, 2), xticks=sorted({row.steps for row in rows}))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("mean of $(\\sigma_{out} - 1)^2$")
    figure.supxlabel("steps", fontsize=10)
    handles = [panels[0, 0].plot([], [], label=TITLES[n], **s)[0] for n, s in STYLES.items()]
    figure.legend(handles=handles, frameon=False, loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=90)


def _telling(rows: Sequence[Row]) -> list[tuple[str, tuple[int, int]]]:
    """At most three shapes of Gaussian matrices, and all captured ones."""
    kinds = list(dict.fromkeys((row.source, row.shape) for row in rows))
    gaussian = [kind for kind in kinds if kind[0] == "gaussian"]
    if len(gaussian) > 3:
        gaussian = [gaussian[0], gaussian[len(gaussian) // 2], gaussian[-2]]
    return [*gaussian, *(kind for kind in kinds if kind[0] != "gaussian")]
