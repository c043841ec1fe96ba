"""Everything that is measured of a step: all statistics of a stack of matrices in one go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.measures.clipping import (
    scaled_energy,
    scaled_threshold,
    share_of_nonzero,
)
from lightning_root.functional.measures.entries import scaled_cosine, scaled_kurtosis, scaled_rms
from lightning_root.functional.measures.scale import magnitude, nonzero, normalise, widen
from lightning_root.functional.measures.spectrum import orthogonality
from lightning_root.optim.update import Stack

STATISTICS: Final = (
    "orth_error",
    "sigma_min",
    "sigma_max",
    "orthogonal_rms",
    "update_rms",
    "cosine",
    "outlier_fraction",
    "outlier_energy",
    "threshold",
    "relative_threshold",
    "kurtosis",
    "momentum_rms",
)
"""The rows of `Measurements.values`.

`orth_error`, `sigma_min`, `sigma_max` and `orthogonal_rms` are of U, `update_rms` is of the scaled
update, the learning rate left out; `cosine` is between N and U; `outlier_fraction`,
`outlier_energy`, `threshold` (max|B|) and `relative_threshold` compare N and B; `kurtosis` and
`momentum_rms` are of N.
"""

SLICE_ELEMENTS: Final = 1 << 22
"""At most this many elements (16 MiB of float32) of a stack are measured at a time."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """The statistics of some matrices: one tensor, to be copied to the host in one go.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        values: Shape (len(STATISTICS), k), on the device that it was measured on.

    Example:
        >>> import torch
        >>> from lightning_root import ROOT
        >>> from lightning_root.diagnostics import Measurements, measure
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        ... )
        >>> optimizer = ROOT(model.parameters())
        >>> parts = []
        >>> handle = optimizer.register_stack_hook(lambda stack: parts.append(measure(stack)))
        >>> model(torch.eye(8)).square().sum().backward()
        >>> optimizer.step()
        >>> step = Measurements.join(parts).cpu()
        >>> step.labels
        ('0.weight',)
        >>> bool(0.1 < step["update_rms"][0] < 0.25)
        True
    """

    names: tuple[tuple[str, int], ...]
    values: Tensor

    @classmethod
    def join(cls, parts: Sequence["Measurements"]) -> "Measurements":
        """Put the measurements of several stacks together, in this order.

        Args:
            parts: At least one. What lives on another device than the first is copied to it.

        Raises:
            ValueError: If there are none.
        """
        if not parts:
            raise ValueError("`parts` must hold at least one `Measurements`, got none")
        device = parts[0].values.device
        names = tuple(name for part in parts for name in part.names)
        return cls(names, torch.cat([part.values.to(device) for part in parts], dim=1))

    @property
    def labels(self) -> tuple[str, ...]:
        """`parameter` for each matrix that is a whole parameter, `parameter/number` for others.

        Whether a parameter is cut shows in its other matrices, which may lie in another stack: of
        one stack alone, the first matrix of a cut parameter would pass for the whole.
        """
        cut = {name for name, number in self.names if number > 0}
        return tuple(f"{name}/{number}" if name in cut else name for name, number in self.names)

    def __getitem__(self, statistic: str) -> Tensor:
        if statistic not in STATISTICS:
            raise KeyError(f"`statistic` must be one of {list(STATISTICS)}, got {statistic!r}")
        return self.values[STATISTICS.index(statistic)]

    def cpu(self) -> "Measurements":
        """The same on the host: one copy, which waits for the device."""
        return replace(self, values=self.values.cpu())

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The numbers by label and statistic. Waits for the device if `values` are on one."""
        columns = self.values.T.tolist()
        return {
            label: dict(zip(STATISTICS, column, strict=True))
            for label, column in zip(self.labels, columns, strict=True)
        }


def measure(stack: Stack) -> Measurements:
    """All statistics of every matrix of a stack, without waiting for the device.

    They equal those of the functions in `lightning_root.functional`, but share what these have in
    common: one Gram matrix, one copy of the momentum divided by its largest magnitude. Nothing of
    the stack is changed and no random number is drawn, so training goes on as it would have.

    On one CPU core it takes 0.4 (m = 192, 256) to 0.17 (m = 2048) of the time that the stack's own
    orthogonalization takes, and 3 (m, n) matrices at a time, or as many as fit into 16 MiB: less
    memory than the orthogonalization.

    Args:
        stack: From a hook; see `ROOT.register_stack_hook`.

    Returns:
        The statistics, float32 (float64 for float64 parameters); NaN for a matrix with an entry
        that is not finite.
    """
    matrices, rows, columns = stack.momentum.shape
    count = max(1, SLICE_ELEMENTS // (rows * columns))
    parts = [
        _measure(
            stack.momentum[start : start + count],
            stack.clipped[start : start + count],
            stack.update[start : start + count],
        )
        for start in range(0, matrices, count)
    ]
    statistics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    statistics["update_rms"] = _scaled(statistics["orthogonal_rms"], stack.scales)
    return Measurements(stack.names, torch.stack([statistics[name] for name in STATISTICS]))


def _measure(momentum: Tensor, clipped: Tensor, update: Tensor) -> dict[str, Tensor]:
    """All but `update_rms` of (k, m, n) matrices, each statistic (k)."""
    values, largest = normalise(momentum)
    base = widen(clipped)
    threshold = magnitude(base)
    outliers = widen(momentum) - base
    statistics = {
        "threshold": threshold[:, 0, 0],
        "relative_threshold": scaled_threshold(threshold, values, largest),
        "outlier_fraction": share_of_nonzero(outliers, largest),
        "outlier_energy": scaled_energy(outliers.div_(nonzero(largest)), values),
        "kurtosis": scaled_kurtosis(values),
        "momentum_rms": scaled_rms(values, largest),
    }
    del outliers, base
    unit, size = normalise(update)
    statistics["cosine"] = scaled_cosine(values, unit)
    del values
    found = orthogonality(unit, size)
    return statistics | {
        "orth_error": found.error,
        "sigma_min": found.smallest,
        "sigma_max": found.largest,
        "orthogonal_rms": scaled_rms(unit, size),
    }


def _scaled(values: Tensor, scales: Sequence[float]) -> Tensor:
    """(k) times k factors, which are copied without waiting for the device if they differ."""
    if len(set(scales)) == 1:
        return values * scales[0]
    factors = torch.tensor(scales, dtype=values.dtype)
    return values * factors.to(values.device, non_blocking=True)
