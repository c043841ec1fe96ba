"""A sweep: every combination of some options with several seeds, compared at the end.

    python -m examples.sweep configs/sweeps/quantile.yaml
    python -m examples.sweep configs/sweeps/quantile.yaml --dry-run    # which runs, what is done

Each run is a process that does what `python -m lightning_root fit` does with the same options, in
a folder of its own. The same command again goes on where the last one stopped, whatever stopped
it: what is done stays, an interrupted run goes on from its last checkpoint or starts anew, a
failed one is tried again. At the end there are, in the sweep's folder, `table.md`, `results.json`
and pictures, and on the screen a command that compares single runs.

The YAML files in `configs/sweeps/` show how a sweep is written; `examples.sweeps.plan.Sweep` says
what each key means. Pictures need matplotlib: `pip install "lightning-root[plot]"`.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.benchmarks.page import environment
from examples.sweeps.file import read_sweep
from examples.sweeps.lock import alone_in
from examples.sweeps.page import compare_command, failed, notes, table, write_results
from examples.sweeps.pictures import draw_all
from examples.sweeps.plan import Run, Sweep
from examples.sweeps.processes import run_all
from examples.sweeps.results import chosen, collect, read_result
from lightning_root.cli.output import new_figure, progress, text_table, wrapped
from lightning_root.cli.parser import CommandParser, run_command
from lightning_root.diagnostics.report.page import number

LAST_LINES = 8
"""Of what a failed run printed that are shown."""


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(prog="python -m examples.sweep", description=__doc__)
    add = parser.add_argument
    add("sweep", type=Path, metavar="SWEEP", help="YAML file, such as configs/sweeps/quantile.yaml")
    add("--output", type=Path, metavar="FOLDER", help="default: logs/sweeps/NAME")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at once (default: 1)")
    add("--threads", type=positive, default=1, metavar="N", help="threads of a run (default: 1)")
    add("--seeds", type=int, nargs="+", metavar="SEED", help="instead of the file's `seeds`")
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="AXIS=VALUE",
        help="run and compare these values alone, such as optimizer=Muon optimizer=ROOT",
    )
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of every run, such as trainer.max_steps=500",
    )
    add("--dry-run", action="store_true", help="list the runs and their commands, train nothing")
    parser.set_defaults(run=_run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; 0 if all went well, 1 if a run failed, 130 if it was stopped."""
    return run_command(parser(), sys.argv[1:] if arguments is None else arguments)


def _run(options: argparse.Namespace) -> int:
    sweep = read_sweep(options.sweep, options.seeds, options.set, options.only)
    output: Path = options.output or Path("logs", "sweeps", sweep.name)
    if options.dry_run:
        return _list_runs(sweep, output)
    new_figure(1, 1)  # fails before the work if there is no matplotlib
    about = describe_machine(options.threads)
    output.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes of the runs
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with alone_in(output):
            failures = run_sweep(sweep, output, about, options.jobs, options.threads)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, handler)
    given = [str(options.sweep), *(["--seeds", *map(str, sweep.seeds)] if options.seeds else [])]
    given += ["--only", *options.only] if options.only else []
    given += ["--set", *options.set] if options.set else []
    command = shlex.join(["python", "-m", "examples.sweep", *given])
    return _conclude(sweep, output, {**about, "command": command}, failures)


def run_sweep(
    sweep: Sweep, output: Path, about: Mapping[str, Any], jobs: int = 1, threads: int = 1
) -> dict[str, str]:
    """Train what is not done yet: first what the best is chosen by, then what is compared.

    Args:
        sweep: What to run.
        output: Folder for all runs.
        about: Machine and software, for the results.
        jobs: Runs at once.
        threads: Of torch, in each run.

    Returns:
        Last lines of the runs that failed, by name.
    """
    failures: dict[str, str] = {}
    if sweep.tune is not None:
        tuning = sweep.runs(sweep.combinations(), sweep.tune_seeds or sweep.seeds, output)
        failures |= run_missing(tuning, f"tuning {sweep.tune}", about, jobs, threads)
    best = [labels for labels in chosen(sweep, output) if labels is not None]
    runs = [run for run in sweep.runs(best, sweep.seeds, output) if run.name not in failures]
    return failures | run_missing(runs, "running", about, jobs, threads)


def run_missing(
    runs: Sequence[Run], doing: str, about: Mapping[str, Any], jobs: int, threads: int
) -> dict[str, str]:
    """Train the runs that have no result yet; see `run_sweep`."""
    missing = [run for run in runs if read_result(run) is None]
    print(f"{doing}: {len(runs)} runs, {len(runs) - len(missing)} of them done", flush=True)
    failures = {}
    with closing(run_all(missing, about, jobs, threads)) as ended:
        for place, (run, code) in zip(progress(range(len(missing)), doing), ended, strict=False):
            result = read_result(run)
            if result is None:
                failures[run.name] = _last_lines(run, code)
            if not sys.stderr.isatty():
                said = "failed"
                if result is not None:
                    said = f"{run.metric} {number(result['final'])} in {result['seconds']:.0f} s"
                print(f"[{place + 1}/{len(missing)}] {run.name}: {said}", flush=True)
    return failures


def describe_machine(threads: int) -> dict[str, Any]:
    """Machine, software and state of the source, for results."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True, env=quiet)
        commit = found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = None
    software = {"lightning": version("lightning"), "commit": commit}
    return {**environment(), **software, "threads": threads}


def _conclude(
    sweep: Sweep, output: Path, about: Mapping[str, Any], failures: Mapping[str, str]
) -> int:
    """Table, page, pictures, and how to go on."""
    results = collect(sweep, output, failures)
    if results.rows:
        write_results(results, output, about)
        pictures = draw_all(results, output)
        print(f"\n{sweep.metric}\n\n{text_table(*table(results))}\n")
        for note in notes(results):
            print(wrapped(note))
        print(f"page      {output / 'table.md'}\npictures  {', '.join(map(str, pictures))}")
        if command := compare_command(results, output):
            print(f"to compare single runs:\n  {command}")
    if failures:
        print(failed(results), file=sys.stderr)
    return 1 if failures else 0


def _list_runs(sweep: Sweep, output: Path) -> int:
    seeds = sweep.seeds if sweep.tune is None else sweep.tune_seeds or sweep.seeds
    runs = sweep.runs(sweep.combinations(), seeds, output)
    for run in runs:
        state = "to do" if read_result(run) is None else "done"
        command = shlex.join(["python", "-m", "lightning_root", *run.arguments])
        print(f"{run.name}: {state}\n  {command}")
    print(f"{len(runs)} runs", end="")
    if sweep.tune is not None and sweep.tune_seeds:
        count = len(sweep.groups()) * len(set(sweep.seeds) - set(sweep.tune_seeds))
        print(f" to choose `{sweep.tune}`, then {count} more at the best of each", end="")
    print()
    return 0


def _last_lines(run: Run, code: int) -> str:
    """How the run's process ended: the last lines of what it printed, and by which signal."""
    text = run.log.read_text("utf-8", "replace") if run.log.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
    ended = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
    return "\n".join([*lines, f"{ended}; all it printed: {run.log}"])


def positive(text: str) -> int:
    """A number of an option: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
