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
    `configure_optimizers` see to that (with `ROOTBinder` under manual optimization too, unless the
    module does), and fill in `max_steps` from the Trainer: the length of the whole run, also within
    torch's `SequentialLR` and `ChainedScheduler`. Groups that are added to the optimizer later keep
    the learning rate that they are given.

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
        _write_rates(self, self.get_lr())

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
    """Give each `WarmupDecayLR` in a schedule the run's length as it is now, if it has no own."""
    planned = [warmup for warmup in warmups_in(scheduler) if warmup._ends_with_run]
    active = [(w, w.factor(w.last_epoch)) for w in warmups_in(scheduler, active=True)]
    max_steps = length() if planned else 0
    for warmup in planned:
        warmup._set_length(max_steps)
    for warmup, share in active:
        now = warmup.factor(warmup.last_epoch)
        if now != share:
            rates = warmup.get_lr()
            if warmup is not scheduler:  # others in the chain have multiplied the rate too
                groups = warmup.optimizer.param_groups
                rates = [float(group["lr"]) * now / (share or 1.0) for group in groups]
            _write_rates(warmup, rates)


def _write_rates(scheduler: Any, rates: Iterable[Any]) -> None:
    """Give each group its learning rate."""
    groups = scheduler.optimizer.param_groups
    for group, lr in zip(groups, rates, strict=False):  # others may have been added since
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    scheduler._last_lr = [group["lr"] for group in groups]


class ManualSteps:
    """Steps a schedule after every step of its optimizer, unless somebody else does."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._at_start = self._known = deepcopy(scheduler.state_dict())
        before = scheduler.optimizer.register_step_pre_hook(self.check)
        self._handles = [before, scheduler.optimizer.register_step_post_hook(self._step)]

    def check(self, *_: Any) -> None:
        """Leave the schedule to somebody who has stepped it, with that step alone."""
        if self._handles and self._scheduler.state_dict() != self._known:
            self.end()
            self._scheduler.load_state_dict(self._at_start)
            _write_rates(self._scheduler, self._scheduler.get_last_lr())
            self._scheduler.step()

    def end(self) -> None:
        """Leave no hook in the optimizer."""
        while self._handles:
            self._handles.pop().remove()

    def _step(self, *_: Any) -> None:
        self.check()
        if self._handles:
            self._scheduler.step()
            self._known = deepcopy(self._scheduler.state_dict())
