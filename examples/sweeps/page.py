"""The table of a sweep: in the terminal, as a Markdown page, as JSON."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from examples.benchmarks.page import markdown_table, provenance
from examples.sweeps.plan import Labels, folder_name, in_short, in_words
from examples.sweeps.results import Results, Row
from examples.sweeps.statistics import describe
from lightning_root._files import write_json
from lightning_root.diagnostics.report.page import number

Column: TypeAlias = tuple[str, Callable[[Row], str]]
"""Header, and the cell of a row."""


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the values of the axes, then what was measured."""
    columns = _columns(results)
    return [name for name, _ in columns], [
        [cell(row) for _, cell in columns] for row in results.rows
    ]


def _columns(results: Results) -> list[Column]:
    """Those of which there is something to say."""
    sweep = results.sweep
    axes = [axis for axis in sweep.axes if axis != sweep.tune]
    columns: list[Column] = [(axis, lambda row, axis=axis: row.labels[axis]) for axis in axes]
    if sweep.tune:
        columns.append((f"best {sweep.tune}", lambda row: row.tuned or ""))
        columns.append(("in the grid", lambda row: row.place or "-"))
    columns += [(sweep.metric, _mean_cell), ("seeds", lambda row: str(row.sample.count))]
    baseline = in_short(sweep.baseline)
    if sweep.baseline:
        columns.append((f"minus {baseline}", _difference_cell))
        columns.append(("95 % interval", _interval_cell))
        columns.append(("steps ratio", _steps_cell))
    if any(row.mean_cpu_seconds is not None for row in results.rows):
        columns.append(("CPU s", lambda row: optional(row.mean_cpu_seconds, ".1f")))
        if sweep.baseline:
            columns.append(("CPU ratio", lambda row: optional(row.cpu_ratio, ".2f")))
    return columns


def tuning_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the means that the best values were chosen by, a column for each value."""
    sweep = results.sweep
    assert sweep.tune is not None
    axes = [axis for axis in sweep.axes if axis != sweep.tune]
    labels = list(sweep.axes[sweep.tune])
    groups = [found for found, _ in sweep.groups()]
    body = []
    for place, values in results.tuning.items():
        means = {label: number(describe(of_seeds).mean) for label, of_seeds in values.items()}
        body.append([*groups[place].values(), *(means.get(label, "") for label in labels)])
    return [*axes, *labels], body


def notes(results: Results) -> list[str]:
    """What a reader should know, a sentence each."""
    sweep = results.sweep
    found = [
        f"{in_words(row.labels)}: {row.tuned} is the {row.place} that was tried."
        for row in results.rows
        if row.place in ("least", "greatest")
    ]
    for row in results.rows:
        for last, trained in list(row.early.values())[:1]:
            found.append(
                f"{in_words(row.labels)}: the last value is of step {last} of {trained} or more; "
                "let `trainer.val_check_interval` divide the number of steps."
            )
    if sweep.tune and not sweep.tune_seeds:
        found.append(
            f"The best {sweep.tune} was chosen by the same seeds that are compared, which favours "
            "whatever was tried at more values."
        )
    if len(commits := _commits(results)) > 1:
        found.append(f"The runs are of different states of the source: {', '.join(commits)}.")
    return found


def _explanations(results: Results) -> list[str]:
    """What the columns mean that do not say so, a sentence each."""
    sweep, found = results.sweep, []
    if sweep.tune:
        also = ", and so is the baseline" if sweep.baseline else ""
        found.append(
            f"Each is shown at the {sweep.tune} that is best for it{also}. In the grid: `inside` "
            "has worse values on both sides, `least` and `greatest` are ends of what was tried."
        )
    if sweep.baseline:
        found.append(
            "Steps ratio: the first step at which the mean curve is as good as the baseline's at "
            "its end, as a share of the baseline's steps; between validations the curve is taken "
            "as straight."
        )
    if any(row.mean_cpu_seconds is not None for row in results.rows):
        found.append("CPU s: CPU seconds of the whole training, mean over the seeds.")
        if sweep.baseline:
            found.append("CPU ratio: those as a multiple of the baseline's.")
    return found


def _tuning(results: Results) -> list[str]:
    """The page's part on how the best values were chosen."""
    sweep = results.sweep
    if not results.tuning:
        return []
    seeds = ", ".join(map(str, sweep.tune_seeds or sweep.seeds))
    said = f"Chosen by: mean {sweep.metric} at each {sweep.tune}, of seeds {seeds}."
    return [said, markdown_table(*tuning_table(results))]


