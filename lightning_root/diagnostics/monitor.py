"""The callback that shows what ROOT does while it trains."""

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_root.diagnostics import board, statistics, training
from lightning_root.diagnostics.alerts import Alerts
from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.measurements import aggregates, by_label, per_parameter
from lightning_root.diagnostics.observation import Observation, Observer, gather_observations, merge
from lightning_root.diagnostics.spectrum import Matrix, Shape, matrices_by_shape, pick_matrix
from lightning_root.optim import ROOT

HISTOGRAM_EVERY: Final = 10  # points between histograms
# Matrices whose smaller side is longer have no histograms: their decomposition takes too long
HISTOGRAM_MAX_DIM: Final = 1024
# Points before which heat maps, which take the time of 13 of them, are drawn at the end only
MIN_POINTS: Final = 16
# Factor of growth after which heat maps are drawn anew, so that they cost ever less
GROWTH: Final = 2


class ROOTMonitor(Callback):
    """Logs what ROOT does: how well it orthogonalizes, what it clips, how far it moves.

    At every logging step all matrices are measured within the optimizer's step, and one copy brings
    the numbers to the host. Training is, bit for bit, what it is without this callback.

    In the logs, and for `ModelCheckpoint` and `EarlyStopping` to monitor:
    <LOGGED TAGS>
    and, also where no matrix was updated, `root/skipped`, the updates left out since the last point
    because a gradient was not finite.

    TensorBoard also shows the split of the parameters and the coefficients in use as text,
    histograms of one matrix of each shape in turn (singular values; momentum in units of the
    threshold) at every tenth point, and heat maps by layer and step, drawn after a validation each
    time that the number of points has doubled, and at the end. Its page of custom scalars is
    arranged.

    Args:
        log_every_n_steps: Batches that step between points; None takes the Trainer's.
        per_parameter: Log of each parameter too
            <PARAMETER STATISTICS>,
            such as `root/orth_error/blocks.0.mlp.up.weight`; of one that holds several matrices
            `<parameter>/<number>`, or their mean if they are more than 8.
        pictures: Heat maps and histograms, where a logger can show them.
        alerts: Warn, once for each cause and parameter, of what a person should know: an update
            above the range of its coefficients, momentum that is mostly outliers, an update RMS off
            its target, dead or rank-one momentum, a parameter skipped several times in a row.

    Raises:
        TypeError: If `log_every_n_steps` is not a whole number.
        ValueError: If it is below 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.callbacks import ModelCheckpoint
        >>> from lightning_root.diagnostics import ROOTMonitor
        >>> best = ModelCheckpoint(monitor="root/orth_error/mean", auto_insert_metric_name=False)
        >>> trainer = Trainer(callbacks=[ROOTMonitor(), best], accelerator="cpu")
    """

    def __init__(
        self,
        log_every_n_steps: int | None = None,
        per_parameter: bool = True,
        pictures: bool = True,
        alerts: bool = True,
    ) -> None:
        if log_every_n_steps is not None:
            training.check_whole(
                "log_every_n_steps", log_every_n_steps, 1, "None takes the Trainer's"
            )
        self.log_every_n_steps = log_every_n_steps
        self.per_parameter, self.pictures = per_parameter, pictures
        self.history = History(len(statistics.heat_map_statistics()))
        self._alerts = Alerts() if alerts else None
        self._observers: dict[int, Observer] = {}
        self._due = self._overdue = False
        self._drawn_points = 0
        self._skipped: Counter[str] = Counter()  # as of the last step
        self._skips = 0  # since the last point
        self._coefficients = ""
        self._suppress_errors = training.SuppressLogWriteErrors("ROOTMonitor")

    def state_dict(self) -> dict[str, Any]:
        """Return what the heat maps show."""
        return {"history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the heat maps show; they begin anew if it cannot be read."""
        try:
            self.history.load_state_dict(state_dict["history"])
        except (KeyError, TypeError, ValueError) as error:
            rank_zero_warn(
                "ROOTMonitor: what the checkpoint has for the heat maps is damaged or of another "
                f"version, so they begin anew; nothing else is affected ({error!r})"
            )

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Write the split of the parameters, which are bound and restored by now."""
        optimizers = training.roots_of(trainer)
        if not optimizers:
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            rank_zero_info(
                f"ROOTMonitor has nothing to show: the optimizers are [{names}], no ROOT"
            )
            return
        self._skipped = training.skipped_updates(trainer)
        self._skips, self._coefficients, self._drawn_points = 0, "", self.history.points
        if trainer.is_global_zero:
            text = "\n\n".join(str(optimizer.partition) for optimizer in optimizers)
            with self._suppress_errors:
                board.write_text(trainer.loggers, "root/partition", text, training.step_of(trainer))
                board.write_layout(trainer.loggers, [g for o in optimizers for g in o.param_groups])

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Observe the step that follows if it is to be logged."""
        del pl_module
        every = self._every(trainer)
        self._due |= every > 0 and (training.step_of(trainer) + 1) % every == 0
        if (self._due or self._overdue) and isinstance(optimizer, ROOT):
            earlier = self._observers.pop(id(optimizer), None)
            if earlier is not None:  # the second step of a batch
                earlier.end()
            sampled = self._matrices_to_sample(trainer, optimizer)
            self._observers[id(optimizer)] = Observer(optimizer, sampled)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log what was measured."""
        self._count_skips(trainer)
        if not self._observers:
            return
        seen = merge([observer.end() for observer in self._observers.values()])
        self._observers = {}
        point = gather_observations(seen, trainer.world_size)
        # No matrix was updated: a gradient scaler skipped the step, or ROOT skipped all of them.
        self._overdue = point.measurements is None
        if self._due or not self._overdue:
            self._log(trainer, pl_module, point)
        self._due = False

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Draw the heat maps if they have grown enough since they were drawn last."""
        enough = max(MIN_POINTS, GROWTH * self._drawn_points)
        if trainer.validating and self.history.points >= enough:
            self._draw_heat_maps(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Log the updates left out since the last point; draw the heat maps of the whole run."""
        if self._skips:
            self._log_numbers(trainer, {statistics.SKIPPED: float(self._skips)})
        if self.history.points > self._drawn_points:
            self._draw_heat_maps(trainer)

    def on_exception(self, *_: Any) -> None:
        """Leave no hook in the optimizer."""
        for observer in self._observers.values():
            observer.end()
        self._observers = {}

    def _every(self, trainer: Trainer) -> int:
        """Return the number of steps between points."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval if self.log_every_n_steps is None else self.log_every_n_steps

    def _matrices_to_sample(self, trainer: Trainer, optimizer: ROOT) -> dict[Shape, Matrix]:
        """Return the matrices whose turn it is to have histograms; the same on every rank."""
        turn, rest = divmod(
            (training.step_of(trainer) + 1) // self._every(trainer) - 1, HISTOGRAM_EVERY
        )
        if not self.pictures or rest or not trainer.loggers:
            return {}
        found = matrices_by_shape(optimizer, optimizer.param_groups)
        small = {shape: names for shape, names in found.items() if shape[0] <= HISTOGRAM_MAX_DIM}
        return {shape: pick_matrix(names, turn) for shape, names in small.items()}

    def _count_skips(self, trainer: Trainer) -> None:
        skipped = training.skipped_updates(trainer)
        if skipped != self._skipped or self._alerts is not None:
            new = skipped - self._skipped
            self._skipped = skipped
            self._skips += new.total()
            if self._alerts is not None:
                self._alerts.count_skips(new)

    def _log(self, trainer: Trainer, pl_module: LightningModule, point: Observation) -> None:
        found = point.measurements
        watched = {} if found is None else aggregates(found)
        names = training.parameter_names(trainer)
        labelled = {} if found is None else by_label(found, names)
        watched[statistics.SKIPPED] = torch.tensor(float(self._skips))
        self._skips = 0
        # Not by Lightning's own way to the loggers, which is open at its own logging steps alone.
        pl_module.log_dict(watched, logger=False, on_step=True, on_epoch=False, batch_size=1)
        numbers = {tag: float(value) for tag, value in watched.items()}
        if self.per_parameter:
            numbers = {**per_parameter(labelled), **numbers}
        for optimizer in training.roots_of(trainer):
            for name, (lr, decay) in optimizer.rates().items():
                numbers |= {f"root/lr/{name}": float(lr), f"root/weight_decay/{name}": decay}
        self._log_numbers(trainer, numbers)
        if found is None:
            return
        step = training.step_of(trainer)
        if self.pictures:
            rows = [
                statistics.row_of(statistic.name) for statistic in statistics.heat_map_statistics()
            ]
            drawn = {label: column[rows] for label, column in labelled.items()}
            self.history.add(step, drawn)
        if trainer.is_global_zero:
            with self._suppress_errors:
                self._write_samples(trainer, point, step)
        if self._alerts is not None:
            self._alerts.check(point)

    def _log_numbers(self, trainer: Trainer, numbers: Mapping[str, float]) -> None:
        with self._suppress_errors:
            for logger in trainer.loggers:
                logger.log_metrics(dict(numbers), step=training.step_of(trainer))

    def _write_samples(self, trainer: Trainer, point: Observation, step: int) -> None:
        """Write histograms, and the coefficients in use when they are new."""
        board.write_histograms(trainer.loggers, point.samples, step)
        in_use = {(*info.shape, str(info.coefficients)) for info in point.infos}
        text = "\n".join(f"{m} x {n}: {coefficients}" for m, n, coefficients in sorted(in_use))
        if text != self._coefficients:
            board.write_text(trainer.loggers, "root/coefficients", text, step)
            self._coefficients = text

    def _draw_heat_maps(self, trainer: Trainer) -> None:
        self._drawn_points = self.history.points
        if trainer.is_global_zero:
            with self._suppress_errors:
                board.write_heat_maps(trainer.loggers, self.history)


def _fill_in(text: str) -> str:
    """Write what the table of statistics says into the docstring."""
    tags = textwrap.fill(
        statistics.logged_tags(), 100, initial_indent=" " * 4, subsequent_indent=" " * 4
    )
    names = statistics.parameter_statistics()
    return text.replace("    <LOGGED TAGS>", tags).replace("<PARAMETER STATISTICS>", names)


if ROOTMonitor.__doc__:  # `python -OO` has none
    ROOTMonitor.__doc__ = _fill_in(ROOTMonitor.__doc__)
