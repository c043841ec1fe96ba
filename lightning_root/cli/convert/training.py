"""What a Lightning checkpoint holds besides weights and optimizers: schedules, counted steps."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lightning_root.optim.groups import ROLES

PER_GROUP: Final = (
    *("base_lrs", "_last_lr", "lr_lambdas", "min_lrs"),
    *("max_lrs", "base_momentums", "max_momentums"),
)
"""Lists in the states of torch's schedules that have one value for each group."""

_STEP: Final = "epoch_loop.automatic_optimization.optim_progress"
_MANUAL_STEP: Final = "epoch_loop.manual_optimization.optim_step_progress"


def merged_schedules(
    schedules: Sequence[Mapping[str, Any]],
    group_counts: Sequence[int],
    sources: Mapping[str, tuple[int, int]],
) -> tuple[list[dict[str, Any]], str]:
    """Schedules of ROOT's two groups from those of the optimizers before.

    Args:
        schedules: Their states, in the order of the optimizers.
        group_counts: How many groups each optimizer had.
        sources: For each role, optimizer and group from which it continues.

    Returns:
        The states, and what became of them in words.
    """
    if not schedules:
        return [], "there was none"
    if len(group_counts) == 1:
        found = [
            _for_groups([schedule] * len(group_counts), group_counts, sources)
            for schedule in schedules
        ]
        return found, "continues"
    if len(schedules) != len(group_counts):
        return [], "starts anew: it is not known which optimizer each belonged to"
    if not _alike(schedules):
        return [], "starts anew: the optimizers had different kinds"
    return [_for_groups(schedules, group_counts, sources)], "continues, of all optimizers in one"


def _alike(schedules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether they are of one kind, and so are their parts."""
    if any(set(schedule) != set(schedules[0]) for schedule in schedules):
        return False
    parts = [schedule.get("_schedulers", ()) for schedule in schedules]
    if any(len(own) != len(parts[0]) for own in parts):
        return False
    return all(_alike(pair) for pair in zip(*parts, strict=True))


def _for_groups(
    schedules: Sequence[Mapping[str, Any]],
    group_counts: Sequence[int],
    sources: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    places = [sources[role] for role in ROLES]
    number = places[0][0]
    merged = dict(schedules[number])
    for key, value in schedules[number].items():
        if key in PER_GROUP and isinstance(value, list) and len(value) == group_counts[number]:
            merged[key] = [schedules[optimizer][key][group] for optimizer, group in places]
        elif key == "_schedulers":  # within SequentialLR and ChainedScheduler
            parts = zip(*(schedule[key] for schedule in schedules), strict=True)
            merged[key] = [_for_groups(part, group_counts, sources) for part in parts]
    return merged


def count_steps_once(checkpoint: dict[str, Any], optimizers: int) -> None:
    """Count steps as automatic optimization does, where the run stepped its optimizers itself.

    Manual optimization counts every optimizer's steps, so two of them double `global_step`; and
    it counts in another place, where a run with one ROOT does not look.

    Args:
        checkpoint: Of Lightning; modified.
        optimizers: How many there were.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {})
    manual, automatic = progress.get(_MANUAL_STEP), progress.get(_STEP)
    if not manual or not automatic or not manual["total"]["completed"]:
        return
    for span in ("total", "current"):
        for key in ("ready", "completed"):
            automatic["optimizer"]["step"][span][key] += manual[span][key] // optimizers
            manual[span][key] = 0
    checkpoint["global_step"] = automatic["optimizer"]["step"]["total"]["completed"]