def failed(results: Results) -> str:
    """The runs that failed with their last lines; empty if there are none."""
    parts = [f"{name}:\n{_indented(text)}" for name, text in results.failures.items()]
    return (
        "\n".join([f"{len(parts)} failed; the same command tries again", *parts]) if parts else ""
    )


def compare_command(results: Results, output: Path) -> str:
    """`compare` on the runs of the first seed that all combinations have."""
    sweep = results.sweep
    shared = set(sweep.seeds).intersection(*(row.results for row in results.rows))
    seed = next((seed for seed in sweep.seeds if seed in shared), None)
    if seed is None or len(results.rows) < 2:
        return ""
    labels = [in_short(row.labels) for row in results.rows]
    folders = [output / folder_name(_full(row)) / f"seed_{seed}" for row in results.rows]
    return shlex.join(
        [
            *("python", "-m", "lightning_root", "compare", *map(str, folders)),
            *("--label", *labels, "--metric", sweep.metric, "--mode", sweep.mode),
            *("--output", str(output / "comparison")),
        ]
    )


def write_results(results: Results, output: Path, about: Mapping[str, Any]) -> None:
    """Write `table.md` and `results.json`.

    Args:
        results: What was found.
        output: Folder of the sweep.
        about: `examples.benchmarks.page.environment()` with `command` and `commit`.
    """
    entries = _entries(results)
    whole = {**about, "minutes": sum(entry["seconds"] for entry in entries) / 60}
    whole["json"] = "results.json"
    title = f"# {results.sweep.name.replace('_', ' ').capitalize()}"
    commits = _commits(results)
    said = [f"Commit {commits[0]}."] if len(commits) == 1 else []
    parts = [
        title,
        f"Last {results.sweep.metric} of each run: mean and standard deviation over the seeds. "
        "Differences are between runs of the same seed, their intervals by Student's t.",
        markdown_table(*table(results)),
        " ".join(_explanations(results)),
        *notes(results),
        *_tuning(results),
        provenance(whole, *said, "Minutes are those of the runs shown, added."),
        f"    {compare_command(results, output)}",
        failed(results),
    ]
    (output / "table.md").write_text("\n\n".join(p for p in parts if p.strip()) + "\n", "utf-8")
    write_json(output / "results.json", {"about": whole, **_as_dict(results)})


def _mean_cell(row: Row) -> str:
    sample = row.sample
    spread = "" if sample.deviation is None else f" ± {sample.deviation:.4f}"
    return f"{number(sample.mean)}{spread}"


def _difference_cell(row: Row) -> str:
    return "-" if row.difference is None else f"{row.difference.mean:+.4f}"


def _interval_cell(row: Row) -> str:
    if row.difference is None or row.difference.interval is None:
        return "-"
    low, high = row.difference.interval
    return f"{low:+.4f} to {high:+.4f}"


def _steps_cell(row: Row) -> str:
    if row.difference is None:
        return "-"
    return "never" if row.steps_ratio is None else f"{row.steps_ratio:.2f}"


def optional(value: float | None, form: str) -> str:
    """The number in a format; "-" for None."""
    return "-" if value is None else format(value, form)


def _full(row: Row) -> Labels:
    """Labels of all axes, in the order of the sweep's file."""
    labels: Labels = next(iter(row.results.values()))["labels"]
    return labels


def _entries(results: Results) -> list[Mapping[str, Any]]:
    return [entry for row in results.rows for entry in row.results.values()]


def _commits(results: Results) -> list[str]:
    found = {str(entry["about"].get("commit") or "unknown") for entry in _entries(results)}
    return sorted(found)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _as_dict(results: Results) -> dict[str, Any]:
    sweep = results.sweep
    rows = [
        {
            "labels": dict(row.labels),
            "tuned": row.tuned,
            "place": row.place,
            "mean": row.sample.mean,
            "deviation": row.sample.deviation,
            "values": row.values,
            "best_values": {seed: entry["best"] for seed, entry in row.results.items()},
            "seconds": {seed: entry["seconds"] for seed, entry in row.results.items()},
            "cpu_seconds": row.cpu_seconds,
            "cpu_ratio": row.cpu_ratio,
            "steps_ratio": row.steps_ratio,
            "difference": None if row.difference is None else vars(row.difference),
        }
        for row in results.rows
    ]
    groups = [labels for labels, _ in sweep.groups()]
    tuning = [
        {"labels": dict(groups[place]), "values": values}
        for place, values in results.tuning.items()
    ]
    return {
        "sweep": sweep.name,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "tune": sweep.tune,
        "baseline": dict(sweep.baseline),
        "rows": rows,
        "tuning": tuning,
        "failures": dict(results.failures),
    }
