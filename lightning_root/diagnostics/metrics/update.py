"""Metrics of the orthogonalized update."""

from typing import Any

from torch import Tensor

from lightning_root.diagnostics.metrics.base import MatrixMetric, Reduction
from lightning_root.functional import (
    cosine_similarity,
    orthogonalization_error,
    root_mean_square,
)


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
        """Take in orthogonalized updates.

        Args:
            update: U, one matrix (m, n) or a stack (*batch, m, n), before the scale.
        """
        self._add(orthogonalization_error(update, exact=self.exact))


class UpdateRMS(MatrixMetric):
    """Root mean square of the entries of each update, aggregated over matrices.

    With the default scale, updates of full rank have 0.2 once they are scaled; before that,
    1 / sqrt(max(m, n)). Less says that directions are missing, as in the gradient of a dead layer.

    Args:
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.

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
        """Take in updates.

        Args:
            update: One matrix (m, n) or a stack (*batch, m, n), with or without the scale.
        """
        self._add(root_mean_square(update))


class MomentumCosine(MatrixMetric):
    """Cosine between momentum and update, aggregated over matrices.

    1 where orthogonalization changes nothing but the size, 1 / sqrt(m) for a momentum of rank one.

    Args:
        reduction: "mean", "max" or "min" over the matrices.
        kwargs: Of `torchmetrics.Metric`.

    Raises:
        ValueError: If `reduction` is none of them, or a keyword is unknown.

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
        """Take in momenta and their updates.

        Args:
            momentum: N, one matrix (m, n) or a stack (*batch, m, n).
            update: U, the same shape, with or without the scale.
        """
        self._add(cosine_similarity(momentum, update))
