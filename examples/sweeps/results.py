"""What a sweep found, from the files that its runs left."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, TypeAlias

from examples.sweeps.plan import Labels, Run, Sweep
from examples.sweeps.statistics import (
    Difference,
    Sample,
    best_of,
    compare,
    describe,
    ratio_of_means,
)
from lightning_root._files import read_json
from lightning_root.diagnostics.report.curves import Series

Place: TypeAlias = Literal["inside", "least", "greatest"]


@dataclass(frozen=True)
class Row:
    """A combination that is compared.

    Args:
        labels: Of the axes that are not tuned.
        tuned: The value of the tuned axis that was best; None where nothing is tuned.
        place: Whether that value is inside of the grid that was tried, or an end of it, so that
            better ones may lie beyond; None of values that are no numbers, and of a single one.
        results: Contents of `result.json`, by seed.
        difference: To the baseline; None for the baseline, and where it has no run.
        cpu_ratio: Mean CPU seconds as a multiple of the baseline's with the same seeds; None as
            above, and where they are not known.
        steps_ratio: First step at which the mean curve is as good as the baseline's is at its end,
            as a share of the baseline's steps; None as above, and where it never is.
    """

    labels: Labels
    tuned: str | None
    place: Place | None
    results: Mapping[int, Mapping[str, Any]]
    difference: Difference | None = None
    cpu_ratio: float | None = None
    steps_ratio: float | None = None

    @property
    def values(self) -> dict[int, float]:
        """Last value of the metric, by seed."""
        return {seed: result["final"] for seed, result in self.results.items()}

    @property
    def cpu_seconds(self) -> dict[int, float]:
        """CPU seconds of the whole training, by seed.

        Runs that were interrupted and went on are left out, and those of before it was recorded.
        """
        return {
            seed: result["cpu_seconds"]
            for seed, result in self.results.items()
            if "cpu_seconds" in result and not result["resumed"]
        }

    @property
    def mean_cpu_seconds(self) -> float | None:
        """Over the seeds of which they are known; None if there is none."""
        return mean(self.cpu_seconds.values()) if self.cpu_seconds else None

    @property
    def early(self) -> dict[int, tuple[int, int]]:
        """Step of the last value, and steps trained, by seed; of runs that went on after it."""
        found = {seed: result.get("trained", 0) for seed, result in self.results.items()}
        last = {seed: result["steps"][-1] + 1 for seed, result in self.results.items()}
        return {seed: (last[seed], steps) for seed, steps in found.items() if steps > last[seed]}

    @property
    def sample(self) -> Sample:
        """Over the seeds."""
        return describe(list(self.values.values()))


@dataclass(frozen=True)
class Results:
    """All that a sweep found.

    Args:
        sweep: Which one.
        rows: Those that have at least one run.
        tuning: Values of the runs that the best were chosen by: by combination of the other axes
            (its place among the groups), then by label of the tuned axis.
        failures: Name and last lines of the runs that failed.
    """

    sweep: Sweep
    rows: Sequence[Row]
    tuning: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def read_result(run: Run) -> dict[str, Any] | None:
    """What the run found; None if it is not done.

    Raises:
        ValueError: If the folder holds the result of another configuration.
    """
    if not run.result.is_file():
        return None
    result: dict[str, Any] = read_json(run.result)
    if result["fingerprint"] != run.fingerprint:
        raise ValueError(
            f"`--output` must be of this sweep as it is now, got '{run.folder}' of another "
            "configuration; give another folder, or delete that one to run it again"
        )
    return result


def tuning_values(sweep: Sweep, output: Path) -> dict[int, dict[str, list[float]]]:
    """Values of the metric in the runs that choose, as far as they are done; see `Results`."""
    found: dict[int, dict[str, list[float]]] = {}
    if sweep.tune is None:
        return found
    for place, (_, members) in enumerate(sweep.groups()):
        for labels in members:
            runs = sweep.runs([labels], sweep.tune_seeds or sweep.seeds, output)
            results = [read_result(run) for run in runs]
            values = [result["final"] for result in results if result is not None]
            if len(values) == len(runs):  # one without all seeds is not compared
                found.setdefault(place, {})[labels[sweep.tune]] = values
    return found


def chosen(sweep: Sweep, output: Path) -> list[Labels | None]:
    """The best combination of each group; None where no tuning run is done."""
    if sweep.tune is None:
        return list(sweep.combinations())
    tuning = tuning_values(sweep, output)
    found: list[Labels | None] = []
    for place, (_, members) in enumerate(sweep.groups()):
        best = best_of(tuning[place], sweep.mode) if place in tuning else None
        found.append(next((m for m in members if m[sweep.tune] == best), None))
    return found


def collect(sweep: Sweep, output: Path, failures: Mapping[str, str]) -> Results:
    """Read all results.

    Args:
        sweep: What was run.
        output: Where.
        failures: Last lines of the runs that failed, by name.
    """
    rows = []
    for (labels, members), best in zip(sweep.groups(), chosen(sweep, output), strict=True):
        if best is None:
            continue
        runs = sweep.runs([best], sweep.seeds, output)
        results = {run.seed: result for run in runs if (result := read_result(run)) is not None}
        if results:
            tuned = best[sweep.tune] if sweep.tune else None
            tried = [member[sweep.tune] for member in members] if sweep.tune else []
            place = _place(tried, tuned) if tuned else None
            rows.append(Row(labels, tuned, place, results))
    compared = [_compared(row, baseline_of(sweep, row, rows), sweep.mode) for row in rows]
    return Results(sweep, compared, tuning_values(sweep, output), failures)


def baseline_of(sweep: Sweep, row: Row, rows: Sequence[Row]) -> Row | None:
    """The row with the baseline's values, and the same as this one on all other axes.

    Returns:
        None if there is none, or it is this one.
    """
    wanted = {**row.labels, **sweep.baseline}
    if not sweep.baseline or row.labels == wanted:
        return None
    return next((other for other in rows if other.labels == wanted), None)


def mean_curve(row: Row, seeds: Iterable[int]) -> Series:
    """The mean of the metric over these seeds, by the number of steps done, where all have it."""
    curves = [
        dict(zip(row.results[seed]["steps"], row.results[seed]["values"], strict=True))
        for seed in seeds
    ]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return Series.of([(s + 1, math.nan, mean(curve[s] for curve in curves)) for s in shared])


def steps_ratio(row: Row, baseline: Row, mode: Literal["min", "max"]) -> float | None:
    """How soon the row's mean curve is as good as the baseline's at its end; see `Row`."""
    seeds = [seed for seed in row.results if seed in baseline.results]
    ours, theirs = mean_curve(row, seeds), mean_curve(baseline, seeds)
    if not len(ours.steps) or not len(theirs.steps):
        return None
    reached = ours.reach(theirs.last.value, mode)
    return None if reached is None else reached.step / theirs.last.step


def _compared(row: Row, baseline: Row | None, mode: Literal["min", "max"]) -> Row:
    if baseline is None:
        return row
    return replace(
        row,
        difference=compare(row.values, baseline.values),
        cpu_ratio=ratio_of_means(row.cpu_seconds, baseline.cpu_seconds),
        steps_ratio=steps_ratio(row, baseline, mode),
    )


def _place(labels: Sequence[str], best: str) -> Place | None:
    """Where among those that were tried the best number is; see `Row`."""
    numbers = [as_number(label) for label in labels]
    known = [number for number in numbers if number is not None]
    value = as_number(best)
    if value is None or len(known) < len(labels) or len(known) < 2:
        return None
    if value in (min(known), max(known)):
        return "least" if value == min(known) else "greatest"
    return "inside"


def as_number(label: str) -> float | None:
    """The label as a finite number; None if it is none."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
