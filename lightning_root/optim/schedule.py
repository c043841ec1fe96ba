"""Warm-up, then decay, counted in optimizer steps."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, Final, Literal, TypeAlias, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

ScheduleName: TypeAlias = Literal["cosine", "linear", "constant"]

PAPER_WARMUP = 2000
"""Warm-up steps of the paper's runs (arXiv:2511.20626, Sec. 4)."""


PER_GROUP: Final = (
    *("base_lrs", "_last_lr", "lr_lambdas", "min_lrs"),
    *("max_lrs", "base_momentums", "max_momentums"),
)
"""Lists in the states of torch's schedules that have one value for each group."""


def for_groups(state: dict[str, Any], before: int, places: Sequence[int]) -> dict[str, Any]:
    """Return the state of a schedule of so many groups for those that they have become."""
    kept = dict(state)
    for key, value in state.items():
        if key in PER_GROUP and isinstance(value, list) and len(value) == before:
            kept[key] = [value[place] for place in places]
        elif key == "_schedulers":  # within SequentialLR and ChainedScheduler
            kept[key] = [for_groups(part, before, places) for part in value]
    return kept


class WarmupDecayLR(LRScheduler):
    """Linear warm-up to each group's learning rate, then decay to `min_lr_ratio` of it.

    To be stepped after every optimizer step. `ROOTCLI`, `ROOTMixin`, `ROOTBinder` and the factory
    `configure_optimizers` see to that, and fill in `max_steps` from the Trainer, also within
    torch's `SequentialLR` and `ChainedScheduler`: there too it is the length of the whole run.
    With `ROOTBinder` that is so under manual optimization, unless the module steps the schedule
    itself. Groups that are added to the optimizer later keep the learning rate that they are given.

    Args:
        optimizer: The optimizer whose learning rates are set.
        warmup_steps: Steps until the full learning rate. Default: 2000 as in the paper, but at most
            a tenth of `max_steps`. A given value is cut to that tenth where it exceeds `max_steps`.
        max_steps: Step at which the decay ends; the learning rate stays there afterwards. Default:
            the length of the run, set through `resolve`.
        schedule: Shape of the decay: "cosine", "linear", or "constant" for none.
        min_lr_ratio: Final learning rate as a share of the full one, in [0, 1].
        last_epoch: Index of the last step when resuming without a checkpoint.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from lightning_root import WarmupDecayLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = WarmupDecayLR(optimizer, warmup_steps=2, max_steps=6)
        >>> rates = []
        >>> for _ in range(7):
        ...     rates.append(round(scheduler.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.868, 0.55, 0.232, 0.1]
    """

    _CONFIGURATION = (
        *("warmup_steps", "max_steps", "schedule", "min_lr_ratio"),
        *("_given_warmup", "_ends_with_run"),
    )

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int | None = None,
        max_steps: int | None = None,
        schedule: ScheduleName = "cosine",
        min_lr_ratio: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be >= 0 or None, got {warmup_steps}")
        if schedule not in get_args(ScheduleName):
            raise ValueError(
                f"`schedule` must be one of {list(get_args(ScheduleName))}, got {schedule!r}"
            )
        if not 0.0 <= min_lr_ratio <= 1.0:
            raise ValueError(f"`min_lr_ratio` must be in [0, 1], got {min_lr_ratio}; 0.1 is usual")
        self.warmup_steps = self._given_warmup = warmup_steps
        self.max_steps: int | None = None
        self._ends_with_run = max_steps is None
        self.schedule = schedule
        self.min_lr_ratio = min_lr_ratio
        if max_steps is not None:
            self._set_length(max_steps)
        super().__init__(optimizer, last_epoch)

    def resolve(self, max_steps: int) -> None:
        """Set the length of the run, unless the constructor was given one, and the rates with it.

        Args:
            max_steps: Number of optimizer steps, for example `trainer.estimated_stepping_batches`.

        Raises:
            ValueError: If `max_steps` is not a positive number.
        """
        if self.max_steps is not None:
            return
        self._set_length(max_steps)
        self._ends_with_run = False
        self._set_rates(self.get_lr())

    def get_lr(self) -> list[Any]:
        """Learning rate of each group at the current step; groups added since keep their own."""
        scheduled = [base * self.factor(self.last_epoch) for base in self.base_lrs]
        added = self.optimizer.param_groups[len(scheduled) :]
        return [*scheduled, *(group["lr"] for group in added)]

    def factor(self, step: int) -> float:
        """Share of the full learning rate at `step`, which counts from 0.

        Raises:
            RuntimeError: If the length of the run is not known after the first step.
        """
        if self.max_steps is None or self.warmup_steps is None:
            if step > 0:
                raise RuntimeError(
                    "`WarmupDecayLR` does not know the length of the run. Pass `max_steps`, or use "
                    "ROOTCLI, ROOTMixin or the ROOTBinder callback, which take it from the Trainer"
                )
            return 1.0
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * self._decay(min(1.0, progress))

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule; its shape and length come from the constructor.

        So a resumed run with a larger `max_steps` decays over its new length.
        """
        state: dict[str, Any] = super().state_dict()
        return {key: value for key, value in state.items() if key not in self._CONFIGURATION}

    def _set_rates(self, rates: Sequence[Any]) -> None:
        _write_rates(self.optimizer, rates)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _decay(self, progress: float) -> float:
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0 - progress if self.schedule == "linear" else 1.0

    def _set_length(self, max_steps: int) -> None:
        if not 1 <= max_steps < math.inf:
            raise ValueError(
                f"`max_steps` must be a number >= 1, got {max_steps}; set it, or the Trainer's "
                "`max_steps` or `max_epochs`"
            )
        tenth = max_steps // 10
        self.warmup_steps = self._given_warmup
        if self.warmup_steps is None:
            self.warmup_steps = min(PAPER_WARMUP, tenth)
        elif self.warmup_steps > max_steps:
            self.warmup_steps = tenth
        self.max_steps = int(max_steps)


def warmups_in(scheduler: Any, active: bool = False) -> list[WarmupDecayLR]:
    """Return every `WarmupDecayLR` in a schedule, or those that set the rate at this step."""
    if isinstance(scheduler, WarmupDecayLR):
        return [scheduler]
    parts = getattr(scheduler, "_schedulers", ())  # of torch's SequentialLR and ChainedScheduler
    if active and isinstance(scheduler, SequentialLR):
        parts = [parts[bisect_right(scheduler._milestones, scheduler.last_epoch)]]
    return [warmup for part in parts for warmup in warmups_in(part, active)]


def end_with_run(scheduler: Any, length: Callable[[], int]) -> None:
    """Give the run's length to each `WarmupDecayLR` in a schedule that has none of its own."""
    # Also anew, where callbacks have changed the length since it was planned. Other schedules of a
    # chain have multiplied the rate, so that it is multiplied here too.
    planned = [warmup for warmup in warmups_in(scheduler) if warmup._ends_with_run]
    if not planned:
        return
    active = warmups_in(scheduler, active=True)
    shares = [(warmup, warmup.factor(warmup.last_epoch)) for warmup in active]
    max_steps = length()
    for warmup in planned:
        warmup._set_length(max_steps)
    for warmup, share in shares:
        now = warmup.factor(warmup.last_epoch)
        if now == share:
            continue
        rates = warmup.get_lr()
        if warmup is not scheduler and share:
            given = _rates(warmup.optimizer)[: len(warmup.base_lrs)]
            rates[: len(given)] = [rate * now / share for rate in given]
        warmup._set_rates(rates)


