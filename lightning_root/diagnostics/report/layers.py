"""ROOT's statistics of each matrix: heat maps by layer and step, and the layers to look at."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.pictures import MOST_NAMES
from lightning_root.diagnostics.report.drawing import log_numbers
from lightning_root.diagnostics.report.numbers import number
from lightning_root.diagnostics.report.page import Picture, Table
from lightning_root.diagnostics.report.root_panels import STATISTICS, Statistic
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.report.series import Series
from lightning_root.diagnostics.scalars import AGGREGATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN: Final = ("orth_error", "outlier_energy", "update_rms", "update_to_weight")
"""Statistics by layer that are drawn, and listed in the table."""

WORST: Final = 4
"""Layers that the table lists for each reason."""

_REDUCTIONS: Final = {reduction for reductions in AGGREGATES.values() for reduction in reductions}

_LARGEST: Final = {"orth_error": "highest error", "outlier_energy": "most outliers"}
_SMALLEST: Final = {"update_to_weight": "slowest", "update_rms": "smallest update"}


class Maps(NamedTuple):
    """What heat maps show: values (statistics, layers, columns), NaN where there is none."""

    statistics: Sequence[str]
    labels: Sequence[str]
    steps: Sequence[int]
    values: Tensor


def by_layer(run: Run, statistic: str) -> dict[str, Series]:
    """Curves of a statistic by parameter, in the order of the log."""
    prefix = f"root/{statistic}/"
    return {
        tag.removeprefix(prefix): series
        for tag, series in run.scalars.items()
        if tag.startswith(prefix) and tag.removeprefix(prefix) not in _REDUCTIONS
    }


def heat_maps(run: Run) -> list[Picture]:
    """One picture of all statistics beside each other, or none without curves of parameters."""
    curves = {name: found for name in DRAWN if (found := by_layer(run, name))}
    if not curves:
        return []
    maps = _columns(curves)
    cut = any(".weight" in label for label in maps.labels)
    caption = (
        "By layer and step. "
        + " ".join(STATISTICS[name].about for name in curves)
        + (' Names without ".weight".' if cut else "")
        + (" Only some of the layers are named." if len(maps.labels) > MOST_NAMES else "")
    )
    height = 1.1 + 0.15 * max(10, min(len(maps.labels), MOST_NAMES))
    return [Picture("layers", caption, height, lambda figure: _draw(figure, maps), is_map=True)]


def worst_layers(run: Run) -> list[Table]:
    """The layers that lead in error, in outliers, or in slowness, by their last values."""
    curves = {name: by_layer(run, name) for name in DRAWN}
    last = {name: {x: s.last.value for x, s in found.items()} for name, found in curves.items()}
    reasons: dict[str, list[str]] = {}
    for name, reason in (_LARGEST | _SMALLEST).items():
        sign = -1.0 if name in _LARGEST else 1.0
        ranks = {layer: _rank(sign * value) for layer, value in last[name].items()}
        for layer in sorted(ranks, key=ranks.__getitem__)[:WORST]:
            reasons.setdefault(layer, []).append(reason)
    if not reasons:
        return []
    names = [name for name in DRAWN if last[name]]
    rows = [
        (layer, *(number(last[name].get(layer)) for name in names), ", ".join(why))
        for layer, why in reasons.items()
    ]
    count = max(map(len, last.values()))
    caption = f"The layers to look at, of {count}: their last values, and why they are here."
    header = ("layer", *(STATISTICS[name].title.lower() for name in names), "why")
    return [Table(caption, header, rows)]


def _rank(value: float) -> tuple[bool, float]:
    """What is not a number comes first: it is worse than any."""
    return (False, 0.0) if np.isnan(value) else (True, value)


def _columns(curves: Mapping[str, Mapping[str, Series]]) -> Maps:
    """Points of all layers side by side, as few columns as `History` makes of them.

    Args:
        curves: By statistic and layer.
    """
    labels = list(dict.fromkeys(layer for found in curves.values() for layer in found))
    every = [series.steps for found in curves.values() for series in found.values()]
    steps = np.unique(np.concatenate(every))
    values = torch.full((len(curves), len(labels), len(steps)), torch.nan)
    for row, found in enumerate(curves.values()):
        for layer, series in found.items():
            places = torch.from_numpy(np.searchsorted(steps, series.steps))
            values[row, labels.index(layer), places] = torch.from_numpy(series.values).float()
    history = History(len(curves))
    for step, column in zip(steps.tolist(), values.unbind(dim=2), strict=True):
        history.add(step, dict(zip(labels, column.unbind(dim=1), strict=True)))
    return Maps(list(curves), labels, history.column_steps(), history.values())


def _draw(figure: "Figure", maps: Maps) -> None:
    row = figure.subplots(1, len(maps.statistics), squeeze=False)[0]
    for axes, name, values in zip(row, maps.statistics, maps.values, strict=True):
        _draw_map(figure, axes, STATISTICS[name], maps.steps, values.double().numpy())
    every = -(-len(maps.labels) // MOST_NAMES)
    places = range(0, len(maps.labels), every)
    short = [maps.labels[place].replace(".weight", "") for place in places]
    row[0].set_yticks([place + 0.5 for place in places], short, fontsize=7)


def _draw_map(
    figure: "Figure",
    axes: "Axes",
    statistic: Statistic,
    steps: Sequence[int],
    values: NDArray[np.float64],
) -> None:
    from matplotlib.colors import LogNorm

    middles = [(left + right) / 2 for left, right in pairwise(steps)]
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    edges = [steps[0] - half, *middles, steps[-1] + half]
    masked = np.ma.masked_invalid(values)
    axes.set_facecolor("#c8c8c8")
    finite = values[np.isfinite(values)]
    log = len(finite) > 0 and 0 < 10 * finite.min() < finite.max()
    norm = LogNorm(finite.min(), finite.max()) if log else None
    rows = np.arange(len(values) + 1)
    image = axes.pcolormesh(edges, rows, masked, cmap="viridis", norm=norm, rasterized=True)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(statistic.unit)
    if log:
        log_numbers(bar.ax.xaxis, finite)
    axes.set(title=statistic.title, xlabel="step")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
