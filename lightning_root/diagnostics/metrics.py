"""Statistics of ROOT's steps as `torchmetrics.Metric`s: one value per matrix, aggregated.

Arguments and errors are those of `MatrixMetric` where a class names none.
"""

from abc import ABC
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_root.diagnostics.statistics import Reduction as Reduction
from lightning_root.functional import orthogonalization_error
from lightning_root.functional import statistics as functional

__all__ = [
    "MatrixMetric",
    "MomentumCosine",
    "MomentumKurtosis",
    "OrthogonalizationError",
    "OutlierEnergy",
    "OutlierFraction",
    "Reduction",
    "UpdateRMS",
]


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
        self.add_state(f"{self.statistic}_sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state(f"{self.statistic}_count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state(f"{self.statistic}_max", torch.tensor(-torch.inf), dist_reduce_fx="max")
        self.add_state(f"{self.statistic}_min", torch.tensor(torch.inf), dist_reduce_fx="min")

    def compute(self) -> Tensor:
        """Return the mean, maximum or minimum over all matrices; NaN if there was none."""
        count, is_mean = self._state("count"), self.reduction == "mean"
        value = self._state("sum") / count if is_mean else self._state(self.reduction)
        return torch.where(count == 0, torch.full_like(value, torch.nan), value)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> tuple[Any, Any]:
        """Plot values of `forward` or `compute`, or the present one; return figure and axes."""
        figure, axes = self._plot(val, ax)
        return figure, axes

    def _add(self, values: Tensor) -> None:
        """Add one value per matrix, of any shape."""
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


class OrthogonalizationError(MatrixMetric):
    """Mean over singular values of (sigma - 1)^2, aggregated over matrices.

    See `functional.orthogonalization_error` for how it is computed and how accurately.

    Args:
        exact: Take the eigenvalues of each Gram matrix: slower, and waits for the device.
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        TypeError: If `exact` is not a boolean.
        ValueError: If `reduction` is none of them, or a keyword is unknown.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import OrthogonalizationError
        >>> metric = OrthogonalizationError()
        >>> metric.update(torch.eye(4))
        >>> metric.update(torch.diag(torch.tensor([1.0, 0.5, 0.0, 1.0])))
        >>> metric.compute()
        tensor(0.1562)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, exact: bool = False, reduction: Reduction = "mean", **kwargs: Any) -> None:
        if not isinstance(exact, bool):
            raise TypeError(f"`exact` must be True or False, got {exact!r}")
        self.statistic = "exact_error" if exact else "error"
        super().__init__(reduction, **kwargs)
        self.exact = exact

    def update(self, update: Tensor) -> None:
        """Take in orthogonalized updates U, (m, n) or a stack (*batch, m, n), before the scale."""
        self._add(orthogonalization_error(update, exact=self.exact))


class UpdateRMS(MatrixMetric):
    """Root mean square of the entries of each update, aggregated over matrices.

    With the default scale, updates of full rank have 0.2 once they are scaled; before that,
    1 / sqrt(max(m, n)). Less says that directions are missing, as in the gradient of a dead layer.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import UpdateRMS
        >>> from lightning_root.functional import update_scale
        >>> metric = UpdateRMS()
        >>> metric.update(torch.eye(4, 16) * update_scale(4, 16, "match_rms_adamw"))
        >>> metric.compute()
        tensor(0.2000)
    """

    statistic = "rms"
    plot_lower_bound = 0.0

    def update(self, update: Tensor) -> None:
        """Take in updates, (m, n) or a stack (*batch, m, n), with or without the scale."""
        self._add(functional.root_mean_square(update))


class MomentumCosine(MatrixMetric):
    """Cosine between momentum and update, aggregated over matrices.

    1 where orthogonalization changes nothing but the size, 1 / sqrt(m) for a momentum of rank one.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import MomentumCosine
        >>> metric = MomentumCosine()
        >>> metric.update(torch.diag(torch.tensor([4.0, 3.0])), torch.eye(2))
        >>> metric.compute()
        tensor(0.9899)
    """

    statistic = "cosine"
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def update(self, momentum: Tensor, update: Tensor) -> None:
        """Take in momenta N, (m, n) or a stack (*batch, m, n), and updates U of the same shape."""
        self._add(functional.cosine_similarity(momentum, update))


class OutlierFraction(MatrixMetric):
    """Share of the momentum's entries that the threshold clips, aggregated over matrices.

    About 1 - p by construction where the threshold is the p-quantile; `OutlierEnergy` and
    `MomentumKurtosis` tell how heavy the tails are.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import OutlierFraction
        >>> from lightning_root.functional import clip_outliers
        >>> metric = OutlierFraction()
        >>> momentum = torch.arange(1.0, 13.0).reshape(3, 4)
        >>> metric.update(momentum, clip_outliers(momentum, quantile=0.75))
        >>> metric.compute()
        tensor(0.2500)
    """

    statistic = "outlier_fraction"
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, momentum: Tensor, clipped: Tensor) -> None:
        """Take in momenta N, (m, n) or a stack (*batch, m, n), and what the threshold left, B."""
        self._add(functional.outlier_fraction(momentum, clipped))


class OutlierEnergy(MatrixMetric):
    """Share of the momentum's energy that the threshold takes away, aggregated over matrices.

    ||N - B||_F^2 / ||N||_F^2: 0.031 for Gaussian entries and the 0.9 quantile, towards 1 for a
    momentum of few huge entries.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import OutlierEnergy
        >>> metric = OutlierEnergy()
        >>> momentum = torch.tensor([[3.0, -4.0]])
        >>> metric.update(momentum, momentum.clamp(-2, 2))
        >>> metric.compute()
        tensor(0.2000)
    """

    statistic = "outlier_energy"
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, momentum: Tensor, clipped: Tensor) -> None:
        """Take in momenta N, (m, n) or a stack (*batch, m, n), and what the threshold left, B."""
        self._add(functional.outlier_energy(momentum, clipped))


class MomentumKurtosis(MatrixMetric):
    """Kurtosis of the momentum's entries about zero, aggregated over matrices.

    E[x^4] / E[x^2]^2: 3 for Gaussian entries, more for heavier tails.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics import MomentumKurtosis
        >>> metric = MomentumKurtosis(reduction="max")
        >>> metric.update(torch.ones(2, 2))
        >>> metric.update(torch.eye(2))
        >>> metric.compute()
        tensor(2.)
    """

    statistic = "kurtosis"
    plot_lower_bound = 0.0

    def update(self, momentum: Tensor) -> None:
        """Take in momenta N, one matrix (m, n) or a stack (*batch, m, n)."""
        self._add(functional.kurtosis(momentum))
