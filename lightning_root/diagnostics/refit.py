"""The callback that refits ROOT's coefficients to the run's own momentum while it trains."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_root.coefficients.shapes import shape_text
from lightning_root.diagnostics.adaptation import MAX_FIT_STEPS, Adaptation, FitResult, refittable
from lightning_root.diagnostics.spectrum import Shape, SpectrumCapture, matrices_by_shape
from lightning_root.diagnostics.training import SuppressLogWriteErrors, check_whole, roots_of
from lightning_root.optim import ROOT

BUDGET: Final = 0.01  # share of the run's time beyond which the last message advises an interval


class ROOTRefit(Callback):
    """Fits ROOT's coefficients to the run's own momentum, while it trains.

    Every `every_n_steps` optimizer steps the singular values of one matrix of each shape are
    captured, of another one each time. Where a schedule that is known already does better on them
    than the coefficients in use, a new one is fitted, for one shape at a time, and used if it keeps
    the promise. This is the paper's "jointly optimized during training" (arXiv:2511.20626,
    Sec. 3.2). As long as nothing is replaced the run is, bit for bit, the run without this
    callback. Nothing depends on the clock, so that a resumed run is the uninterrupted one; what was
    replaced is in the optimizer's state. All ranks take the fits of rank zero.

    Parameter groups whose `coefficients` are "adaptive" are refitted, or a file or a mapping that
    leaves "adaptive" to other shapes. Coefficients that the user chose stay.

    In the logs, per shape: `root/coefficients/192x768/error`, the mean of (sigma - 1)^2 after the
    orthogonalization of the captured momentum, and at a fit `.../error_before`.

    Args:
        every_n_steps: Optimizer steps between captures. A capture takes milliseconds for small
            matrices (see `max_dim`), a fit less than a second of one CPU core, and there is at most
            one per capture, mostly none. Spectra move fast before step 50, little after step 100.
        min_gain: By which share of it the error must fall for a fit to be made and used, in [0, 1];
            with 1 there is none.
        captured_share: Weight of the captured spectrum in what is fitted to, in (0, 1]; the rest is
            the Gaussian law, for the case that momentum turns into noise. 3 % are log-uniform.
        max_dim: Matrices whose smaller side is longer are not captured. The time grows with its
            cube: 0.1 s of one CPU core for 768 x 3072, 0.6 s for 2048 x 2048, 4 s for 4096 x 4096.
        save: At the end, write `spectra.json` (what was captured) and `coefficients.json` (what was
            fitted; the file may be given as ROOT's `coefficients`) beside the logs.

    Raises:
        ValueError: If an option is out of range; or, when training starts, if the Trainer has not
            exactly one ROOT or more than one of these callbacks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_root.diagnostics import ROOTRefit
        >>> trainer = Trainer(callbacks=[ROOTRefit(every_n_steps=50)], accelerator="cpu")
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        min_gain: float = 0.1,
        captured_share: float = 0.75,
        max_dim: int = 4096,
        save: bool = True,
    ) -> None:
        check_whole("every_n_steps", every_n_steps, 1, "100 is the default")
        check_whole("max_dim", max_dim, 2, "4096 is the default")
        if not 0.0 <= min_gain <= 1.0:
            raise ValueError(f"`min_gain` must be in [0, 1], got {min_gain}; 0.1 is the default")
        if not 0.0 < captured_share <= 1.0:
            raise ValueError(
                f"`captured_share` must be in (0, 1], got {captured_share}; 0.75 is the default"
            )
        self.every_n_steps, self.save = every_n_steps, save
        self.adaptation = Adaptation(min_gain, captured_share, max_dim)
        self.steps = 0  # optimizer steps begun
        self._capture: SpectrumCapture | None = None
        self._seconds = 0.0
        self._started = time.perf_counter()
        self._suppress_errors = SuppressLogWriteErrors("ROOTRefit")

    def state_dict(self) -> dict[str, Any]:
        """Return counts and histograms; the coefficients are in the optimizer's state."""
        return {"steps": self.steps, **self.adaptation.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counts and histograms.

        Raises:
            ValueError: If they are damaged or of another version.
        """
        try:
            steps = int(state_dict["steps"])
            self.adaptation.load_state_dict(state_dict)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint's state of `ROOTRefit` is damaged or of another version "
                f"({error!r}). Go on without this callback: the coefficients in use are in the "
                "optimizer's state"
            ) from error
        self.steps = steps

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """Raise ValueError unless there is one ROOT to adapt, and one callback that does it."""
        _root_of(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        count = sum(isinstance(callback, ROOTRefit) for callback in callbacks)
        if count > 1:
            raise ValueError(f"the Trainer has {count} `ROOTRefit` callbacks; keep one of them")

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock and warn of what is left alone; a checkpoint has been restored by now."""
        self._seconds, self._started = 0.0, time.perf_counter()
        if self.steps == 0:  # the callback is new, but the run may not be
            self.steps = trainer.global_step // len(trainer.optimizers)
        _warn_of_others(_root_of(trainer))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Every so often, capture spectra in the step that follows."""
        del pl_module
        if not isinstance(optimizer, ROOT):
            return
        self._end_capture()
        self.steps += 1
        if self.steps % self.every_n_steps == 0:
            matrices = self.adaptation.next_matrices(optimizer)
            if matrices:
                # Done within `step`, so that whoever saves a checkpoint after it saves the result.
                then = partial(self._adapt, trainer, optimizer)
                self._capture = SpectrumCapture(optimizer, matrices, then)

    def on_train_batch_end(self, *_: Any) -> None:
        """Leave no hook in the optimizer, not even where a gradient scaler skipped the step."""
        self._end_capture()

    def on_exception(self, *_: Any) -> None:
        """Leave no hook in the optimizer."""
        self._end_capture()

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the files; say what was done and what it cost."""
        files = self._write(trainer)
        done = self.adaptation
        share = self._seconds / max(time.perf_counter() - self._started, 1e-9)
        share = min(max(share, 0.0), 0.99)  # clocks may jump
        text = (
            f"ROOTRefit: captures {done.captures}, fits {done.fits}, of them used {done.swaps}; "
            f"{self._seconds:.1f} s, {100 * share:.1f} % of the time"
        )
        if share > BUDGET:
            times = share / (1.0 - share) * (1.0 - BUDGET) / BUDGET
            enough = 10 * math.ceil(self.every_n_steps * times / 10)
            text += f" (`every_n_steps={enough}` would keep it at {100 * BUDGET:g} %)"
        rank_zero_info(text + files)

    def _end_capture(self) -> None:
        if self._capture is not None:
            self._capture.end()
            self._capture = None

    def _adapt(self, trainer: Trainer, optimizer: ROOT, capture: SpectrumCapture) -> None:
        """Count what was captured, fit the shape that is due, log."""
        began = time.perf_counter()
        found = _gather_spectra(trainer, capture.found)
        self.adaptation.add(found)
        scalars = {}
        shape = self.adaptation.shape_to_fit(optimizer)
        if shape is not None:
            scalars[f"{_tag(shape)}/error_before"] = self._refit(trainer, optimizer, shape)
        for shape in found:
            scalars[f"{_tag(shape)}/error"] = self.adaptation.error(optimizer, shape)
        with self._suppress_errors:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=self.steps)
        self._seconds += capture.seconds + time.perf_counter() - began

    def _refit(self, trainer: Trainer, optimizer: ROOT, shape: Shape) -> float:
        """Fit one shape on rank zero, swap on all if it is worth it; return the error before."""
        fitted = self.adaptation.fit(optimizer, shape) if trainer.is_global_zero else None
        result: FitResult | None = trainer.strategy.broadcast(fitted)
        assert result is not None
        if self.adaptation.apply_fit(optimizer, shape, result):
            outcome = f" -> {result.error:.2g} with new coefficients"
        else:
            outcome = f", coefficients kept (a fit gives {result.error:.2g})"
        rank_zero_info(
            f"{shape_text(shape)}: error on captured momentum {result.error_before:.2g}{outcome}, "
            f"step {self.steps}"
        )
        return result.error_before

    def _write(self, trainer: Trainer) -> str:
        """Write the files if there is something to write, and return where, in words."""
        if not self.save or not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return ""
        folder = trainer.log_dir  # a collective: every rank asks
        if folder is None or not trainer.is_global_zero:
            return ""
        try:
            names = self.adaptation.write(Path(folder), _root_of(trainer))
        except OSError as error:  # a full disk takes nothing from a run that is over
            rank_zero_warn(f"ROOTRefit could not write what it captured and fitted: {error}")
            return ""
        return f". In {folder}: {', '.join(names)}" if names else ""


