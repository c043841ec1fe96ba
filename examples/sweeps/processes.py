"""Runs in processes of their own, some at a time."""

import multiprocessing as mp
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from examples.sweeps.plan import Run
from examples.sweeps.training import train_here

PRELOADED = ["examples.sweeps.training", "lightning_root.cli.lightning", "torch.utils.tensorboard"]


def fresh_processes() -> Any:
    """A context of `multiprocessing` for processes that have computed nothing; see `run_all`."""
    forks = "forkserver" in mp.get_all_start_methods()
    context = mp.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(PRELOADED)
    return context


def run_all(
    runs: Sequence[Run], about: Mapping[str, Any], jobs: int = 1, threads: int = 1
) -> Generator[tuple[Run, int]]:
    """Train all runs; yield each with the exit code of its process as it ends.

    Where the system can, the processes are forks of a server that has imported everything and has
    computed nothing: a run has a fresh process without waiting for imports, and what one breaks
    is its own. If the caller stops early, those that are under way are ended.

    Args:
        runs: What to train, in this order.
        about: Machine and software, for the results.
        jobs: How many at once.
        threads: Of torch, for each.
    """
    context = fresh_processes()
    waiting = deque(runs)
    running: dict[Any, tuple[Run, Any]] = {}  # by what `wait` waits for
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                process = context.Process(target=train_here, args=(run, about, threads))
                process.start()
                running[process.sentinel] = run, process
            for sentinel in wait(list(running)):
                run, process = running.pop(sentinel)
                process.join()
                yield run, process.exitcode
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
