"""All statistics of a stack of matrices in one go, and the numbers for loggers made of them."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lightning_root.diagnostics.statistics import STATISTICS, Reduction, Stack, row_of
from lightning_root.functional import statistics as functional
from lightning_root.functional.matrices import entries, magnitude, nonzero, ratio, slices
from lightning_root.functional.spectrum import orthogonality

# Smaller matrices count as so large when a stack is cut: 64 of them at most are measured at once,
# because the estimates take up to 96 KiB of memory for each
MIN_ELEMENTS: Final = 1 << 14
# Of a parameter with more matrices, such as a stack of experts, only the mean is shown
MAX_MATRICES: Final = 8
_REDUCTIONS: Final[Mapping[Reduction, Callable[[Tensor], Tensor]]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


@dataclass(frozen=True, eq=False)
class Measurements:
    """The statistics of some matrices: one tensor, to be copied to the host in one go.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        values: Shape (len(STATISTICS), k), on the device that it was measured on; NaN where the
            stage is off that a statistic is of.

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
        """Put the measurements of several stacks together, on the device of the first of them."""
        if not parts:
            raise ValueError("`parts` must hold at least one `Measurements`, got none")
        device = parts[0].values.device
        names = tuple(name for part in parts for name in part.names)
        return cls(names, torch.cat([part.values.to(device) for part in parts], dim=1))

    @property
    def labels(self) -> tuple[str, ...]:
        """`parameter` for each matrix that is a whole parameter, `parameter/number` for others."""
        # Of one stack alone, the first matrix of a parameter that is cut would pass for the whole.
        cut = {name for name, number in self.names if number > 0}
        return tuple(f"{name}/{number}" if name in cut else name for name, number in self.names)

    def __getitem__(self, statistic: str) -> Tensor:
        if statistic not in STATISTICS:
            raise KeyError(f"`statistic` must be one of {list(STATISTICS)}, got {statistic!r}")
        return self.values[row_of(statistic)]

    def cpu(self) -> "Measurements":
        """Copy the measurements to the host at once, which waits for the device."""
        return replace(self, values=self.values.cpu())

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The numbers by label and statistic. Waits for the device if `values` are on one."""
        columns = self.values.T.tolist()
        return {
            label: dict(zip(STATISTICS, column, strict=True))
            for label, column in zip(self.labels, columns, strict=True)
        }


def measure(stack: Stack, weight_norms: Tensor | None = None) -> Measurements:
    """All statistics of every matrix of a stack, without waiting for the device.

    They equal those of the functions in `lightning_root.functional`, but share what these have in
    common: one Gram matrix, one copy of the momentum divided by its largest magnitude. Nothing of
    the stack is changed and no random number is drawn, so training goes on as it would have.

    On one CPU core it takes 0.4 (m = 192) to 0.16 (m = 1024, 2048) of the time that the stack's
    own orthogonalization takes, and memory for two (m, m) matrices, at least 8 MiB.

    Args:
        stack: From a hook; see `ROOT.register_stack_hook`.
        weight_norms: Frobenius norms (k) of the weights before the step, on the device of the
            stack: a stack has no weights. Without them `update_to_weight` is NaN.

    Returns:
        The statistics, float32 (float64 for float64 parameters); NaN for a matrix with an entry
        that is not finite. `update_to_weight` is infinite for a weight of zeros.
    """
    matrices, rows, columns = stack.momentum.shape
    parts = [
        _measure(stack.momentum[part], stack.clipped[part], stack.update[part])
        for part in slices(matrices, max(rows * columns, MIN_ELEMENTS))
    ]
    statistics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    update_rms = _multiply(statistics["orthogonal_rms"], stack.scales)
    statistics["update_rms"] = update_rms
    statistics["update_to_weight"] = absent = torch.full_like(update_rms, torch.nan)
    if weight_norms is not None:
        weight_rms = weight_norms.to(update_rms.dtype) / math.sqrt(rows * columns)
        statistics["update_to_weight"] = _relative_size(update_rms, weight_rms, stack.group["lr"])
    for name, statistic in STATISTICS.items():
        if not statistic.is_on(stack.group):
            statistics[name] = absent
        elif statistic.compute is not None:
            statistics[name] = statistic.compute(stack).to(absent)
    return Measurements(stack.names, torch.stack([statistics[name] for name in STATISTICS]))


def _measure(momentum: Tensor, clipped: Tensor, update: Tensor) -> dict[str, Tensor]:
    """Return what needs no scale and no weight, of (k, m, n) matrices; each statistic (k)."""
    largest, threshold, extent = (_magnitude(part) for part in (momentum, clipped, update))
    found, count = functional.norms(momentum, clipped, update, largest), entries(momentum)
    sigma = orthogonality(update, extent)
    product = found.product / nonzero(extent)[:, 0, 0]
    return {
        "threshold": threshold[:, 0, 0],
        "relative_threshold": functional.scaled_threshold(threshold, found.size, count, largest),
        "outlier_fraction": functional.share_of_nonzero(found.changed, count, largest),
        "outlier_energy": functional.scaled_energy(found.outliers, found.size),
        "kurtosis": functional.scaled_kurtosis(found.size, found.squares, count),
        "momentum_rms": functional.scaled_rms(found.size, count, largest),
        "cosine": functional.scaled_cosine(product, found.size, sigma.size),
        "orth_error": sigma.error,
        "sigma_min": sigma.smallest,
        "sigma_max": sigma.largest,
        "orthogonal_rms": functional.scaled_rms(sigma.size, count, extent),
    }


def _magnitude(matrices: Tensor) -> Tensor:
    return magnitude(matrices).to(torch.promote_types(matrices.dtype, torch.float32))


def _multiply(values: Tensor, scales: Sequence[float]) -> Tensor:
    """Multiply (k) by k factors, which are copied without waiting for the device if they differ."""
    if len(set(scales)) == 1:
        return values * scales[0]
    factors = torch.tensor(scales, dtype=values.dtype)
    return values * factors.to(values.device, non_blocking=True)


def _relative_size(update_rms: Tensor, weight_rms: Tensor, lr: float | Tensor) -> Tensor:
    """Return the share of each weight that a step moves; a tensor `lr` stays on its device."""
    rate = lr.detach().reshape(()) if isinstance(lr, Tensor) else lr
    return ratio(update_rms * rate, weight_rms, undefined=math.inf)


def aggregates(measurements: Measurements) -> dict[str, Tensor]:
    """Return 0-dim tensors by tag, over all matrices on the host that have a defined value."""
    numbers: dict[str, Tensor] = {}
    for name, statistic in STATISTICS.items():
        values = measurements[name]
        values = values[statistic.is_defined(values)]
        if len(values):
            for reduction in statistic.reductions:
                numbers[statistic.tag(reduction)] = _REDUCTIONS[reduction](values)
    return numbers


def by_label(measurements: Measurements, names: Sequence[str]) -> dict[str, Tensor]:
    """Return all statistics of each matrix by label; of more than `MAX_MATRICES` the mean."""
    # Labels are in the order of the parameters in `names`; others come last.
    place = {name: index for index, name in enumerate(names)}
    counts = Counter(name for name, _ in measurements.names)
    found = zip(measurements.names, measurements.labels, measurements.values.T, strict=True)
    columns: defaultdict[str, list[Tensor]] = defaultdict(list)
    for (name, _), label, column in sorted(found, key=lambda m: place.get(m[0][0], len(names))):
        columns[label if counts[name] <= MAX_MATRICES else name].append(column)
    return {
        label: parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)
        for label, parts in columns.items()
    }


def per_parameter(labelled: dict[str, Tensor]) -> dict[str, float]:
    """Return defined numbers by tag, `root/<statistic>/<label>`."""
    # A parameter called `mean` is `mean.parameter` there, apart from the mean of all.
    if not labelled:
        return {}
    values = torch.stack(list(labelled.values()), dim=1)  # (statistics, labels)
    return {
        statistic.tag(f"{label}.parameter" if label in _REDUCTIONS else label): value
        for statistic, row in zip(STATISTICS.values(), values, strict=True)
        if statistic.per_parameter
        for label, value, shown in zip(
            labelled, row.tolist(), statistic.is_defined(row).tolist(), strict=True
        )
        if shown
    }
