"""Runs that are killed and resumed, until they end or are lost."""

import random
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from examples.benchmarks.killing.attempts import Moment, Run, attempt
from examples.benchmarks.killing.compare import difference, read, unfinished
from examples.benchmarks.killing.training import PLACES, SAVE_EVERY, Kill
from lightning_root.kernels.rates import rates_file

SPARED: Final = 0.2
"""Share of the attempts that nobody kills."""

EXACT: Final = "exact"
"""The outcome of a run that ended where it would have ended."""

ANY_MOMENT: Final = "any moment"
"""The place of a kill from outside."""


@dataclass
class Record:
    """One kill, as it stands in the results.

    Args:
        trial: Number of the run among those with as many processes.
        processes: Of the run.
        rank: Which one was killed.
        place: One of `PLACES`, within the writing of a checkpoint, or `ANY_MOMENT`.
        share: Of the file's bytes that were written, where `place` is "bytes".
        seconds: From the start of the processes to the kill.
        step: Steps done by then; -1 if training had not begun.
        in_save: Whether a checkpoint file was being written.
        files: Checkpoint files begun in this attempt.
        saved: Step of the last `last.ckpt` that this attempt had finished; 0 if none.
        resumed_from: Step of the `last.ckpt` that there is; 0 if none.
        others: How the other processes ended; empty if there are none.
        outcome: `EXACT`, or what is different at the end of the run.
    """

    trial: int
    processes: int
    rank: int
    place: str
    share: float | None
    seconds: float
    step: int
    in_save: bool
    files: int
    saved: int
    resumed_from: int
    others: str
    outcome: str = "not known"


@dataclass
class Trial:
    """One run, killed and resumed until it ends.

    Args:
        number: In the results.
        run: What is trained.
        whole: The uninterrupted run's last checkpoint.
        records: Its kills so far.
    """

    number: int
    run: Run
    whole: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    def go(self, choose: random.Random, budget: int) -> Generator[Record]:
        """Kill, resume, and so on until it ends; yield each kill.

        At the end every record has its outcome.

        Args:
            choose: Chooses the moments.
            budget: Most kills.

        Raises:
            RuntimeError: If a run that was not killed has another end.
        """
        reached, record = 0, None
        try:
            while True:
                record = self._attempt(choose, reached, len(self.records) < budget)
                if record is None:
                    break
                self.records.append(record)
                yield record
                assert record.resumed_from >= max(reached, record.saved), "a save was lost"
                reached = record.resumed_from
            found = difference(self.whole, read(self.run.last))
            outcome = found or unfinished(self.run.folder) or EXACT
        except Exception as error:  # whatever it is, the run did not come back
            outcome = f"{type(error).__name__}: {error}"
        if outcome != EXACT and not self.records:
            raise RuntimeError(f"two runs without a kill differ: {outcome}")
        for record in self.records:
            record.outcome = outcome

    def _attempt(self, choose: random.Random, reached: int, may_kill: bool) -> Record | None:
        """One attempt; None if the run has ended."""
        kill = moment = None
        may_kill = may_kill and choose.random() >= SPARED
        if may_kill and choose.random() < 0.5 and reached < self.run.steps:
            place = choose.choice([PLACES[0], *PLACES])
            files = 2 * (self.run.steps - reached) // SAVE_EVERY
            kill = Kill(choose.randint(1, files), place, choose.random())
        elif may_kill:
            moment = Moment.drawn(choose, reached, self.run.steps)
        victim = 0 if kill is not None else choose.randrange(self.run.ranks)
        ended = attempt(self.run, kill, moment, victim)
        if not any(ended.codes):
            return None
        if ended.codes[victim] != -9 or not may_kill:
            raise RuntimeError(f"exit codes {ended.codes}; see output-*.txt in {self.run.folder}")
        last = self.run.last
        return Record(
            trial=self.number,
            processes=self.run.ranks,
            rank=victim,
            place=ANY_MOMENT if kill is None else kill.place,
            share=kill.share if kill is not None and kill.place == PLACES[0] else None,
            seconds=round(ended.seconds, 3),
            step=ended.watch.step,
            in_save=ended.watch.saving,
            files=ended.watch.files,
            saved=ended.watch.saved,
            resumed_from=read(last)["global_step"] if last.exists() else 0,
            others=ended.others,
        )


def uninterrupted(run: Run) -> dict[str, Any]:
    """The last checkpoint of a run that nobody kills.

    Raises:
        RuntimeError: If it fails.
    """
    if any(attempt(run, None, None, 0).codes):
        raise RuntimeError(f"the run fails without a kill; see output-*.txt in {run.folder}")
    return read(run.last)


def trials(kills: int, ranks: int, steps: int, seed: int, folder: Path) -> Generator[Record]:
    """Run after run until there have been so many kills; a run that is begun is ended.

    Folders of runs that ended exactly are removed, the others are kept to be looked at.

    Args:
        kills: How many.
        ranks: Processes of each run.
        steps: Optimizer steps of each run.
        seed: Of all that is random.
        folder: For all runs.

    Yields:
        Each kill. It has its outcome when its run is over: at the latest at the end.
    """
    choose, done, number = random.Random(f"{seed}/{ranks}"), 0, 0
    model = Run(ranks, steps, seed, folder / f"whole-{ranks}")
    whole, rates = uninterrupted(model), rates_file(1).parent.name
    while done < kills:
        number += 1
        own = folder / f"{ranks}-{number}"
        # What was measured of the machine decides the rounding; fits are made again.
        shutil.copytree(model.folder / "cache" / rates, own / "cache" / rates)
        trial = Trial(number, Run(ranks, steps, seed, own), whole)
        for record in trial.go(choose, kills - done):
            done += 1
            yield record
        if all(record.outcome == EXACT for record in trial.records):
            shutil.rmtree(own)
