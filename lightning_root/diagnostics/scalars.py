"""Measurements as named numbers for loggers: of all matrices together, and of each parameter."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_root.diagnostics.measurements import STATISTICS, Measurements

AGGREGATES: Final = {
    "orth_error": ("mean", "max"),
    "sigma_min": ("min",),
    "sigma_max": ("max",),
    "outlier_fraction": ("mean",),
    "outlier_energy": ("mean", "max"),
    "relative_threshold": ("mean",),
    "kurtosis": ("mean", "max"),
    "momentum_rms": ("mean",),
    "cosine": ("mean",),
    "update_rms": ("mean", "min", "max"),
    "update_to_weight": ("mean", "max"),
}
"""Over all matrices, each counted once: what is logged as `root/<statistic>/<reduction>`."""

PER_PARAMETER: Final = (
    *("orth_error", "outlier_fraction", "outlier_energy", "update_rms"),
    "update_to_weight",
)
"""What is logged as `root/<statistic>/<parameter>`."""

MOST_MATRICES: Final = 8
"""Of a parameter with more matrices, such as a stack of experts, only the mean is shown."""

_REDUCTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


def aggregates(measurements: Measurements) -> dict[str, Tensor]:
    """0-dim tensors on the host by tag. A NaN stays: it is what the number is to show.

    Weights of zeros are left out of `update_to_weight`, which is left out itself if all are.

    Args:
        measurements: On the host.
    """
    numbers: dict[str, Tensor] = {}
    for statistic, reductions in AGGREGATES.items():
        values = measurements[statistic]
        if statistic == "update_to_weight":
            values = values[~values.isinf()]
        if len(values):
            for reduction in reductions:
                numbers[f"root/{statistic}/{reduction}"] = _REDUCTIONS[reduction](values)
    return numbers


def by_label(measurements: Measurements, names: Sequence[str]) -> dict[str, Tensor]:
    """All statistics (len(STATISTICS)) of each matrix by label, or of a parameter of many.

    Args:
        measurements: On the host.
        names: Of parameters, in the order in which they shall be; others come last.
    """
    place = {name: index for index, name in enumerate(names)}
    last = len(names)
    order = sorted(
        range(len(measurements.names)), key=lambda i: place.get(measurements.names[i][0], last)
    )
    columns: defaultdict[str, list[Tensor]] = defaultdict(list)
    labels = measurements.labels
    counts: defaultdict[str, int] = defaultdict(int)
    for name, _ in measurements.names:
        counts[name] += 1
    for index in order:
        name, _ = measurements.names[index]
        label = labels[index] if counts[name] <= MOST_MATRICES else name
        columns[label].append(measurements.values[:, index])
    return {
        label: found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)
        for label, found in columns.items()
    }


def per_parameter(labelled: dict[str, Tensor]) -> dict[str, float]:
    """Numbers by tag, `root/<statistic>/<parameter>`; nothing moves in proportion to a zero weight.

    Args:
        labelled: From `by_label`.
    """
    columns = {label: column.tolist() for label, column in labelled.items()}
    return {
        f"root/{statistic}/{label}": value
        for statistic in PER_PARAMETER
        for label, column in columns.items()
        if not _is_undefined(statistic, value := column[STATISTICS.index(statistic)])
    }


def _is_undefined(statistic: str, value: float) -> bool:
    return statistic == "update_to_weight" and math.isinf(value)
