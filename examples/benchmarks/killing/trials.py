"""Who kills and resumes the training, and checks what is left."""

import random
import shutil
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from examples.benchmarks.killing.training import PLACES, SAVE_EVERY, Attempt, Kill, Watch, train_here
from examples.sweeps.processes import fresh_processes

GRACE: Final = 10.0
"""Seconds that the other ranks have to notice that one is dead, before they are ended too."""

PATIENCE: Final = 300.0
"""Seconds after which an attempt hangs, which is a loss."""

IGNORED: Final = ("ModelCheckpoint",)
"""Callbacks whose state names files by their paths, which differ from folder to folder."""


@dataclass
class Record:
    """One kill, as it stands in the results."""

    trial: int
    processes: int
    rank: int
    place: str
    share: float | None
    seconds: float
    step: int
    in_save: bool
    files_written: int
    saved: int
    resumed_from: int
    others: str
    outcome: str = "not known"


@dataclass
class Trial:
    """One run, killed and resumed until it ends.

    Args:
        number: In the results.
        ranks: Processes.
        steps: Optimizer steps.
        seed: Of the run.
        folder: For its files.
        whole: The uninterrupted run's last checkpoint, and the seconds that it took.
        records: Its kills so far.
    """

    number: int
    ranks: int
    steps: int
    seed: int
    folder: Path
    whole: tuple[dict[str, Any], float]
    records: list[Record] = field(default_factory=list)

    @property
    def last(self) -> Path:
        """Where the run goes on from."""
        return self.folder / "last.ckpt"

    def run(self, random_numbers: random.Random, budget: int) -> Generator[Record]:
        """Kill, resume, and so on until it ends; yield each kill.

        At the end every record has its outcome.

        Args:
            random_numbers: Choose the moments.
            budget: Most kills.
        """
        reached, again = 0, True
        try:
            while again:
                again = False
                for record in self._attempt(random_numbers, reached, len(self.records) < budget):
                    self.records.append(record)
                    assert record.resumed_from >= max(reached, record.saved), "a save was lost"
                    reached, again = record.resumed_from, True
                    yield record
            outcome = difference(self.whole[0], read(self.last)) or "exact"
        except (AssertionError, RuntimeError, OSError) as error:
            outcome = f"lost: {error}"
        for record in self.records:
            record.outcome = outcome

    def _attempt(self, choose: random.Random, reached: int, may_kill: bool) -> Generator[Record]:
        """One attempt; yields the kill if there was one."""
        kill = moment = None
        if may_kill and choose.random() < 0.5:
            place = choose.choice([PLACES[0], *PLACES])
            files = max(1, 2 * (self.steps - reached) // SAVE_EVERY)
            kill = Kill(choose.randint(1, files), place, choose.random())
        elif may_kill:
            moment = choose.random() * (self.whole[1] + 1.0) * (1.2 - reached / self.steps)
        victim = 0 if kill is not None else choose.randrange(self.ranks)
        watch, codes, others, seconds = attempt(self, kill, moment, victim)
        if all(code == 0 for code in codes):
            return
        if codes[victim] != -9:
            raise RuntimeError(f"exit codes {codes}; see output-*.txt in {self.folder}")
        yield Record(
            trial=self.number,
            processes=self.ranks,
            rank=victim,
            place="any moment" if kill is None else kill.place,
            share=kill.share if kill is not None and kill.place == PLACES[0] else None,
            seconds=seconds,
            step=watch.step,
            in_save=watch.saving,
            files_written=watch.files,
            saved=watch.saved,
            resumed_from=read(self.last)["global_step"] if self.last.exists() else 0,
            others=others,
        )


def attempt(
    trial: Trial, kill: Kill | None, moment: float | None, victim: int
) -> tuple[Watch, list[int], str, float]:
    """Start the processes, and kill the victim if it has not ended by the moment.

    Args:
        trial: Which run.
        kill: When the first rank ends itself; None does not.
        moment: Seconds from the start after which the victim is killed; None never.
        victim: Its rank.

    Returns:
        What the first rank has told, all exit codes, how the other ranks ended, seconds.

    Raises:
        RuntimeError: If it hangs.
    """
    context = fresh_processes()
    numbers = context.RawArray("l", Watch.SIZE)
    spare = context.RawArray("l", Watch.SIZE)
    trial.folder.mkdir(parents=True, exist_ok=True)
    meeting = trial.folder / f"meeting-{len(trial.records)}"
    resume = trial.last if trial.last.exists() else None
    common = partial(Attempt, trial.folder, trial.steps, trial.seed)
    processes = [
        context.Process(
            target=train_here,
            args=(
                common(rank, trial.ranks, meeting, resume, kill if rank == 0 else None),
                numbers if rank == 0 else spare,
            ),
        )
        for rank in range(trial.ranks)
    ]
    start = time.perf_counter()
    try:
        for process in processes:
            process.start()
        wait([processes[victim].sentinel], PATIENCE if moment is None else moment)
        if moment is not None:
            processes[victim].kill()  # nothing happens if it has ended
        processes[victim].join(PATIENCE)
        seconds = time.perf_counter() - start
        if processes[victim].exitcode is None:
            raise RuntimeError(f"it hangs; see output-*.txt in {trial.folder}")
        for process in processes:
            process.join(GRACE)
        others = ", ".join(
            _ended(process) for rank, process in enumerate(processes) if rank != victim
        )
    finally:
        for process in processes:
            process.kill()
            process.join()
    return Watch(numbers), [process.exitcode for process in processes], others, seconds


def _ended(process: Any) -> str:
    """How another rank ended once the victim was dead."""
    if process.exitcode is None:
        return "had to be ended"
    return "ended well" if process.exitcode == 0 else "ended with an error"


def uninterrupted(ranks: int, steps: int, seed: int, folder: Path) -> tuple[dict[str, Any], float]:
    """The last checkpoint of the run that nobody kills, and its seconds.

    Raises:
        RuntimeError: If it fails.
    """
    trial = Trial(0, ranks, steps, seed, folder, ({}, 0.0))
    _, codes, _, seconds = attempt(trial, None, None, 0)
    if any(codes):
        raise RuntimeError(f"the run fails without a kill; see output-*.txt in {folder}")
    return read(trial.last), seconds


def trials(
    kills: int, ranks: int, steps: int, seed: int, folder: Path
) -> Generator[tuple[Record, Trial]]:
    """Run after run until there have been so many kills; a run that is begun is ended.

    Folders of runs that ended exactly are removed, the others are kept to be looked at.

    Args:
        kills: How many.
        ranks: Processes of each run.
        steps: Optimizer steps of each run.
        seed: Of all that is random.
        folder: For all runs.

    Yields:
        Each kill with its run, which is over once the next one comes.
    """
    choose, done, number = random.Random(f"{seed}/{ranks}"), 0, 0
    whole = uninterrupted(ranks, steps, seed, folder / f"whole-{ranks}")
    while done < kills:
        number += 1
        own = folder / f"{ranks}-{number}"
        # What was measured of the machine decides the rounding; fits are made again.
        shutil.copytree(folder / f"whole-{ranks}" / "cache" / "rates-1", own / "cache" / "rates-1")
        trial = Trial(number, ranks, steps, seed, own, whole)
        for record in trial.run(choose, kills - done):
            done += 1
            yield record, trial
        if all(record.outcome == "exact" for record in trial.records):
            shutil.rmtree(own)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, without running anything that is in it."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first place where two checkpoints are not bitwise the same; empty if there is none."""
    return next(_differences(_comparable(expected), _comparable(found), ""), "")


def _comparable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    callbacks = checkpoint.get("callbacks", {})
    kept = {name: state for name, state in callbacks.items() if not name.startswith(IGNORED)}
    return {**checkpoint, "callbacks": kept}


def _differences(expected: Any, found: Any, where: str) -> Generator[str]:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if expected.keys() != found.keys():
            yield f"{where}: {sorted(map(str, expected.keys() ^ found.keys()))}"
        for key in expected.keys() & found.keys():
            yield from _differences(expected[key], found[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} and {len(found)} entries"
        for number, pair in enumerate(zip(expected, found, strict=False)):
            yield from _differences(*pair, f"{where}/{number}")
    elif isinstance(expected, Tensor) and isinstance(found, Tensor):
        if expected.dtype != found.dtype or not torch.equal(bits(expected), bits(found)):
            yield f"{where}: {expected} and {found}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{where}: {expected!r} and {found!r}"


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: a NaN is then equal to itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
