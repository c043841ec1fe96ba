"""Several runs measured by one metric: who is ahead, by how much, and the page that shows it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from lightning_root.diagnostics.report import curves, page
from lightning_root.diagnostics.report.curves import Mode, Point, Series
from lightning_root.diagnostics.report.drawing import Line, Panel, colour, other_curves, picture_of
from lightning_root.diagnostics.report.run import Run, differences, labels_of
from lightning_root.diagnostics.statistics import STATISTICS

MAX_DIFFERENCES: Final = 40  # options in which the runs differ that are listed
MAX_TITLE: Final = 90  # characters up to which the labels of all runs are the title


class Standing(NamedTuple):
    """Result of a run in the metric that is compared; speed-ups are over the worst run."""

    label: str
    last: Point
    best: Point | None  # None if no value is finite
    reached: Point | None  # where it was first as good as the worst run at its end
    speed_up: float | None  # in steps
    speed_up_in_time: float | None


@dataclass(frozen=True)
class Comparison:
    """Several runs and the metric that they are compared in; from `comparison_of`."""

    runs: Sequence[Run]  # at least two
    labels: Sequence[str]  # one for each run
    metric: str  # tag of a curve that all of them have
    mode: Mode  # whether less or more of it is better
    steps_only: bool = False  # leave out what depends on the clock
    smooth: float | None = None  # weight of the past in averages of training losses

    @property
    def curves(self) -> list[Series]:
        """The metric of each run."""
        return [run.scalars[self.metric] for run in self.runs]

    @property
    def target(self) -> float:
        """The worst of the last values, those that are not finite left out."""
        last = [series.last.value for series in self.curves]
        worst = max if self.mode == "min" else min
        return worst(filter(math.isfinite, last), default=math.nan)

    @property
    def has_clock(self) -> bool:
        """Whether times can be compared."""
        return not self.steps_only and all(run.seconds is not None for run in self.runs)

    def standings(self) -> list[Standing]:
        """Results of each run, in their order."""
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
    runs: Sequence[Run],  # at least two
    *,
    labels: Sequence[str] | None = None,  # default: optimizer and learning rate, or the folder
    metric: str | None = None,  # a tag; default: the validation loss, else the training loss
    mode: Mode | None = None,  # default: by the words of the tag; `min` if they do not tell
    steps_only: bool = False,  # times compare runs only if each had the machine to itself
    smooth: float | None = None,  # of training losses, in [0, 1); default: by the number of points
) -> Comparison:
    """Give runs a metric to be compared in, and labels; their target is the worst last value.

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
            raise ValueError(
                f"`--metric` must be a curve of every run, got {chosen!r}; '{run.folder}' has "
                f"{_listed(run.scalars)}"
            )
    named = labels_of(runs) if labels is None else labels
    return Comparison(runs, named, chosen, mode or curves.mode_of(chosen), steps_only, smooth)


def _common_loss(runs: Sequence[Run]) -> str:
    """Return the main validation, else training, loss of all runs; raise ValueError without one."""
    shared = set.intersection(*(set(run.scalars) for run in runs))
    found = curves.losses(shared, "validation") + curves.losses(shared, "training")
    if not found:
        raise ValueError(
            "`--metric` must name the curve to compare: the runs have no loss in common; curves of "
            f"all of them are {_listed(shared)}"
        )
    return found[0]


def _listed(tags: Iterable[str]) -> list[str]:
    """Return tags to choose from, ROOT's left out."""
    return sorted(tag for tag in tags if not tag.startswith("root/"))


def _ratio(worst: float, value: float) -> float | None:
    """Return how many times less; None without a clock, or where both took no time."""
    if math.isnan(worst) or math.isnan(value) or value == worst == 0.0:
        return None
    return worst / value if value > 0.0 else math.inf


