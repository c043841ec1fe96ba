"""The page of one run: its curves, and what `ROOTMonitor` and `ROOTRefit` logged."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
import torch

from lightning_root.coefficients import COEFFICIENT_NAMES, lookup, training_model
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.shapes import Shape
from lightning_root.diagnostics.board import MAX_NAMES
from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.observation import target_rms
from lightning_root.diagnostics.report import curves, drawing, page
from lightning_root.diagnostics.report.curves import Series
from lightning_root.diagnostics.report.drawing import Line, Panel, Picture
from lightning_root.diagnostics.report.run import Run, label_of, options_of, setup_of
from lightning_root.diagnostics.statistics import (
    SKIPPED,
    STATISTICS,
    Statistic,
    heat_map_statistics,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES: Final = 60  # of a table of parameters that is shown without being asked for
MAX_SHAPES: Final = 3  # lines of what is expected of each shape; more would hide the curves
WORST_LAYERS: Final = 4  # layers that the table lists for each reason
_OWN_TEXTS: Final = ("root/partition", "root/coefficients")
_OF_THRESHOLD: Final = ("outlier_energy", "outlier_fraction", "relative_threshold")
_LINE_LABELS: Final = {"mean": "mean", "max": "largest", "min": "smallest"}
_COEFFICIENTS: Final = re.compile(
    r"(\d+) x (\d+): ((\d+) steps, (.+); p_T in \[(\S+), (\S+)\] on \[0, 1\])$"
)

# Values to compare a statistic with, each with its label, and what the caption says of them
References: TypeAlias = tuple[Sequence[tuple[float, str]], str]
LayerSeries: TypeAlias = Mapping[Statistic, Mapping[str, Series]]  # by the names of layers


def report_of(run: Run, smooth: float | None = None) -> page.Page:
    r"""Return what the logs tell, as a page; `smooth`, in [0, 1), is for `Series.smoothed`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_root.diagnostics.report import read_run, report_of
        >>> with TemporaryDirectory() as folder:
        ...     csv = Path(folder, "metrics.csv")
        ...     _ = csv.write_text("step,train_loss,val_loss\n9,2.5,\n19,1.5,1.75\n")
        ...     page = report_of(read_run(Path(folder)))
        >>> [(card.label, card.value) for card in page.cards]
        [('Best val_loss', '1.7500'), ('Last train_loss', '1.5000'), ('Last step', '19')]
    """
    others = {tag: [Line("", run.scalars[tag])] for tag in curves.other_tags(run.scalars)}
    title = "Which parameter gets which rule, and why"
    partition = page.Verbatim(title, run.partition, run.partition.count("\n") < MAX_LINES)
    setup: list[page.Part] = [setup_of(run)] if setup_of(run) else []
    if run.config_text:
        setup.append(page.Verbatim("The whole configuration", run.config_text))
    sections: dict[str, Sequence[page.Part]] = {
        "Training": drawing.picture_of("training", _training(run, smooth)),
        "Orthogonalization": _orthogonalization(run),
        "Outliers": drawing.picture_of("outliers", outliers(run), common_legend=True),
        "Updates": drawing.picture_of("updates", updates(run)),
        "Layers": _layers(run),
        "Parameters": [partition] if run.partition else [],
        "Other curves": drawing.other_curves(others),
        "Texts in the log": [
            page.Verbatim(f"{tag}, step {page.whole(found[-1][0])}", found[-1][1])
            for tag, found in run.texts.items()
            if tag not in _OWN_TEXTS
        ],
        "Set-up": setup,
    }
    return page.Page(
        kind="Training run",
        title=label_of(run),
        subtitle=_subtitle(run),
        cards=_cards(run),
        sections=[page.Section(title, parts) for title, parts in sections.items() if parts],
        notes=run.notes,
    )


def _cards(run: Run) -> list[page.Card]:
    """Return the key numbers, as far as they are logged."""
    cards: list[tuple[str, str, str]] = []
    for tag in curves.losses(run.scalars, "validation")[:1]:
        best, last = run.scalars[tag].best(curves.mode_of(tag)), run.scalars[tag].last
        if best is not None:
            note = f"at step {page.whole(best.step)}"
            cards.append((f"Best {tag}", page.number(best.value), note))
        if best is None or best.step != last.step:
            cards.append((f"Last {tag}", page.number(last.value), ""))
    speeds = [tag for tag in run.scalars if curves.SPEED.search(tag)][:2]
    last_values = [(tag, tag, "last value") for tag in speeds]
    last_values += [(s.title, s.tag("mean"), "last mean") for s in STATISTICS.values() if s.card]
    for tag in curves.losses(run.scalars, "training")[:1]:
        cards.append((f"Last {tag}", page.number(run.scalars[tag].last.value), ""))
    cards.append(("Last step", page.whole(run.last_step), ""))
    if run.seconds is not None:
        cards.append(("Time", page.duration(run.seconds), "to the last point"))
    for title, tag, note in last_values:
        if tag in run.scalars:
            cards.append((title, page.number(run.scalars[tag].last.value), note))
    if SKIPPED in run.scalars:
        total = float(run.scalars[SKIPPED].values.sum())
        cards.append(("Skipped updates", page.number(total), "not finite"))
    return [page.Card(*card) for card in cards]


def _subtitle(run: Run) -> str:
    """Return where and when it ran."""
    if run.started is None:
        return run.name
    time = f"{run.started:%Y-%m-%d %H:%M}"
    if run.seconds is not None:
        ended = run.started + timedelta(seconds=run.seconds)
        same_day = ended.date() == run.started.date()
        time += f" to {ended:%H:%M}" if same_day else f" to {ended:%Y-%m-%d %H:%M}"
    return f"{run.name} · {time}"


def _training(run: Run, smooth: float | None) -> list[Panel]:
    """Return panels of the losses and the learning rates."""
    training, validation = (
        curves.losses(run.scalars, stage)[:1] for stage in ("training", "validation")
    )
    lines = [Line(tag, run.scalars[tag], 0, smooth) for tag in training]
    lines += [Line(tag, run.scalars[tag], 1) for tag in validation]
    panels = []
    if lines:
        about = "Loss of training and validation" if validation else "Loss of training"
        about += "; faint: as logged, before smoothing." if training and smooth != 0 else "."
        panels.append(Panel("Loss", lines, about, width=2.0))
    rates = curves.learning_rates(run.scalars)
    if rates:
        lines = [
            Line(tag if len(rates) > 1 else "", series, place)
            for place, (tag, series) in enumerate(rates.items())
        ]
        panels.append(Panel("Learning rate", lines, f"Learning rate of {'; '.join(rates)}."))
    return panels


class CoefficientsInUse(NamedTuple):
    """The coefficients of one shape, from some step on."""

    step: int
    shape: Shape
    steps: int
    source: str
    low: float
    high: float
    expected: float | None  # mean of (sigma - 1)^2 on the model of momentum in training, if named


def _coefficients_in_use(run: Run) -> list[CoefficientsInUse]:
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


def _shape_text(shape: Shape) -> str:
    """Return 192 x 768, with a cross."""
    return page.typeset(f"{shape[0]} x {shape[1]}")


def _orthogonalization(run: Run) -> list[page.Part]:
    """Return how far updates are from orthogonal, beside what is expected, and coefficients."""
    entries = _coefficients_in_use(run)
    references: dict[str, References] = {}
    shapes = [entry.shape for entry in entries]
    expected = [
        (entry.expected, f"expected, {_shape_text(entry.shape)}")
        for entry in entries
        if entry.expected is not None and shapes.count(entry.shape) == 1  # was never replaced
    ]
    if 0 < len(expected) <= MAX_SHAPES:
        more = " Dotted: what the coefficients in use give on a model of momentum in training."
        references["orth_error"] = (expected, more)
    if entries:
        bound = (max(entry.high for entry in entries), "upper bound of the coefficients")
        more = " Dotted: the most that the coefficients make of any matrix."
        references["sigma_max"] = ([bound], more)
    panels = _section_panels(run, "orthogonalization", references)
    return [
        *drawing.picture_of("orthogonalization", panels),
        *([_coefficient_table(entries)] if entries else []),
        *drawing.picture_of("refits", _refits(run), min_columns=2),
    ]


def _coefficient_table(entries: Sequence[CoefficientsInUse]) -> page.Table:
    caption = (
        "Coefficients in use: T steps of Newton-Schulz send a singular value sigma in [0, 1] to "
        "p_T(sigma)."
    )
    columns = {
        "matrices": [_shape_text(e.shape) for e in entries],
        "from step": [page.whole(e.step) for e in entries],
        "T": [str(e.steps) for e in entries],
        "source": [e.source for e in entries],
        "range of p_T": [f"{e.low:.3g} to {e.high:.3g}" for e in entries],
    }
    if any(entry.expected is not None for entry in entries):
        caption += " Expected: the mean of (p_T(sigma) - 1)^2 on a model of momentum in training."
        columns["expected error"] = [page.number(e.expected) for e in entries]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return page.Table(page.typeset(caption), list(columns), rows)


def _refits(run: Run) -> list[Panel]:
    """Return a panel of the error on captured momentum where `ROOTRefit` was at work."""
    pattern = re.compile(r"root/coefficients/(\d+)x(\d+)/error(_before)?")
    found = sorted(
        ((int(match[1]), int(match[2])), bool(match[3]), match[0])
        for match in map(pattern.fullmatch, run.scalars)
        if match
    )
    shapes = list(dict.fromkeys(shape for shape, *_ in found))
    lines = [
        Line(label, run.scalars[tag], shapes.index(shape), faint=before)
        for shape, before, tag in found
        for label in [f"{_shape_text(shape)}{', before a fit' if before else ''}"]
    ]
    about = (
        "Coefficients fitted in training: the mean of (sigma - 1)^2 that the coefficients in use "
        "give on the captured singular values of the run's momentum, by shape."
    )
    unit = page.typeset("mean of (sigma - 1)^2")
    return [Panel("Error on captured momentum", lines, page.typeset(about), unit)] if lines else []


def outliers(run: Run) -> list[Panel]:
    """Return panels of what the threshold took away, beside what it would of Gaussian entries."""
    quantile = options_of(run.config.get("optimizer")).get("outlier_quantile")
    gaussian = _gaussian(quantile) if isinstance(quantile, float) else {}
    references: dict[str, References] = {
        name: ([(value, "Gaussian entries")], "") for name, value in gaussian.items()
    }
    tags = [STATISTICS[name].tag(kind) for name in _OF_THRESHOLD[:2] for kind in ("mean", "max")]
    clipped = [run.scalars[tag].values for tag in tags if tag in run.scalars]
    # Without a threshold there is nothing but zeros.
    is_off = bool(clipped) and not any(np.nan_to_num(v, nan=1.0).any() for v in clipped)
    return _section_panels(run, "outliers", references, _OF_THRESHOLD if is_off else ())


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


def updates(run: Run) -> list[Panel]:
    """Return panels of how far the parameters are moved, and whether along the momentum."""
    optimizer = options_of(run.config.get("optimizer"))
    target = target_rms({"adjust_lr_fn": "match_rms_adamw", **optimizer})
    references: dict[str, References] = {}
    if target is not None:
        more = " Dotted: the size of AdamW's updates, which the scale aims at."
        references["update_rms"] = ([(target, f"target {target:g}")], more)
    panels = _section_panels(run, "updates", references)
    skipped = run.scalars.get(SKIPPED)
    if skipped is not None and skipped.values.any():
        about = "Updates left out since the point before, because a gradient was not finite."
        panels.append(Panel("Skipped updates", [Line("", skipped)], about, "updates", zero=True))
    return panels


def _section_panels(
    run: Run, section: str, references: Mapping[str, References], without: Sequence[str] = ()
) -> list[Panel]:
    """Return one panel for each title in a section, of what the run logged."""
    titles: defaultdict[str, list[Statistic]] = defaultdict(list)
    for name, statistic in STATISTICS.items():
        if statistic.section == section and name not in without:
            titles[statistic.title].insert(0, statistic)
    panels = []
    for first, *others in titles.values():
        lines = [
            Line(
                statistic.line or _LINE_LABELS[kind],
                run.scalars[tag],
                place,
                faint=not others and kind != "mean",
            )
            for place, statistic in enumerate([first, *others])
            for kind in statistic.reductions
            if (tag := statistic.tag(kind)) in run.scalars
        ]
        values, more = references.get(first.name, ([], ""))
        if len(lines) == 1 and not values and not others:
            lines = [Line("", lines[0].series)]
        if lines:
            title, unit, about = map(page.typeset, (first.title, first.unit, first.about))
            panels.append(Panel(title, lines, about + more, unit, values, zero=first.from_zero))
    return panels


def _layers(run: Run) -> list[page.Part]:
    """Return a picture of all statistics by layer, and the layers that are worst by any."""
    found = {}
    for statistic in heat_map_statistics():
        prefix, together = statistic.tag(""), [statistic.tag(kind) for kind in _LINE_LABELS]
        layers = {
            tag.removeprefix(prefix): series
            for tag, series in run.scalars.items()
            if tag.startswith(prefix) and tag not in together
        }
        if layers:
            found[statistic] = layers
    return [_heat_maps(found), *_worst_layers(found)] if found else []


def _worst_layers(series: LayerSeries) -> list[page.Table]:
    """Return a table of the layers with extreme last values, such as the highest error."""
    last = {s: {layer: found[layer].last.value for layer in found} for s, found in series.items()}
    extremes = [(s.largest, s, -1.0) for s in last if s.largest]
    extremes += [(s.smallest, s, 1.0) for s in last if s.smallest]
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for reason, statistic, sign in sorted(extremes, key=lambda extreme: extreme[0]):
        # A NaN comes first: it is worse than any number.
        ranks = {layer: (not np.isnan(v), sign * v) for layer, v in last[statistic].items()}
        for layer in sorted(ranks, key=ranks.__getitem__)[:WORST_LAYERS]:
            reasons[layer].append(reason)
    rows = [
        (layer, *(page.number(values.get(layer)) for values in last.values()), ", ".join(why))
        for layer, why in reasons.items()
    ]
    count = max(map(len, last.values()))
    caption = f"The layers to look at, of {count}: their last values, and why they are here."
    header = ("layer", *(page.typeset(statistic.title).lower() for statistic in last), "why")
    return [page.Table(caption, header, rows)] if rows else []


def _heat_maps(series: LayerSeries) -> Picture:
    """Return one picture of all statistics by layer and step."""
    history = _history(list(series.values()))
    labels = history.labels
    caption = (
        "By layer and step. "
        + " ".join(page.typeset(statistic.about) for statistic in series)
        + (' Names without ".weight".' if any(".weight" in label for label in labels) else "")
        + (" Only some of the layers are named." if len(labels) > MAX_NAMES else "")
    )
    places = range(0, len(labels), math.ceil(len(labels) / MAX_NAMES))

    def draw(figure: "Figure") -> None:
        row = figure.subplots(1, len(series), squeeze=False)[0]
        for axes, statistic, values in zip(row, series, history.values(), strict=True):
            drawing.draw_map(
                axes, history.column_steps(), values.double().numpy(), page.typeset(statistic.unit)
            )
            axes.set_title(page.typeset(statistic.title))
        names = [labels[place].replace(".weight", "") for place in places]
        row[0].set_yticks([place + 0.5 for place in places], names, fontsize=7)

    height = 1.1 + 0.15 * max(10, min(len(labels), MAX_NAMES))
    return Picture("layers", caption, height, draw, is_map=True)


def _history(statistics: Sequence[Mapping[str, Series]]) -> History:
    """Return points by statistic and layer, in as few columns as `History` makes of them."""
    every = [(row, *found) for row, layers in enumerate(statistics) for found in layers.items()]
    labels = list(dict.fromkeys(layer for _, layer, _ in every))
    steps = np.unique(np.concatenate([series.steps for _, _, series in every]))
    values = torch.full((len(statistics), len(labels), len(steps)), torch.nan)
    for row, layer, series in every:
        places = torch.from_numpy(np.searchsorted(steps, series.steps))
        values[row, labels.index(layer), places] = torch.from_numpy(series.values).float()
    history = History(len(statistics))
    for step, column in zip(steps.tolist(), values.unbind(dim=2), strict=True):
        history.add(step, dict(zip(labels, column.unbind(dim=1), strict=True)))
    return history
