"""Curves of a sweep: the metric while the runs train, and how far each is from the baseline."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.sweeps.plan import in_short
from examples.sweeps.results import Results, Row, baseline_of
from lightning_root.cli.output import plain_axes
from lightning_root.diagnostics.report.drawing import colour, dashes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_FROM = 0.2
"""Of the run: what comes before is steep, and would make the rest flat."""


def draw_curves(figure: Any, results: Results) -> None:
    """Mean and one deviation over the seeds; with a baseline also the mean of the differences.

    Args:
        figure: Empty.
        results: What to draw.
    """
    compared = [
        (place, row, other)
        for place, row in enumerate(results.rows)
        if (other := baseline_of(results.sweep, row, results.rows)) is not None
    ]
    shown = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
    own = [(place, row, _curves(row)) for place, row in enumerate(results.rows)]
    _draw(shown[0], own, results.sweep.tune)
    shown[0].set_ylabel(results.sweep.metric)
    if compared:
        minus = [(place, row, _differences(row, other)) for place, row, other in compared]
        _draw(shown[1], minus, results.sweep.tune)
        shown[1].axhline(0.0, color="black", linewidth=0.8)
        baseline = in_short(results.sweep.baseline)
        shown[1].set_ylabel(f"{results.sweep.metric} minus that of {baseline}")
    figure.legend(*shown[0].get_legend_handles_labels(), loc="outside right upper")


def name_of(row: Row, tune: str | None) -> str:
    """A combination in few words, with the value of the tuned axis."""
    return in_short({**row.labels, tune: row.tuned} if tune and row.tuned else row.labels)


def _curves(row: Row) -> dict[int, dict[int, float]]:
    """Value by step, by seed."""
    return {
        seed: dict(zip(entry["steps"], entry["values"], strict=True))
        for seed, entry in row.results.items()
    }


def _differences(row: Row, baseline: Row) -> dict[int, dict[int, float]]:
    """To the baseline's run of the same seed, at the steps that both have."""
    ours, theirs = _curves(row), _curves(baseline)
    return {
        seed: {s: ours[seed][s] - theirs[seed][s] for s in ours[seed] if s in theirs[seed]}
        for seed in ours
        if seed in theirs
    }


def _draw(
    axes: "Axes",
    curves: Sequence[tuple[int, Row, Mapping[int, Mapping[int, float]]]],
    tune: str | None,
) -> None:
    late: list[float] = []
    for place, row, by_seed in curves:
        steps = sorted(set.intersection(*map(set, by_seed.values()))) if by_seed else []
        if not steps:
            continue
        values = np.array([[curve[step] for step in steps] for curve in by_seed.values()])
        mean = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        style: Any = {"color": colour(place), "linestyle": dashes(place)}
        axes.plot(steps, mean, label=name_of(row, tune), **style)
        axes.fill_between(steps, mean - spread, mean + spread, color=style["color"], alpha=0.15)
        kept = np.array(steps) >= SHOWN_FROM * steps[-1]
        late += [*(mean - spread)[kept], *(mean + spread)[kept]]
    finite = [value for value in late if np.isfinite(value)]
    if finite and max(finite) > min(finite):
        margin = 0.04 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
    axes.set_xlabel("optimizer steps")
    plain_axes(axes)