def page_of(comparison: Comparison) -> page.Page:
    """Return everything that can be compared, as a page."""
    sections: dict[str, Sequence[page.Part]] = {
        f"Results: {comparison.metric}": _results(comparison),
        "Training": picture_of("training", _training(comparison), common_legend=True),
        "Inside ROOT": _inside_root(comparison),
        "Other curves": _others(comparison),
        "Set-up": _set_up(comparison),
    }
    title, count = " · ".join(comparison.labels), len(comparison.runs)
    return page.Page(
        kind=f"Comparison of {count} runs",
        title=title if len(title) <= MAX_TITLE else f"{comparison.metric} of {count} runs",
        subtitle=" · ".join(run.name for run in comparison.runs),
        cards=[],
        sections=[page.Section(title, parts) for title, parts in sections.items() if parts],
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
    for label, last, best, reached, speed_up, speed_up_in_time in comparison.standings():
        row = [
            label,
            page.number(last.value),
            page.number(best and best.value),
            page.whole(best and best.step),
            page.whole(reached and reached.step),
            _times(speed_up),
            page.duration(reached and reached.seconds),
            _times(speed_up_in_time),
        ]
        rows.append(row[: len(header)])
    return header, rows


def _times(ratio: float | None) -> str:
    """Return a speed-up, as "1.41x"."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def explain_target(comparison: Comparison) -> str:
    """Return what `target` and `speed-up` mean, in a sentence."""
    measures = "fewer steps, or less time," if comparison.has_clock else "fewer steps"
    return (
        f"The target, {page.number(comparison.target)}, is the last {comparison.metric} of the "
        f"worst run; the speed-up is how many times {measures} a run needs to reach it."
    )


def _results(comparison: Comparison) -> list[page.Part]:
    """Return the table of the runs, and the metric over steps and time."""
    metric, lines = comparison.metric, comparison.lines(comparison.metric)
    panels = [Panel("Over steps", lines, unit=metric)]
    intro = f"{metric} over optimizer steps"
    caption = f"{explain_target(comparison)} Between points, curves are taken as straight lines."
    if comparison.has_clock:
        panels.append(Panel("Over time", lines, unit=metric, over="minutes"))
        intro += " and over the time since training began"
        caption += " Times compare runs only if each had the machine to itself."
    header, rows = result_table(comparison)
    last = [series.last.value for series in comparison.curves]
    best = (min if comparison.mode == "min" else max)(filter(math.isfinite, last), default=None)
    strong = [row for row, value in enumerate(last) if value == best]
    table = page.Table(caption, header, rows, strong, [colour(place) for place in range(len(rows))])
    return [table, *picture_of("metric", panels, f"{intro}.", common_legend=True)]


def _training(comparison: Comparison) -> list[Panel]:
    """Return panels of the training losses and the learning rates."""
    lines, rates = [], []
    for place, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        for tag in curves.losses(run.scalars, "training")[:1]:
            lines.append(Line(label, run.scalars[tag], place, comparison.smooth))
        for series in list(curves.learning_rates(run.scalars).values())[:1]:
            rates.append(Line(label, series, place))
    faint = "; faint: as logged, before smoothing" if comparison.smooth != 0 else ""
    panels = [
        Panel("Training loss", lines, f"Training loss{faint}.", width=2.0),
        Panel("Learning rate", rates, "Learning rate, of the first parameter group."),
    ]
    return [panel for panel in panels if panel.lines]


def _inside_root(comparison: Comparison) -> Sequence[page.Part]:
    """Return means of the statistics that any run logs."""
    panels = []
    for statistic in sorted(STATISTICS.values(), key=lambda statistic: statistic.compared):
        lines = comparison.lines(statistic.tag("mean"))
        if lines and statistic.title and "mean" in statistic.reductions:
            texts = (statistic.title, statistic.unit, statistic.about)
            title, unit, about = map(page.typeset, texts)
            panels.append(Panel(title, lines, about, unit))
    intro = "Means over all matrices, of the runs that log them."
    return picture_of("root", panels, intro, common_legend=True)


def _others(comparison: Comparison) -> Sequence[page.Part]:
    """Return curves that at least two runs have."""
    tags = dict.fromkeys(tag for run in comparison.runs for tag in curves.other_tags(run.scalars))
    found = {tag: comparison.lines(tag) for tag in tags if tag != comparison.metric}
    shared = {tag: lines for tag, lines in found.items() if len(lines) > 1}
    return other_curves(shared, common_legend=True)


def _set_up(comparison: Comparison) -> list[page.Part]:
    """Return the options in which the runs differ, and all configurations."""
    different = differences(comparison.runs)
    parts: list[page.Part] = []
    if different:
        rows = [[key, *values] for key, values in different.items()][:MAX_DIFFERENCES]
        header = ["option", *comparison.labels]
        parts.append(page.Table("Options in which the runs differ.", header, rows))
    left = ", ".join(list(different)[MAX_DIFFERENCES:])
    if left:
        parts.append(f"Not listed, but different too: {left}.")
    return parts + [
        page.Verbatim(f"The whole configuration: {label}", run.config_text)
        for label, run in zip(comparison.labels, comparison.runs, strict=True)
        if run.config_text
    ]
