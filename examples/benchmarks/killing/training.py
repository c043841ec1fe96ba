"""The training that is killed: one process, or one rank of several.

A tiny GPT on Python's own source, with everything on that has state: momentum, schedule, monitor,
refit, coefficients that are fitted and cached, checkpoints every few steps.
"""

import io
import json
import os
import signal
import warnings
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from examples.gpt import GPT
from examples.stdlib_text import StdlibText
from lightning_root import AtomicCheckpointIO, ROOTMixin, ROOTMonitor
from lightning_root.diagnostics import ROOTRefit

SAVE_EVERY: Final = 2
"""Steps between checkpoints, each of which is two files."""

PLACES: Final = ("bytes", "before the rename", "after the rename")
"""Where in a save a process may end itself."""


class Kill(NamedTuple):
    """A moment inside the writing of a checkpoint.

    Args:
        file: Which file that this attempt writes, from 1.
        place: One of `PLACES`.
        share: Of the bytes that are written by then, where `place` is "bytes".
    """

    file: int
    place: str
    share: float


class Attempt(NamedTuple):
    """What one process is to do.

    Args:
        folder: Of the run: checkpoints, logs, cache.
        steps: Optimizer steps of the whole run.
        seed: Of the run.
        rank: Of this process.
        ranks: How many there are.
        meeting: File where ranks find each other; a new one for each attempt.
        resume: Checkpoint to go on from; None begins anew.
        kill: When to end itself; None does not.
    """

    folder: Path
    steps: int
    seed: int
    rank: int
    ranks: int
    meeting: Path
    resume: Path | None
    kill: Kill | None


class Watch:
    """What the killer sees of a process: numbers in shared memory, which outlive it.

    Args:
        numbers: Steps done, files written or begun, step of the last whole `last.ckpt`, and whether
            a file is being written.
    """

    SIZE: Final = 4

    def __init__(self, numbers: MutableSequence[int]) -> None:
        self.numbers = numbers

    @property
    def step(self) -> int:
        """Steps done; -1 before the first is begun."""
        return self.numbers[0] - 1

    @step.setter
    def step(self, value: int) -> None:
        self.numbers[0] = value + 1

    @property
    def files(self) -> int:
        """Checkpoint files begun."""
        return self.numbers[1]

    @property
    def saved(self) -> int:
        """Step of the last `last.ckpt` whose writing has ended; 0 if there is none."""
        return self.numbers[2]

    @property
    def saving(self) -> bool:
        """Whether a checkpoint file is being written."""
        return bool(self.numbers[3])


class Mortal(AtomicCheckpointIO):
    """Writes checkpoints as its parent does, and ends the process within the one it was told.

    Args:
        watch: Where it says what it does.
        kill: When; None never.
    """

    def __init__(self, watch: Watch, kill: Kill | None) -> None:
        self.watch, self.kill = watch, kill

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        numbers = self.watch.numbers
        numbers[1] += 1
        numbers[3] = 1
        if self.kill is not None and self.watch.files == self.kill.file:
            with dying(self.kill):
                super().save_checkpoint(checkpoint, path, storage_options)
        super().save_checkpoint(checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            numbers[2] = checkpoint["global_step"]
        numbers[3] = 0


@contextmanager
def dying(kill: Kill) -> Iterator[None]:
    """Have the next file that is written be this process's last."""
    save, replace = torch.save, os.replace

    def save_some(content: Any, target: Path) -> None:
        whole = io.BytesIO()
        save(content, whole)
        target.write_bytes(whole.getvalue()[: int(kill.share * whole.tell())])
        end_here()

    def rename_and_end(source: Path, target: Path) -> None:
        if kill.place == "after the rename":
            replace(source, target)
        end_here()

    if kill.place == "bytes":
        torch.save = save_some  # type: ignore[assignment]
    else:
        os.replace = rename_and_end  # type: ignore[assignment]
    yield


def end_here() -> NoReturn:
    """SIGKILL: nothing is flushed, closed or cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody outlives SIGKILL")


class TinyGPT(ROOTMixin, GPT):
    """So narrow that no table has its shapes: their coefficients are fitted and cached."""

    root_options: ClassVar[dict[str, Any]] = {"lr": 1e-2, "warmup_steps": 4}

    def __init__(self) -> None:
        super().__init__(depth=2, width=6, heads=3, context=16)


class Steps(L.Callback):
    """Says how far it is."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.watch.step = trainer.global_step


def train_here(attempt: Attempt, numbers: MutableSequence[int]) -> None:
    """Be one process of the run, from the checkpoint to the end unless it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the killer, who ends this one
    attempt.folder.mkdir(parents=True, exist_ok=True)
    with (attempt.folder / f"output-{attempt.rank}.txt").open("a", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["LIGHTNING_ROOT_CACHE"] = str(attempt.folder / "cache")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    train(attempt, Watch(numbers))


def train(attempt: Attempt, watch: Watch) -> None:
    """Train as anybody would."""
    L.seed_everything(attempt.seed, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=attempt.ranks,
        strategy=strategy_of(attempt),
        max_steps=attempt.steps,
        max_epochs=-1,
        log_every_n_steps=2,
        limit_val_batches=0,
        logger=TensorBoardLogger(attempt.folder, name="", version=""),
        callbacks=[
            ROOTMonitor(),
            ROOTRefit(every_n_steps=3, min_gain=0.02),
            Steps(watch),
            ModelCheckpoint(
                attempt.folder,
                filename="{step}",
                every_n_train_steps=SAVE_EVERY,
                save_top_k=1,
                save_last=True,
                enable_version_counter=False,
            ),
        ],
        plugins=[Mortal(watch, attempt.kill)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    source = str(Path(json.__file__).parent)
    text = StdlibText(batch_size=2, validation_windows=2, root=source)
    trainer.fit(TinyGPT(), text, ckpt_path=attempt.resume, weights_only=True)


def strategy_of(attempt: Attempt) -> Strategy | str:
    """DDP over gloo where there are several ranks, which meet by a file: no port is taken."""
    if attempt.ranks == 1:
        return SingleDeviceStrategy("cpu")
    names = {"RANK": attempt.rank, "LOCAL_RANK": attempt.rank, "WORLD_SIZE": attempt.ranks}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group(
        "gloo", init_method=attempt.meeting.as_uri(), rank=attempt.rank, world_size=attempt.ranks
    )
    return DDPStrategy(process_group_backend="gloo")