def _root_of(trainer: Trainer) -> ROOT:
    """Return the only ROOT of the Trainer; raise ValueError unless there is exactly one."""
    found = roots_of(trainer)
    if len(found) != 1:
        others = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        raise ValueError(
            f"`ROOTRefit` needs a Trainer with one ROOT, but its optimizers are [{others}]. Train "
            "with ROOT (`ROOTMixin`, or `--optimizer ROOT`), or take this callback out"
        )
    return found[0]


def _warn_of_others(optimizer: ROOT) -> None:
    """Warn of the groups whose coefficients stay as they are."""
    refitted = {id(group) for group in refittable(optimizer)}
    others = [
        f"`{group.get('name', f'group {number}')}` ({group['coefficients']!r}, "
        f"{group['ns_steps']} steps)"
        for number, group in enumerate(optimizer.param_groups)
        if id(group) not in refitted and matrices_by_shape(optimizer, [group])
    ]
    if others:
        rank_zero_warn(
            f"ROOTRefit leaves the coefficients of {', '.join(others)} alone: it refits "
            f'`coefficients="adaptive"` with one number of steps, at most {MAX_FIT_STEPS}'
        )


def _gather_spectra(trainer: Trainer, found: dict[Shape, Tensor]) -> dict[Shape, Tensor]:
    """Return what any rank has captured; of the same matrix on several, the lowest one's values."""
    if trainer.world_size == 1:
        return found
    everywhere: list[dict[Shape, Tensor]] = [{} for _ in range(trainer.world_size)]
    dist.all_gather_object(everywhere, found)
    merged: dict[Shape, Tensor] = {}
    for part in reversed(everywhere):
        merged.update(part)
    return {shape: merged[shape] for shape in sorted(merged)}


def _tag(shape: Shape) -> str:
    return f"root/coefficients/{shape_text(shape)}"
