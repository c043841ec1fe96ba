"""Curves: points by step, and what is asked of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Mode: TypeAlias = Literal["min", "max"]
"""Whether less or more is better."""

SMOOTHED_POINTS: Final = 25
"""By default a curve is smoothed over the time between so many points of the picture."""


class Point(NamedTuple):
    """Where a curve has a value."""

    step: float
    seconds: float
    value: float


@dataclass(frozen=True, eq=False)
class Series:
    """One curve.

    Args:
        steps: (n,), increasing.
        seconds: (n,) since training began, without the time between a stop and a resume; NaN where
            the log has no clock.
        values: (n,).

    Example:
        >>> from lightning_root.diagnostics.report.series import Series
        >>> Series.of([(10, 0.0, 3.0), (20, 5.0, 1.0)]).reach(2.0, "min")
        Point(step=15.0, seconds=2.5, value=2.0)
    """

    steps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, points: Sequence[tuple[int, float, float]]) -> "Series":
        """From (step, seconds, value) in the order in which they were written.

        A point at an earlier step than the one before, or at the same, replaces what came after
        it: that is how a run goes on that was resumed from an older checkpoint.
        """
        steps = np.array([point[0] for point in points], dtype=np.int64)
        least_later = np.minimum.accumulate(steps[::-1])[::-1]
        kept = np.append(steps[:-1] < least_later[1:], True)[: len(steps)]
        columns = np.array([point[1:] for point in points], dtype=np.float64).reshape(-1, 2)[kept]
        return cls(steps[kept], columns[:, 0], columns[:, 1])

    @property
    def last(self) -> Point:
        """The last point."""
        return self._point(-1)

    def best(self, mode: Mode) -> Point | None:
        """The first of the best points; None if no value is finite."""
        finite = np.isfinite(self.values)
        if not finite.any():
            return None
        sign = 1.0 if mode == "min" else -1.0
        return self._point(int(np.argmin(np.where(finite, sign * self.values, np.inf))))

    def reach(self, target: float, mode: Mode) -> Point | None:
        """Where the curve first is as good as `target`, on straight lines between points.

        Args:
            target: Of the metric.
            mode: Which side is good.

        Returns:
            None if it is nowhere; the first point if it is from there on.
        """
        sign = 1.0 if mode == "min" else -1.0
        found = np.flatnonzero(sign * self.values <= sign * target)
        if len(found) == 0:
            return None
        here = self._point(int(found[0]))
        before = self._point(int(found[0]) - 1) if found[0] > 0 else here
        if not np.isfinite(before.value) or before.value == here.value:
            return here
        share = (before.value - target) / (before.value - here.value)
        step, seconds = (a + share * (b - a) for a, b in zip(before[:2], here[:2], strict=True))
        return Point(step, seconds, target)

    def smoothed(self, weight: float | None = None) -> NDArray[np.float64]:
        """Exponential average, without its bias towards the first values; as TensorBoard has it.

        Args:
            weight: Of the past, in [0, 1): 0 smooths nothing. Default: by the number of points,
                such that a curve of 25 points stays as it is.

        Returns:
            (n,); values that are not finite stay, and the average passes over them.
        """
        if weight is None:
            span = max(1.0, len(self.values) / SMOOTHED_POINTS)
            weight = (span - 1.0) / (span + 1.0)
        result = self.values.copy()
        average = total = 0.0
        for place, value in enumerate(self.values.tolist()):
            if np.isfinite(value):
                average = weight * average + (1.0 - weight) * value
                total = weight * total + (1.0 - weight)
                result[place] = average / total
        return result

    def _point(self, place: int) -> Point:
        columns = (self.steps, self.seconds, self.values)
        return Point(*(float(column[place]) for column in columns))
