"""The summary of a run: what it reached, how fast, and where its files are."""

import os
import time
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

# The first steps allocate memory and compile kernels; they say nothing about speed
WARMUP_STEPS = 5
Row = tuple[str, str]  # label, value


class RunSummary(Callback):
    """Print a block of plain text when `fit` has ended well: metrics, speed, files.

    It goes the way of Lightning's own messages (the logger `lightning.pytorch`, rank zero alone),
    so what silences those silences this. A run that an exception or Ctrl+C ends prints none.

    Speed counts training alone: a step that contains or follows a validation or the writing of a
    checkpoint is left out, and so are the first 5 steps. The best value survives a resume.

    A datamodule may add to the block: if it has a method `summary_lines() -> list[str]`, each line
    `label: value` becomes a row.

    Args:
        monitor: Validation metric whose best value and step are shown.
        mode: Whether the best is the least (`min`) or the greatest (`max`) value.

    Raises:
        ValueError: If `mode` is neither `min` nor `max`.

    Example:
        >>> from lightning_root.diagnostics import RunSummary
        >>> RunSummary(monitor="val/accuracy", mode="max").state_dict()
        {'best_value': None, 'best_step': 0}
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'`mode` must be "min" or "max", got {mode!r}; a loss wants "min"')
        self.monitor, self.mode = monitor, mode
        self.best_value: float | None = None
        self.best_step = 0
        self._started = time.monotonic()
        self._first_step = 0  # `global_step` when this fit began: above zero after a resume
        self._last_step = 0  # `global_step` at the end of the latest batch
        self._mark: float | None = None  # when that batch ended; None if the next is not timed
        self._timed_seconds = 0.0
        self._timed_steps = 0

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint; one per metric."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its step."""
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far and its step."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where this fit begins."""
        self._first_step = self._last_step = trainer.global_step
        self._mark, self._timed_seconds, self._timed_steps = None, 0.0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the time since the end of the previous batch."""
        now, steps = time.monotonic(), trainer.global_step
        if self._mark is not None and self._last_step >= self._first_step + WARMUP_STEPS:
            self._timed_seconds += now - self._mark
            self._timed_steps += steps - self._last_step
        self._mark, self._last_step = now, steps

    def on_validation_start(self, *_: Any) -> None:
        """Leave the step that follows out of the timing."""
        self._mark = None

    def on_save_checkpoint(self, *_: Any) -> None:
        """Leave the step that follows out of the timing."""
        self._mark = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best value of the monitored metric."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        # A NaN is never better, and anything is better than none.
        if value == value and (self.best_value is None or sign * value < sign * self.best_value):
            self.best_value, self.best_step = value, trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the block. Lightning calls this hook only if `fit` ran to its end."""
        if trainer.is_global_zero:
            rows = [*self._metrics(trainer), *_data(trainer), *self._speed(trainer)]
            sizes = [(each.numel(), each.requires_grad) for each in pl_module.parameters()]
            total = sum(size for size, _ in sizes)
            trainable = sum(size for size, is_trained in sizes if is_trained)
            frozen = f", {trainable:,} of them trainable" if trainable < total else ""
            rows += [("parameters", f"{total:,}{frozen}"), *_files(trainer)]
            rank_zero_info(format_block("Run summary", rows))

    def _metrics(self, trainer: pl.Trainer) -> list[Row]:
        rows = []
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith("val"):
                text = f"{float(value):.4f}"
                if name == self.monitor and self.best_value is not None:
                    text += f" (best {self.best_value:.4f} at step {self.best_step})"
                rows.append((name, text))
        return rows or [("validation", "none ran")]

    def _speed(self, trainer: pl.Trainer) -> list[Row]:
        steps = f"{trainer.global_step}"
        if self._first_step:
            steps += f", {trainer.global_step - self._first_step} of them in this run"
        speed = f"not measured, needs more than {WARMUP_STEPS} steps"
        if self._timed_steps:
            rate = self._timed_steps / self._timed_seconds
            digits = f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"
            speed = f"{digits} (training alone, without the first {WARMUP_STEPS})"
        total = timedelta(seconds=round(time.monotonic() - self._started))
        return [("optimizer steps", steps), ("steps per second", speed), ("total time", str(total))]


def _data(trainer: pl.Trainer) -> list[Row]:
    """Return the summary lines of the datamodule, if it has any."""
    summary_lines = getattr(getattr(trainer, "datamodule", None), "summary_lines", list)
    parts = [line.partition(": ") for line in summary_lines()]
    return [(label, value) for label, _, value in parts]


def _files(trainer: pl.Trainer) -> list[Row]:
    """Return where the run's files are, and how to look at them."""
    rows = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            paths = {
                "best checkpoint": callback.best_model_path if callback.monitor else "",
                "last checkpoint": callback.last_model_path or callback.best_model_path,
            }
            rows += [(label, _short(path)) for label, path in paths.items() if path]
    for logger in trainer.loggers:
        folder = logger.log_dir or logger.save_dir
        if folder:
            rows.append(("log folder", _short(folder)))
        if isinstance(logger, TensorBoardLogger):
            rows.append(("to see the curves", f"tensorboard --logdir {_short(logger.root_dir)}"))
    return rows


def _short(path: str) -> str:
    """Write `path` relative to the current folder if it lies below it."""
    if "://" in path:  # a bucket, not a folder
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def format_block(title: str, rows: list[Row]) -> str:
    """Return a title and `rows` in two aligned columns, with an empty line before and after."""
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {value}" for label, value in rows]
    return "\n".join(["", title, *lines, ""])
