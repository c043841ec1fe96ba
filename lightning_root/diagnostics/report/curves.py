"""Curves by step, and what their tags say that they are: losses, learning rates, ROOT's own."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_root.diagnostics.statistics import SKIPPED, STATISTICS

Mode: TypeAlias = Literal["min", "max"]  # whether less or more is better
Stage: TypeAlias = Literal["training", "validation", "test"]

# By default a curve is smoothed over the time between so many points of the picture
SMOOTHED_POINTS: Final = 25
# Curves that are shown in another way, or say nothing
NOT_DRAWN: Final = frozenset({"epoch", "hp_metric", SKIPPED})

_STAGES: Final[Mapping[str, Stage]] = {
    **dict.fromkeys(("train", "training", "fit"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "validation"),
    "test": "test",
}
_MORE_IS_BETTER: Final = frozenset(
    "acc accuracy f1 auc auroc ap map precision recall iou dice score psnr ssim bleu rouge r2 "
    "reward return top1 top5 correlation".split()
)
SPEED: Final = re.compile(r"(per_sec|per_second|throughput|tokens_s|it_s|mfu)", re.IGNORECASE)
_SIGN: Final[Mapping[Mode, float]] = {"min": 1.0, "max": -1.0}


class Point(NamedTuple):
    """Point of a curve."""

    step: float
    seconds: float
    value: float


@dataclass(frozen=True, eq=False)
class Series:
    """One curve: increasing steps, seconds since training began (NaN without a clock), values."""

    steps: NDArray[np.int64]  # (n,)
    seconds: NDArray[np.float64]  # (n,)
    values: NDArray[np.float64]  # (n,)

    @classmethod
    def of(cls, points: Sequence[tuple[int, float, float]]) -> "Series":
        """Make a curve of (step, seconds, value) in the order in which they were written."""
        # A point at an earlier step than the one before, or at the same, replaces what came after
        # it: that is how a run goes on that was resumed from an older checkpoint.
        steps = np.array([point[0] for point in points], dtype=np.int64)
        least_later = np.minimum.accumulate(steps[::-1])[::-1]
        valid = np.append(steps[:-1] < least_later[1:], True)[: len(steps)]
        columns = np.array([point[1:] for point in points], dtype=np.float64).reshape(-1, 2)[valid]
        return cls(steps[valid], columns[:, 0], columns[:, 1])

    @property
    def last(self) -> Point:
        """Last point."""
        return self._point(-1)

    def best(self, mode: Mode) -> Point | None:
        """Return the first of the best points; None if no value is finite."""
        finite = np.isfinite(self.values)
        least = int(np.argmin(np.where(finite, _SIGN[mode] * self.values, np.inf)))
        return self._point(least) if finite.any() else None

    def reach(self, target: float, mode: Mode) -> Point | None:
        """Return where the curve, straight between points, first is as good as `target`."""
        found = np.flatnonzero(_SIGN[mode] * self.values <= _SIGN[mode] * target)
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
        """Return the exponential average without its bias to first values, as TensorBoard has it.

        The weight of the past is in [0, 1); None chooses it by the number of points, such that a
        curve of 25 stays as it is. The average passes over values that are not finite.
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
        return Point(*(float(array[place]) for array in (self.steps, self.seconds, self.values)))


def words(tag: str) -> list[str]:
    """Return the words of a tag: `val/top1_acc` has val, top1 and acc."""
    return [word for word in re.split(r"[^a-z0-9]+", tag.lower()) if word]


def stage_of(tag: str) -> Stage | None:
    """Return where a metric was taken; None if its tag does not tell."""
    return next((_STAGES[word] for word in words(tag) if word in _STAGES), None)


def is_learning_rate(tag: str) -> bool:
    """Return whether `LearningRateMonitor` names a learning rate so, or its words do."""
    if tag.startswith("lr-"):
        return not tag.endswith(("-momentum", "-weight_decay"))
    found = words(tag)
    return bool(found) and (found[-1] == "lr" or found[-2:] == ["learning", "rate"])


def is_root(tag: str) -> bool:
    """Return whether it is one of ROOT's that the page has a place of its own for."""
    match tag.split("/", 2):
        case ["root", "coefficients", rest]:
            return rest.endswith(("/error", "/error_before"))
        case ["root", name, rest] if name in STATISTICS:
            return rest in STATISTICS[name].reductions or STATISTICS[name].per_parameter
    return False


def losses(tags: Iterable[str], stage: Stage) -> list[str]:
    """Return losses of a stage, those with the fewest words first; of training if none is named."""
    # Where Lightning logs both `..._step` and `..._epoch` the first is the finer.
    found = [
        tag
        for tag in tags
        if "loss" in words(tag) and (stage_of(tag) or "training") == stage and not is_root(tag)
    ]
    return sorted(found, key=lambda tag: (len(words(tag)), words(tag)[-1] == "epoch"))


def mode_of(tag: str) -> Mode:
    """Return whether less or more of a metric is better, by its words; less if they do not tell."""
    return "max" if _MORE_IS_BETTER & set(words(tag)) else "min"


def learning_rates(scalars: Mapping[str, Series]) -> dict[str, Series]:
    """Return learning rates by tag; those that are equal all the way share one entry."""
    found: dict[str, tuple[list[str], Series]] = {}
    for tag, series in scalars.items():
        if is_learning_rate(tag):
            key = f"{series.steps.tolist()} {series.values.tolist()}"
            found.setdefault(key, ([], series))[0].append(tag.removeprefix("lr-"))
    return {", ".join(tags): series for tags, series in found.values()}


def other_tags(scalars: Mapping[str, Series]) -> list[str]:
    """Return tags of curves that no other part of the page shows; those of validation first."""
    shown = {tag for stage in ("training", "validation") for tag in losses(scalars, stage)[:1]}
    rest = [
        tag
        for tag in scalars
        if tag not in shown | NOT_DRAWN and not is_learning_rate(tag) and not is_root(tag)
    ]
    return sorted(rest, key=lambda tag: stage_of(tag) != "validation")
