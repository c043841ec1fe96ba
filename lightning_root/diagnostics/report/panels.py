"""Panels and heat maps of what `ROOTMonitor` and `ROOTRefit` log, from the table of statistics."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_root.coefficients import COEFFICIENT_NAMES, lookup, training_model
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.shapes import Shape
from lightning_root.diagnostics.board import MAX_NAMES
from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.observation import target_rms
from lightning_root.diagnostics.report.curves import Series
from lightning_root.diagnostics.report.describe import number, options_of, typeset
from lightning_root.diagnostics.report.drawing import Line, Panel, log_numbers
from lightning_root.diagnostics.report.page import Picture, Table
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.statistics import (
    SKIPPED,
    STATISTICS,
    Reduction,
    Section,
    Statistic,
    heat_map_statistics,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SHAPES: Final = 3  # lines of what is expected of each shape; more would hide the curves
WORST_LAYERS: Final = 4  # layers that the table lists for each reason
_OF_THRESHOLD: Final = ("outlier_energy", "outlier_fraction", "relative_threshold")

_LINE_LABELS: Final[Mapping[Reduction, str]] = {"mean": "mean", "max": "largest", "min": "smallest"}

_COEFFICIENTS: Final = re.compile(
    r"(\d+) x (\d+): ((\d+) steps, (.+); p_T in \[(\S+), (\S+)\] on \[0, 1\])$"
)


class CoefficientsInUse(NamedTuple):
    """The coefficients of one shape, from some step on."""

    step: int
    shape: Shape
    steps: int
    source: str
    low: float
    high: float
    expected: float | None
    """Mean of (sigma - 1)^2 on the model of momentum in training, for sets that have a name."""


class References(NamedTuple):
    """Values to compare a statistic with, each with its label, and what the caption says."""

    lines: Sequence[tuple[float, str]]
    more: str = ""


class Maps(NamedTuple):
    """Values by statistic, layer and column of heat maps, NaN where there is none."""

    statistics: Sequence[Statistic]
    labels: Sequence[str]
    steps: Sequence[int]
    values: Tensor  # (statistics, labels, steps)


def coefficients_in_use(run: Run) -> list[CoefficientsInUse]:
    """Read what `ROOTMonitor` wrote, by shape, each from the step at which it was first seen."""
    found: dict[tuple[str, ...], CoefficientsInUse] = {}
    for step, text in run.texts.get("root/coefficients", ()):
        for line in text.splitlines():
            match = _COEFFICIENTS.match(line.strip())
            if match is not None and match.groups() not in found:
                m, n, description, steps, source, low, high = match.groups()
                shape = (int(m), int(n))
                expected = _expected_error(shape, int(steps), description)
                found[match.groups()] = CoefficientsInUse(
                    step, shape, int(steps), source, float(low), float(high), expected
                )
    return sorted(found.values(), key=lambda entry: (entry.shape, entry.step))


def shape_text(shape: Shape) -> str:
    """Return 192 x 768, with a cross."""
    return typeset(f"{shape[0]} x {shape[1]}")


@lru_cache(maxsize=256)
def _expected_error(shape: Shape, steps: int, description: str) -> float | None:
    """Return the error of the set of that description, if it is one that needs no fit."""
    for name in COEFFICIENT_NAMES:
        if not needs_fit(shape, name, steps):
            try:
                entry = lookup(shape, name, steps)
            except ValueError:  # unbounded in so many steps
                continue
            if str(entry) == description:
                return training_model(*shape).mean_square_error(entry.triples)
    return None


def orthogonalization(run: Run) -> list[Panel]:
    """Return panels of how far updates are from orthogonal, beside what is expected."""
    references = {}
    entries = coefficients_in_use(run)
    shapes = [entry.shape for entry in entries]
    expected = [
        (entry.expected, f"expected, {shape_text(entry.shape)}")
        for entry in entries
        if entry.expected is not None and shapes.count(entry.shape) == 1  # was never replaced
    ]
    if 0 < len(expected) <= MAX_SHAPES:
        more = " Dotted: what the coefficients in use give on a model of momentum in training."
        references["orth_error"] = References(expected, more)
    if entries:
        bound = (max(entry.high for entry in entries), "upper bound of the coefficients")
        more = " Dotted: the most that the coefficients make of any matrix."
        references["sigma_max"] = References([bound], more)
    return _section_panels(run, "orthogonalization", references)


def outliers(run: Run) -> list[Panel]:
    """Return panels of what the threshold took away, beside what it would of Gaussian entries."""
    quantile = options_of(run.config.get("optimizer")).get("outlier_quantile")
    gaussian = _gaussian(quantile) if isinstance(quantile, float) else {}
    references = {name: References([(v, "Gaussian entries")]) for name, v in gaussian.items()}
    tags = [STATISTICS[name].tag(kind) for name in _OF_THRESHOLD[:2] for kind in ("mean", "max")]
    clipped = [run.scalars[tag].values for tag in tags if tag in run.scalars]
    # Without a threshold there is nothing but zeros.
    is_off = bool(clipped) and not any(np.nan_to_num(v, nan=1.0).any() for v in clipped)
    return _section_panels(run, "outliers", references, _OF_THRESHOLD if is_off else ())


def updates(run: Run) -> list[Panel]:
    """Return panels of how far the parameters are moved, and whether along the momentum."""
    optimizer = options_of(run.config.get("optimizer"))
    target = target_rms({"adjust_lr_fn": "match_rms_adamw", **optimizer})
    references = {}
    if target is not None:
        more = " Dotted: the size of AdamW's updates, which the scale aims at."
        references["update_rms"] = References([(target, f"target {target:g}")], more)
    panels = _section_panels(run, "updates", references)
    skipped = run.scalars.get(SKIPPED)
    if skipped is not None and skipped.values.any():
        line = Line("", skipped)
        about = "Updates left out since the point before, because a gradient was not finite."
        panels.append(Panel("Skipped updates", [line], about, "updates", zero=True))
    return panels


def refits(run: Run) -> list[Panel]:
    """Return a panel of the error on captured momentum where `ROOTRefit` was at work."""
    found = {
        tag: re.fullmatch(r"root/coefficients/(\d+)x(\d+)/(error|error_before)", tag)
        for tag in run.scalars
    }
    shapes = sorted({(int(m[1]), int(m[2])) for m in found.values() if m})
    lines = []
    for place, (rows, columns) in enumerate(shapes):
        for kind, words in (("error", ""), ("error_before", ", before a fit")):
            series = run.scalars.get(f"root/coefficients/{rows}x{columns}/{kind}")
            if series is not None:
                label = f"{shape_text((rows, columns))}{words}"
                lines.append(Line(label, series, place, faint=bool(words)))
    if not lines:
        return []
    about = (
        "Coefficients fitted in training: the mean of (sigma - 1)^2 that the coefficients in use "
        "give on the captured singular values of the run's momentum, by shape."
    )
    unit = typeset("mean of (sigma - 1)^2")
    return [Panel("Error on captured momentum", lines, typeset(about), unit)]


def _section_panels(
    run: Run,
    section: Section,
    references: Mapping[str, References],
    without: Sequence[str] = (),
) -> list[Panel]:
    """Return one panel for each title in a section, of what the run logged."""
    titles: defaultdict[str, list[Statistic]] = defaultdict(list)
    for name, statistic in STATISTICS.items():
        if statistic.section == section and name not in without:
            titles[statistic.title].insert(0, statistic)
    panels = [_panel(run, s, references.get(s[0].name, References(()))) for s in titles.values()]
    return [panel for panel in panels if panel.lines]


def _panel(run: Run, statistics: Sequence[Statistic], references: References) -> Panel:
    """Return one panel of statistics of the same title, without lines if the run has none."""
    first, *others = statistics
    lines = [
        Line(
            statistic.line or _LINE_LABELS[kind],
            run.scalars[tag],
            place,
            faint=not others and kind != "mean",
        )
        for place, statistic in enumerate(statistics)
        for kind in statistic.reductions
        if (tag := statistic.tag(kind)) in run.scalars
    ]
    if len(lines) == 1 and not references.lines and not others:
        lines = [Line("", lines[0].series)]
    title, unit, about = map(typeset, (first.title, first.unit, first.about))
    about += references.more
    return Panel(title, lines, about, unit, references.lines, zero=first.from_zero)


def _gaussian(quantile: float) -> dict[str, float]:
    """Return outlier statistics of Gaussian entries and this quantile of their magnitudes."""
    normal = NormalDist()
    threshold = normal.inv_cdf((1.0 + quantile) / 2.0)
    tail = (1.0 - quantile) / 2.0
    energy = 2.0 * ((1.0 + threshold**2) * tail - threshold * normal.pdf(threshold))
    return {
        "outlier_energy": energy,
        "outlier_fraction": 1.0 - quantile,
        "relative_threshold": threshold,
        "kurtosis": 3.0,
    }


def _by_layer(run: Run, statistic: Statistic) -> dict[str, Series]:
    """Return curves of a statistic by parameter, in the order of the log."""
    prefix = statistic.tag("")
    return {
        tag.removeprefix(prefix): series
        for tag, series in run.scalars.items()
        if tag.startswith(prefix) and tag.removeprefix(prefix) not in get_args(Reduction)
    }


def heat_maps(run: Run) -> list[Picture]:
    """Return one picture of all statistics by layer, or none without curves of parameters."""
    curves = {s.name: found for s in heat_map_statistics() if (found := _by_layer(run, s))}
    if not curves:
        return []
    maps = _columns(curves)
    cut = any(".weight" in label for label in maps.labels)
    caption = (
        "By layer and step. "
        + " ".join(typeset(statistic.about) for statistic in maps.statistics)
        + (' Names without ".weight".' if cut else "")
        + (" Only some of the layers are named." if len(maps.labels) > MAX_NAMES else "")
    )
    height = 1.1 + 0.15 * max(10, min(len(maps.labels), MAX_NAMES))
    return [Picture("layers", caption, height, lambda figure: _draw(figure, maps), is_map=True)]


def worst_layers(run: Run) -> list[Table]:
    """Return a table of the layers with extreme last values, such as the highest error."""
    drawn = heat_map_statistics()
    last = {s.name: {x: y.last.value for x, y in _by_layer(run, s).items()} for s in drawn}
    extremes = [(s.largest, s.name, -1.0) for s in drawn if s.largest]
    extremes += [(s.smallest, s.name, 1.0) for s in drawn if s.smallest]
    reasons: dict[str, list[str]] = {}
    for reason, name, sign in sorted(extremes):
        # A NaN comes first: it is worse than any number.
        ranks = {
            x: (not np.isnan(v), 0.0 if np.isnan(v) else sign * v) for x, v in last[name].items()
        }
        for layer in sorted(ranks, key=ranks.__getitem__)[:WORST_LAYERS]:
            reasons.setdefault(layer, []).append(reason)
    if not reasons:
        return []
    shown = [statistic for statistic in drawn if last[statistic.name]]
    rows = [
        (layer, *(number(last[s.name].get(layer)) for s in shown), ", ".join(why))
        for layer, why in reasons.items()
    ]
    count = max(map(len, last.values()))
    caption = f"The layers to look at, of {count}: their last values, and why they are here."
    header = ("layer", *(typeset(statistic.title).lower() for statistic in shown), "why")
    return [Table(caption, header, rows)]


def _columns(curves: Mapping[str, Mapping[str, Series]]) -> Maps:
    """Return points of all layers, by statistic, in as few columns as `History` makes of them."""
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
    shown = [STATISTICS[name] for name in curves]
    return Maps(shown, labels, history.column_steps(), history.values())


def _draw(figure: "Figure", maps: Maps) -> None:
    row = figure.subplots(1, len(maps.statistics), squeeze=False)[0]
    for axes, statistic, values in zip(row, maps.statistics, maps.values, strict=True):
        _draw_map(figure, axes, statistic, maps.steps, values.double().numpy())
    every = -(-len(maps.labels) // MAX_NAMES)
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
    bar.set_label(typeset(statistic.unit))
    if log:
        log_numbers(bar.ax.xaxis, finite)
    axes.set(title=typeset(statistic.title), xlabel="step")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
