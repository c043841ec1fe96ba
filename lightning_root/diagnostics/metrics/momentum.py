"""Metrics of the momentum and of what the outlier threshold takes from it."""

from torch import Tensor

from lightning_root.diagnostics.metrics.base import MatrixMetric
from lightning_root.functional import kurtosis, outlier_energy, outlier_fraction


class OutlierFraction(MatrixMetric):
    """Share of the momentum's entries that the threshold clips, aggregated over matrices.

    About 1 - p by construction where the threshold is the p-quantile; `OutlierEnergy` and
    `MomentumKurtosis` tell how heavy the tails are.

    Args:
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.

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
        """Take in momenta, before and after the threshold.

        Args:
            momentum: N, one matrix (m, n) or a stack (*batch, m, n).
            clipped: B, the same shape and dtype.
        """
        self._add(outlier_fraction(momentum, clipped))


class OutlierEnergy(MatrixMetric):
    """Share of the momentum's energy that the threshold takes away, aggregated over matrices.

    ||N - B||_F^2 / ||N||_F^2: 0.031 for Gaussian entries and the 0.9 quantile, towards 1 for a
    momentum of few huge entries.

    Args:
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.

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
        """Take in momenta, before and after the threshold.

        Args:
            momentum: N, one matrix (m, n) or a stack (*batch, m, n).
            clipped: B, the same shape and dtype.
        """
        self._add(outlier_energy(momentum, clipped))


class MomentumKurtosis(MatrixMetric):
    """Kurtosis of the momentum's entries about zero, aggregated over matrices.

    E[x^4] / E[x^2]^2: 3 for Gaussian entries, more for heavier tails.

    Args:
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.

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
        """Take in momenta.

        Args:
            momentum: N, one matrix (m, n) or a stack (*batch, m, n).
        """
        self._add(kurtosis(momentum))
