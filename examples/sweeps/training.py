"""One run, in a process of its own: train, then write down what came out."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from examples.sweeps.plan import Run
from lightning_root._files import write_json
from lightning_root.cli import main
from lightning_root.diagnostics.report import read_run


def train_here(run: Run, about: Mapping[str, Any], threads: int) -> None:
    """Be the process of this run: whatever it prints goes to its folder.

    Args:
        run: What to train.
        about: Machine and software, for the result.
        threads: Of torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends this one
    torch.set_num_threads(threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    train(run, about)


def train(run: Run, about: Mapping[str, Any]) -> None:
    """Train as `python -m lightning_root` would, and write `result.json` at the end.

    A run that was interrupted goes on from its last checkpoint if it has one, else anew. Seconds of
    the clock and of the CPU are those of this process, with its threads: reading the data, training
    and validating, but not imports. Those of a run that goes on are of its last part.

    Raises:
        ValueError: If the run has not logged the metric.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    arguments = list(run.arguments)
    resumed = run.checkpoint.is_file()
    if resumed:
        arguments.append(f"--ckpt_path={run.checkpoint}")
    else:
        for log in run.folder.glob("events.out.tfevents.*"):
            log.unlink()
    sys.argv = ["lightning_root", *arguments]
    main()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    result = {
        **outcome(run),
        "labels": dict(run.labels),
        "seed": run.seed,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "resumed": resumed,
        "command": shlex.join(["python", "-m", "lightning_root", *run.arguments]),
        "fingerprint": run.fingerprint,
        "about": dict(about),
    }
    write_json(run.result, result)


def outcome(run: Run) -> dict[str, Any]:
    """Last and best value of the metric, its curve, and steps trained, from the run's logs."""
    scalars = read_run(run.folder).scalars
    if run.metric not in scalars:
        raise ValueError(f"`metric` must be a curve, got {run.metric!r}; there are {list(scalars)}")
    series = scalars[run.metric]
    best = series.best(run.mode)
    return {
        "metric": run.metric,
        "mode": run.mode,
        "final": series.last.value,
        "best": None if best is None else best.value,
        "best_step": None if best is None else best.step,
        "steps": series.steps.tolist(),
        "values": series.values.tolist(),
        "trained": 1 + max(int(curve.steps[-1]) for curve in scalars.values()),  # as far as logged
    }
