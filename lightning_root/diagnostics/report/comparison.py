"""Several runs measured by one metric: who is ahead, by how much, and the page that shows it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lightning_root.diagnostics.report.curves import (
    Mode,
    Point,
    Series,
    learning_rates,
    losses,
    mode_of,
    other_tags,
)
from lightning_root.diagnostics.report.describe import (
    differences,
    duration,
    labels_of,
    number,
    typeset,
    whole,
)
from lightning_root.diagnostics.report.drawing import Line, Panel, colour
from lightning_root.diagnostics.report.page import (
    Page,
    Paragraph,
    Part,
    Section,
    Table,
    Verbatim,
    other_curves,
    picture_of,
)
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.statistics import STATISTICS

MAX_DIFFERENCES: Final = 40  # options in which the runs differ that are listed
MAX_TITLE: Final = 90  # characters up to which the labels of all runs are the title


@dataclass(frozen=True)
class Standing:
    """How a run did in the metric that is compared; speed-ups are over the worst run."""

    label: str
    last: Point
    best: Point | None  # None if no value is finite
    reached: Point | None  # where it was first as good as the worst run at its end
    speed_up: float | None  # in steps
    speed_up_in_time: float | None


@dataclass(frozen=True)
class Comparison:
    """Several runs and the metric that they are compared in.

    Args:
        runs: At least two.
        labels: One for each run.
        metric: Tag of a curve that all of them have.
        mode: Whether less or more of it is better.
        steps_only: Leave out what depends on the clock.
        smooth: Weight of the past in the average drawn over training losses; None chooses it.
    """

    runs: Sequence[Run]
    labels: Sequence[str]
    metric: str
    mode: Mode
    steps_only: bool = False
    smooth: float | None = None

    @property
    def curves(self) -> list[Series]:
        """The metric of each run."""
        return [run.scalars[self.metric] for run in self.runs]

    @property
    def target(self) -> float:
        """The worst of the last values, those that are not finite left out."""
        last = [series.last.value for series in self.curves]
        finite = [value for value in last if math.isfinite(value)]
        if not finite:
            return math.nan
        return max(finite) if self.mode == "min" else min(finite)

    @property
    def has_clock(self) -> bool:
        """Whether times can be compared."""
        return not self.steps_only and all(run.seconds is not None for run in self.runs)

    def standings(self) -> list[Standing]:
        """How each run did, in their order."""
        reached = [series.reach(self.target, self.mode) for series in self.curves]
        # Where the run whose last value is the target reached it.
        last = [series.last.value for series in self.curves]
        worst = next((p for p, v in zip(reached, last, strict=True) if v == self.target), None)
        return [
            Standing(
                label,
                series.last,
                series.best(self.mode),
                point,
                _ratio(worst.step, point.step) if worst and point else None,
                _ratio(worst.seconds, point.seconds) if worst and point else None,
            )
            for label, series, point in zip(self.labels, self.curves, reached, strict=True)
        ]

    def lines(self, tag: str) -> list[Line]:
        """Curves of the runs that have the tag, in the colours of the runs."""
        return [
            Line(label, run.scalars[tag], place)
            for place, (label, run) in enumerate(zip(self.labels, self.runs, strict=True))
            if tag in run.scalars
        ]


def comparison_of(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    steps_only: bool = False,
    smooth: float | None = None,
) -> Comparison:
    """Give runs a metric to be compared in, and labels.

    Every run has a target to reach: the last value of the worst of them.

    Args:
        runs: At least two.
        labels: One for each run. Default: optimizer and learning rate, or the folder.
        metric: A tag. Default: the validation loss, or if there is none the training loss.
        mode: Default: by the words of the tag, such as accuracy; `min` if they do not tell.
        steps_only: Leave out what depends on the clock: times compare runs only if each had the
            machine to itself.
        smooth: Weight of the past in the average drawn over training losses, in [0, 1). Default:
            by the number of points.

    Raises:
        ValueError: If there are fewer than two runs, labels are not as many, or a run does not
            have the metric.
    """
    if len(runs) < 2:
        raise ValueError(f"`RUN_DIR` must name at least two runs, got {len(runs)}; see `report`")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(
            f"`--label` must give one label for each of the {len(runs)} runs, got {len(labels)}"
        )
    chosen = metric or _common_loss(runs)
    for run in runs:
        if chosen not in run.scalars:
            tags = sorted(tag for tag in run.scalars if not tag.startswith("root/"))
            raise ValueError(
                f"`--metric` must be a curve of every run, got {chosen!r}; '{run.folder}' has "
                f"{tags}"
            )
    named = labels_of(runs) if labels is None else labels
    return Comparison(runs, named, chosen, mode or mode_of(chosen), steps_only, smooth)


def _common_loss(runs: Sequence[Run]) -> str:
    """Return the main validation, else training, loss of all runs; raise ValueError without one."""
    shared = set.intersection(*(set(run.scalars) for run in runs))
    found = losses(shared, "validation") + losses(shared, "training")
    if not found:
        named = sorted(tag for tag in shared if not tag.startswith("root/"))
        raise ValueError(
            "`--metric` must name the curve to compare: the runs have no loss in common; curves of "
            f"all of them are {named}"
        )
    return found[0]


def _ratio(worst: float, value: float) -> float | None:
    """Return how many times less; None without a clock, or where both took no time."""
    if math.isnan(worst) or math.isnan(value) or value == worst == 0.0:
        return None
    return worst / value if value > 0.0 else math.inf


def page_of(comparison: Comparison) -> Page:
    """Everything that can be compared, as a page.

    Args:
        comparison: From `comparison_of`.
    """
    sections = [
        Section(f"Results: {comparison.metric}", _results(comparison)),
        Section("Training", _training(comparison)),
        Section("Inside ROOT", _root(comparison)),
        Section("Other curves", _others(comparison)),
        Section("Set-up", _set_up(comparison)),
    ]
    title, count = " · ".join(comparison.labels), len(comparison.runs)
    return Page(
        kind=f"Comparison of {count} runs",
        title=title if len(title) <= MAX_TITLE else f"{comparison.metric} of {count} runs",
        subtitle=" · ".join(run.name for run in comparison.runs),
        cards=[],
        sections=[section for section in sections if section.parts],
        notes=[
            f"{label}: {note}"
            for label, run in zip(comparison.labels, comparison.runs, strict=True)
            for note in run.notes
        ],
    )


def result_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of how the runs did."""
    header = ["run", "last", "best", "at step", "steps to target", "speed-up"]
    if comparison.has_clock:
        header += ["time to target", "speed-up"]
    rows = []
    for standing in comparison.standings():
        best, reached = standing.best, standing.reached
        row = [
            standing.label,
            number(standing.last.value),
            number(best.value if best else None),
            whole(best.step if best else None),
            whole(reached.step if reached else None),
            _times(standing.speed_up),
            duration(reached.seconds if reached else None),
            _times(standing.speed_up_in_time),
        ]
        rows.append(row[: len(header)])
    return header, rows


