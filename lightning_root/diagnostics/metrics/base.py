"""What the metrics share: one value per matrix, aggregated over matrices and processes."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

Reduction: TypeAlias = Literal["mean", "max", "min"]
"""How the values of all matrices become one number."""


class MatrixMetric(Metric, ABC):
    """Mean, maximum or minimum of a statistic over all matrices of all updates and processes.

    Every matrix counts once, whatever its size. A NaN stays: it is what the metric is to show. The
    state is the same for all reductions, so a `MetricCollection` of several computes the statistic
    once.

    Args:
        reduction: "mean", "max" or "min".
        kwargs: Of `torchmetrics.Metric`, such as `sync_on_compute`.

    Attributes:
        statistic: Name of what is aggregated, set by each class; metrics of another statistic, or
            of the same one computed in another way, must have another name, for a
            `MetricCollection` takes metrics for one where names and values of their states agree.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    statistic: str

    def __init__(self, reduction: Reduction = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reduction not in get_args(Reduction):
            raise ValueError(
                f"`reduction` must be one of {list(get_args(Reduction))}, got {reduction!r}"
            )
        self.reduction = reduction
        statistic = self.statistic
        self.add_state(f"{statistic}_sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state(f"{statistic}_count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state(f"{statistic}_max", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state(f"{statistic}_min", torch.tensor(torch.inf), dist_reduce_fx="min")

    def compute(self) -> Tensor:
        """Return the mean, maximum or minimum over all matrices; NaN if there was none."""
        count = self._state("count")
        total = self._state("sum") if self.reduction == "mean" else self._state(self.reduction)
        value = total / count if self.reduction == "mean" else total
        return torch.where(count == 0, torch.full_like(value, torch.nan), value)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Plot one value or a series of them with matplotlib (`pip install lightning-root[plot]`).

        Args:
            val: What `forward` or `compute` returned, or a list of that; None computes it now.
            ax: Matplotlib axes to plot on; None makes a figure.

        Returns:
            The figure (None where `ax` was given) and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        figure, axes = self._plot(val, ax)
        return figure, axes

    def _add(self, values: Tensor) -> None:
        """Take in one value per matrix, of any shape."""
        if values.numel() == 0:
            return
        values = values.to(self._state("sum").dtype)
        self._set("sum", self._state("sum") + values.sum())
        self._set("count", self._state("count") + values.numel())
        self._set("max", torch.maximum(self._state("max"), values.amax()))
        self._set("min", torch.minimum(self._state("min"), values.amin()))

    def _state(self, part: str) -> Tensor:
        value: Tensor = getattr(self, f"{self.statistic}_{part}")
        return value

    def _set(self, part: str, value: Tensor) -> None:
        setattr(self, f"{self.statistic}_{part}", value)
