"""Panels of what `ROOTMonitor` and `ROOTRefit` log, for one run."""

import re
from collections.abc import Mapping
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from lightning_root.diagnostics.observation import target_rms
from lightning_root.diagnostics.report.coefficients import in_use, promised, shape_text
from lightning_root.diagnostics.report.describe import options_of
from lightning_root.diagnostics.report.panel import Line, Panel
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.report.typography import printed

MOST_SHAPES: Final = 3
"""More lines of what is promised to each shape would hide the curves."""


class Statistic(NamedTuple):
    """How a statistic is shown."""

    title: str
    unit: str
    about: str


_PLAIN: Final[Mapping[str, Statistic]] = {
    "orth_error": Statistic(
        "Orthogonalization error",
        "mean of (sigma - 1)^2",
        "Orthogonalization error: the mean of (sigma - 1)^2 over the singular values sigma of an "
        "update U, 0 if U is orthogonal.",
    ),
    "sigma": Statistic(
        "Singular values",
        "sigma of the updates",
        "The least and the greatest singular value of any update.",
    ),
    "captured": Statistic(
        "Error on captured momentum",
        "mean of (sigma - 1)^2",
        "Coefficients fitted in training: the mean of (sigma - 1)^2 that the coefficients in use "
        "give on the captured singular values of the run's momentum, by shape.",
    ),
    "outlier_energy": Statistic(
        "Outlier energy",
        "share of energy",
        "Outlier energy: the share ||N - B||^2 / ||N||^2 of the momentum N that the threshold "
        "takes away, B = clamp(N, -q, q).",
    ),
    "outlier_fraction": Statistic(
        "Outlier fraction",
        "share of entries",
        "Outlier fraction: the share of entries that the threshold changes.",
    ),
    "kurtosis": Statistic(
        "Kurtosis",
        "E[x^4] / E[x^2]^2",
        "Kurtosis of the momentum's entries about zero, E[x^4] / E[x^2]^2.",
    ),
    "relative_threshold": Statistic(
        "Relative threshold",
        "q / RMS(N)",
        "The threshold q in units of the momentum's root mean square; the heavier the tails, the "
        "lower.",
    ),
    "update_rms": Statistic(
        "Update size",
        "RMS of the update",
        "Root mean square of the scaled update's entries, the learning rate left out.",
    ),
    "update_to_weight": Statistic(
        "Update to weight",
        "lr ||update|| / ||W||",
        "What a step moves, relative to the weight W before it: lr ||scaled update|| / ||W||.",
    ),
    "cosine": Statistic(
        "Cosine",
        "cos(N, U)",
        "Cosine of momentum N and update U: sum(N * U) / (||N|| ||U||).",
    ),
    "momentum_rms": Statistic(
        "Momentum size",
        "RMS of the momentum",
        "Root mean square of the momentum's entries.",
    ),
}

STATISTICS: Final = {
    name: Statistic(*map(printed, statistic)) for name, statistic in _PLAIN.items()
}
"""By their names in the tags; `sigma` stands for `sigma_min` and `sigma_max`, `captured` for what
`ROOTRefit` logs."""

_OUTLIERS: Final = {
    "outlier_energy": ("mean", "max"),
    "outlier_fraction": ("mean",),
    "relative_threshold": ("mean",),
    "kurtosis": ("mean", "max"),
}

_OVER_MATRICES: Final = {"mean": "mean", "max": "largest", "min": "smallest"}


def orthogonalization(run: Run) -> list[Panel]:
    """How far updates are from orthogonal, beside what the coefficients promise."""
    known = promised(run)
    references, more = [], ""
    if 0 < len(known) <= MOST_SHAPES:
        references = [(value, f"expected, {shape_text(m)}") for m, value in known.items()]
        more = " Dotted: what the coefficients in use give on a model of momentum in training."
    return _of(run, "orth_error", ("mean", "max"), references, more) + _singular_values(run)


def _singular_values(run: Run) -> list[Panel]:
    tags = {"root/sigma_max/max": "greatest", "root/sigma_min/min": "least"}
    lines = [
        Line(label, run.scalars[tag], place)
        for place, (tag, label) in enumerate(tags.items())
        if tag in run.scalars
    ]
    if not lines:
        return []
    title, unit, about = STATISTICS["sigma"]
    high = max((entry.high for entry in in_use(run)), default=None)
    if high is None:
        return [Panel(title, lines, about, unit, zero=True)]
    about += " Dotted: the most that the coefficients make of any matrix."
    bound = [(high, "upper bound of the coefficients")]
    return [Panel(title, lines, about, unit, bound, zero=True)]


def outliers(run: Run) -> list[Panel]:
    """What the threshold took away, beside what it would take from Gaussian entries."""
    quantile = options_of(run.config.get("optimizer")).get("outlier_quantile")
    gaussian = _gaussian(quantile) if isinstance(quantile, float) else {}
    found = {}
    for name, reductions in _OUTLIERS.items():
        references = [(gaussian[name], "Gaussian entries")] if name in gaussian else []
        found[name] = _of(run, name, reductions, references)
    clipped = found["outlier_energy"] + found["outlier_fraction"]
    if clipped and not any(_moves(panel) for panel in clipped):  # the threshold is off
        return found["kurtosis"]
    return [panel for panels in found.values() for panel in panels]


def updates(run: Run) -> list[Panel]:
    """How far the parameters are moved, and whether that was along the momentum."""
    optimizer = options_of(run.config.get("optimizer"))
    target = target_rms({"adjust_lr_fn": "match_rms_adamw", **optimizer})
    references = [] if target is None else [(target, f"target {target:g}")]
    more = " Dotted: the size of AdamW's updates, which the scale aims at." if references else ""
    panels = _of(run, "update_rms", ("mean", "min", "max"), references, more)
    panels += _of(run, "update_to_weight", ("mean", "max"))
    panels += _of(run, "cosine", ("mean",))
    panels += _of(run, "momentum_rms", ("mean",))
    skipped = run.scalars.get("root/skipped")
    if skipped is not None and skipped.values.any():
        line = Line("", skipped)
        about = "Updates left out since the point before, because a gradient was not finite."
        panels.append(Panel("Skipped updates", [line], about, "updates", zero=True))
    return panels


def refits(run: Run) -> list[Panel]:
    """The error on captured momentum where `ROOTRefit` was at work."""
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
    title, unit, about = STATISTICS["captured"]
    return [Panel(title, lines, about, unit)]


def _of(
    run: Run,
    name: str,
    reductions: tuple[str, ...],
    references: list[tuple[float, str]] | None = None,
    more: str = "",
) -> list[Panel]:
    """One panel of a statistic, or none if the run did not log it."""
    lines = [
        Line(_OVER_MATRICES[kind], run.scalars[tag], 0, faint=kind != "mean")
        for kind in reductions
        if (tag := f"root/{name}/{kind}") in run.scalars
    ]
    if not lines:
        return []
    lines = [Line("", lines[0].series)] if len(lines) == 1 and not references else lines
    title, unit, about = STATISTICS[name]
    return [Panel(title, lines, about + more, unit, references or ())]


def _moves(panel: Panel) -> bool:
    """Whether there is anything but zeros: without a threshold there are no outliers."""
    return any(np.nan_to_num(line.series.values, nan=1.0).any() for line in panel.lines)


def _gaussian(quantile: float) -> dict[str, float]:
    """What outlier statistics are for Gaussian entries and this quantile of their magnitudes."""
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
