"""One attempt of a run: its processes, and the end of one of them."""

import random
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, NamedTuple

from examples.benchmarks.killing.training import Attempt, Kill, Watch, train_here
from examples.sweeps.processes import fresh_processes

GRACE: Final = 10.0
"""Seconds that the other ranks have to notice that one is dead, before they are ended too."""

PATIENCE: Final = 300.0
"""Seconds after which an attempt hangs, which is a loss."""


@dataclass
class Run:
    """A run that is trained in one or more attempts.

    Args:
        ranks: Processes.
        steps: Optimizer steps.
        seed: Of the run.
        folder: For its files.
        attempts: How many there have been.
    """

    ranks: int
    steps: int
    seed: int
    folder: Path
    attempts: int = 0

    @property
    def last(self) -> Path:
        """Where the run goes on from."""
        return self.folder / "last.ckpt"


class Ended(NamedTuple):
    """How an attempt ended.

    Args:
        watch: What the first rank has told.
        codes: Exit codes of all ranks.
        others: How the ranks ended that were not killed, in words.
        seconds: Until the victim's end.
    """

    watch: Watch
    codes: list[int]
    others: str
    seconds: float


class Moment(NamedTuple):
    """When a process is killed from outside.

    Args:
        step: First, this step must be done; -1 is the start of the process.
        delay: Then, so many seconds pass.
    """

    step: int
    delay: float

    @classmethod
    def drawn(cls, choose: random.Random, reached: int, steps: int) -> "Moment":
        """While it starts, in or after any step, or while it ends."""
        step = choose.randint(reached - 1, steps)
        if step < reached:
            return cls(-1, choose.uniform(0.0, 1.0))
        return cls(step, choose.uniform(0.0, 0.5 if step == steps else 0.1))

    def wait_for(self, process: Any, watch: Watch) -> None:
        """Return at the moment, or when the process has ended."""
        end = time.perf_counter() + PATIENCE
        while watch.step < self.step and time.perf_counter() < end:
            if wait([process.sentinel], 0.003):
                return
        wait([process.sentinel], self.delay)


def attempt(run: Run, kill: Kill | None, moment: Moment | None, victim: int) -> Ended:
    """Start the processes, and kill the victim if it has not ended by the moment.

    Args:
        run: Which run.
        kill: When the first rank ends itself; None does not.
        moment: When the victim is killed; None never.
        victim: Its rank.

    Raises:
        RuntimeError: If it hangs.
    """
    run.attempts += 1
    context = fresh_processes()
    numbers = context.RawArray("l", Watch.SIZE)
    spare = context.RawArray("l", Watch.SIZE)
    run.folder.mkdir(parents=True, exist_ok=True)
    meeting = run.folder / f"meeting-{run.attempts}"
    resume = run.last if run.last.exists() else None
    common = partial(Attempt, run.folder, run.steps, run.seed)
    processes = [
        context.Process(
            target=train_here,
            args=(
                common(rank, run.ranks, meeting, resume, kill if rank == 0 else None),
                numbers if rank == 0 else spare,
            ),
        )
        for rank in range(run.ranks)
    ]
    start = time.perf_counter()
    try:
        for process in processes:
            process.start()
        if moment is not None:
            moment.wait_for(processes[victim], Watch(numbers if victim == 0 else spare))
            processes[victim].kill()  # nothing happens if it has ended
        processes[victim].join(PATIENCE)
        seconds = time.perf_counter() - start
        if processes[victim].exitcode is None:
            raise RuntimeError(f"it hangs; see output-*.txt in {run.folder}")
        for process in processes:
            process.join(GRACE)
        others = ", ".join(
            _ended(process) for rank, process in enumerate(processes) if rank != victim
        )
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    return Ended(Watch(numbers), codes, others, seconds)


def _ended(process: Any) -> str:
    """How another rank ended once the victim was dead."""
    if process.exitcode is None:
        return "had to be ended"
    return "ended well" if process.exitcode == 0 else "ended with an error"