class ManualSteps:
    """Steps a schedule after every step of its optimizer, unless somebody else does."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler, optimizer = scheduler, scheduler.optimizer
        self._at_start = deepcopy(scheduler.state_dict()), _rates(optimizer)
        self._known = _position(scheduler)
        before, after = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
        self._handles = [before(self.check), after(self._step)]

    def check(self, *_: Any) -> None:
        """Leave the schedule to somebody who steps it, with their steps alone."""
        pairs = zip(self._known, _position(self._scheduler), strict=True)
        steps = max(now - known for known, now in pairs)
        if steps and self._handles:
            self.end()
            state, rates = self._at_start
            self._scheduler.load_state_dict(state)
            _write_rates(self._scheduler.optimizer, rates)
            for step in [self._scheduler.step] * steps:
                step()

    def end(self) -> None:
        """Leave no hook in the optimizer."""
        while self._handles:
            self._handles.pop().remove()

    def _step(self, *_: Any) -> None:
        self.check()
        if self._handles:
            self._scheduler.step()
            self._known = _position(self._scheduler)


def _position(scheduler: Any) -> list[int]:
    """Return how often a schedule, and all that are in it, were stepped."""
    parts = getattr(scheduler, "_schedulers", ())
    own = getattr(scheduler, "last_epoch", 0)
    return [own, *(place for part in parts for place in _position(part))]


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _write_rates(optimizer: Optimizer, rates: Iterable[Any]) -> None:
    for group, lr in zip(optimizer.param_groups, rates, strict=False):  # others were added since
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
