"""What seeds say: means, spreads, and whether a difference is more than chance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Values of a metric over seeds.

    Args:
        mean: NaN if any value is.
        deviation: Standard deviation, with the number of values less one; None of one value.
        count: Number of values.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of pairs.

    Args:
        mean: Of the differences.
        interval: 95 % of it by Student's t; None of one pair.
        count: Number of pairs.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int


def describe(values: Sequence[float]) -> Sample:
    """Mean and standard deviation.

    Args:
        values: At least one.

    Example:
        >>> from examples.sweeps.statistics import describe
        >>> describe([1.0, 2.0, 3.0])
        Sample(mean=2.0, deviation=1.0, count=3)
    """
    several = len(values) > 1
    deviation = float(np.std(values, ddof=1)) if several else None
    return Sample(float(np.mean(values)), deviation, len(values))


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """How much more than the baseline, seed by seed.

    Args:
        values: By seed.
        baseline: By seed; seeds that are not in both are left out.

    Returns:
        None if no seed is in both.
    """
    seeds = [seed for seed in values if seed in baseline]
    if not seeds:
        return None
    sample = describe([values[seed] - baseline[seed] for seed in seeds])
    if sample.deviation is None:
        return Difference(sample.mean, None, 1)
    half = student_quantile(sample.count - 1) * sample.deviation / math.sqrt(sample.count)
    return Difference(sample.mean, (sample.mean - half, sample.mean + half), sample.count)


def ratio_of_means(values: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    """The mean as a multiple of the baseline's, over the seeds that both have.

    Returns:
        None if no seed is in both.
    """
    seeds = [seed for seed in values if seed in baseline]
    if not seeds:
        return None
    return sum(values[seed] for seed in seeds) / sum(baseline[seed] for seed in seeds)


def student_quantile(freedom: int, share: float = 0.95) -> float:
    """The t within which `share` of Student's distribution lies, on both sides of 0.

    By the substitution t = sqrt(freedom) tan(angle) its density becomes cos(angle)^(freedom - 1),
    which is summed up.

    Args:
        freedom: Degrees of freedom, at least 1.
        share: Below 1.

    Example:
        >>> from examples.sweeps.statistics import student_quantile
        >>> round(student_quantile(4), 3)
        2.776
    """
    angles = np.linspace(0.0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    within = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    angle = np.interp(share, within / within[-1], angles)
    return math.sqrt(freedom) * math.tan(float(angle))


def best_of(values: Mapping[str, Sequence[float]], mode: Literal["min", "max"]) -> str:
    """The label with the best mean; one with a value that is not finite is the worst.

    Args:
        values: At least one label, each with at least one value.
        mode: Whether less or more is better.
    """
    sign = 1.0 if mode == "min" else -1.0

    def badness(label: str) -> float:
        mean = sign * float(np.mean(values[label]))
        return mean if math.isfinite(mean) else math.inf

    return min(values, key=badness)