def explain_target(comparison: Comparison) -> str:
    """Return what `target` and `speed-up` mean, in a sentence."""
    measures = "fewer steps, or less time," if comparison.has_clock else "fewer steps"
    return (
        f"The target, {number(comparison.target)}, is the last {comparison.metric} of the worst "
        f"run; the speed-up is how many times {measures} a run needs to reach it."
    )


def _results(comparison: Comparison) -> list[Part]:
    metric = comparison.metric
    lines = comparison.lines(metric)
    panels = [Panel("Over steps", lines, unit=metric)]
    if comparison.has_clock:
        panels.append(Panel("Over time", lines, unit=metric, over="minutes"))
    over = " and over the time since training began" if comparison.has_clock else ""
    header, rows = result_table(comparison)
    last = [series.last.value for series in comparison.curves]
    finite = [value for value in last if math.isfinite(value)]
    best = (min if comparison.mode == "min" else max)(finite, default=None)
    caption = f"{explain_target(comparison)} Between points, curves are taken as straight lines."
    if comparison.has_clock:
        caption += " Times compare runs only if each had the machine to itself."
    table = Table(
        caption,
        header,
        rows,
        strong=frozenset((row, 1) for row, value in enumerate(last) if value == best),
        colours=[colour(place) for place in range(len(rows))],
    )
    intro = f"{metric} over optimizer steps{over}."
    return [table, *picture_of("metric", panels, intro, common_legend=True)]


def _training(comparison: Comparison) -> list[Part]:
    lines, rated = [], []
    for place, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        for tag in losses(run.scalars, "training")[:1]:
            lines.append(Line(label, run.scalars[tag], place, comparison.smooth))
        for series in list(learning_rates(run.scalars).values())[:1]:
            rated.append(Line(label, series, place))
    panels = []
    if lines:
        faint = "; faint: as logged, before smoothing" if comparison.smooth != 0 else ""
        panels.append(Panel("Training loss", lines, f"Training loss{faint}.", width=2.0))
    if rated:
        about = "Learning rate, of the first parameter group."
        panels.append(Panel("Learning rate", rated, about))
    return picture_of("training", panels, common_legend=True)


def _root(comparison: Comparison) -> list[Part]:
    panels = []
    for statistic in sorted(STATISTICS.values(), key=lambda statistic: statistic.compared):
        lines = comparison.lines(statistic.tag("mean"))
        if lines and statistic.title and "mean" in statistic.reductions:
            title, unit, about = map(typeset, (statistic.title, statistic.unit, statistic.about))
            panels.append(Panel(title, lines, about, unit))
    intro = "Means over all matrices, of the runs that log them."
    return picture_of("root", panels, intro, common_legend=True)


def _others(comparison: Comparison) -> list[Part]:
    """Return curves that at least two runs have."""
    tags = dict.fromkeys(tag for run in comparison.runs for tag in other_tags(run.scalars))
    curves = {tag: comparison.lines(tag) for tag in tags if tag != comparison.metric}
    shared = {tag: lines for tag, lines in curves.items() if len(lines) > 1}
    return other_curves(shared, common_legend=True)


def _set_up(comparison: Comparison) -> list[Part]:
    different = differences(comparison.runs)
    parts: list[Part] = []
    if different:
        rows = [[key, *values] for key, values in different.items()]
        caption = "Options in which the runs differ."
        parts.append(Table(caption, ["option", *comparison.labels], rows[:MAX_DIFFERENCES]))
    if len(different) > MAX_DIFFERENCES:
        left = ", ".join(list(different)[MAX_DIFFERENCES:])
        parts.append(Paragraph(f"Not listed, but different too: {left}."))
    return parts + [
        Verbatim(f"The whole configuration: {label}", run.config_text)
        for label, run in zip(comparison.labels, comparison.runs, strict=True)
        if run.config_text
    ]


def _times(ratio: float | None) -> str:
    """Return a speed-up, as "1.41x"."""
    return "-" if ratio is None else f"{ratio:.2f}x"
