"""What the tag of a curve says that it is: a loss, a learning rate, something of ROOT's."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

from lightning_root.diagnostics.report.series import Mode, Series
from lightning_root.diagnostics.scalars import AGGREGATES, PER_PARAMETER

Stage: TypeAlias = Literal["training", "validation", "test"]

_STAGES: Final[Mapping[str, Stage]] = {
    **dict.fromkeys(("train", "training", "fit"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "validation"),
    "test": "test",
}

_MORE_IS_BETTER: Final = frozenset(
    "acc accuracy f1 auc auroc ap map precision recall iou dice score psnr ssim bleu rouge r2 "
    "reward return top1 top5 correlation".split()
)

_SPEED: Final = re.compile(r"(per_sec|per_second|throughput|tokens_s|it_s|mfu)", re.IGNORECASE)

UNDRAWN: Final = frozenset({"epoch", "hp_metric", "root/skipped"})
"""Curves that are shown in another way, or say nothing."""


def words(tag: str) -> list[str]:
    """The words of a tag: `val/top1_acc` has val, top1 and acc."""
    return [word for word in re.split(r"[^a-z0-9]+", tag.lower()) if word]


def stage_of(tag: str) -> Stage | None:
    """Where a metric was taken; None if its tag does not tell."""
    return next((_STAGES[word] for word in words(tag) if word in _STAGES), None)


def is_rate(tag: str) -> bool:
    """Whether it is a learning rate, as `LearningRateMonitor` names it or by its words."""
    if tag.startswith("lr-"):
        return not tag.endswith(("-momentum", "-weight_decay"))
    found = words(tag)
    return bool(found) and (found[-1] == "lr" or found[-2:] == ["learning", "rate"])


def is_speed(tag: str) -> bool:
    """Whether it is a throughput."""
    return _SPEED.search(tag) is not None


def is_root(tag: str) -> bool:
    """Whether it is one that the page has a place of its own for."""
    parts = tag.split("/", 2)
    if parts[0] != "root" or len(parts) < 3:
        return False
    statistic, rest = parts[1:]
    if statistic == "coefficients":
        return rest.endswith(("/error", "/error_before"))
    return rest in AGGREGATES.get(statistic, ()) or statistic in PER_PARAMETER


def losses(tags: Iterable[str], stage: Stage) -> list[str]:
    """Losses of a stage, the main one first: the one with the fewest other words in its tag.

    A loss that names no stage is of training. Where Lightning logs both `..._step` and `..._epoch`
    the first is the finer.
    """
    found = [
        tag
        for tag in tags
        if "loss" in words(tag) and (stage_of(tag) or "training") == stage and not is_root(tag)
    ]
    return sorted(found, key=lambda tag: (len(words(tag)), words(tag)[-1] == "epoch"))


def mode_of(tag: str) -> Mode:
    """Whether less or more of a metric is better, by its words; less, if they do not tell."""
    return "max" if _MORE_IS_BETTER & set(words(tag)) else "min"


def rates(scalars: Mapping[str, Series]) -> dict[str, Series]:
    """Learning rates by tag; those that are equal all the way share one entry."""
    found: dict[str, tuple[list[str], Series]] = {}
    for tag, series in scalars.items():
        if is_rate(tag):
            key = f"{series.steps.tolist()} {series.values.tolist()}"
            found.setdefault(key, ([], series))[0].append(tag.removeprefix("lr-"))
    return {", ".join(tags): series for tags, series in found.values()}


def others(scalars: Mapping[str, Series]) -> list[str]:
    """Curves that no other part of the page shows; those of validation first."""
    shown = {tag for stage in ("training", "validation") for tag in losses(scalars, stage)[:1]}
    rest = [
        tag
        for tag in scalars
        if tag not in shown | UNDRAWN and not is_rate(tag) and not is_root(tag)
    ]
    return sorted(rest, key=lambda tag: stage_of(tag) != "validation")
