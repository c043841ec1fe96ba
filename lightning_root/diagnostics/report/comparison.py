"""Several runs measured by one metric: who is ahead, and by how much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_root.diagnostics.report.describe import labels_of
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.report.series import Mode, Point, Series
from lightning_root.diagnostics.report.tags import losses, mode_of


@dataclass(frozen=True)
class Standing:
    """How a run did in the metric that is compared.

    Args:
        label: Of the run.
        last: The last point.
        best: The best point; None if no value is finite.
        reached: Where it was first as good as the worst run at its end; None if it never was.
        speed_up: How many times fewer steps that took than in the worst run.
        speed_up_in_time: How many times less time.
    """

    label: str
    last: Point
    best: Point | None
    reached: Point | None
    speed_up: float | None
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
        worst = self._worst(reached)
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

    def _worst(self, reached: Sequence[Point | None]) -> Point | None:
        """Where the run whose last value is the target reached it."""
        last = [series.last.value for series in self.curves]
        return next((p for p, v in zip(reached, last, strict=True) if v == self.target), None)


def comparison_of(
    runs: Sequence[Run],
    *,
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    steps_only: bool = False,
    smooth: float | None = None,
) -> Comparison:
    """Settle what runs are compared in.

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
    chosen = metric or _common(runs)
    for run in runs:
        if chosen not in run.scalars:
            tags = sorted(tag for tag in run.scalars if not tag.startswith("root/"))
            raise ValueError(
                f"`--metric` must be a curve of every run, got {chosen!r}; '{run.folder}' has "
                f"{tags}"
            )
    named = labels_of(runs) if labels is None else labels
    return Comparison(runs, named, chosen, mode or mode_of(chosen), steps_only, smooth)


def _common(runs: Sequence[Run]) -> str:
    """The main validation loss that all runs have, or training loss.

    Raises:
        ValueError: If there is none.
    """
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
    """How many times less; None without a clock, or where both took no time."""
    if math.isnan(worst) or math.isnan(value) or value == worst == 0.0:
        return None
    return worst / value if value > 0.0 else math.inf
