r"""What another optimizer has gathered, in ROOT's units.

ROOT's momentum is a sum, M = sum_k mu^k G_{t-k} (arXiv:2511.20626, Algorithm 2). torch.optim.Muon
keeps the average (1 - mu) sum_k mu^k G_{t-k} (`buf.lerp_(grad, 1 - momentum)`), which is M but for
the factor. AdamW's `exp_avg` is such an average with beta1 in place of mu; after t steps it has
gathered 1 - beta1^t of the mean gradient, and M would have gathered (1 - mu^t) / (1 - mu) of it, so

    M = exp_avg (1 - mu^t) / ((1 - beta1^t) (1 - mu)),

which is M itself if mu = beta1, and of M's size, with the same direction to come, if it is not.
AdamW's own state is ROOT's for all other parameters, bit for bit.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_root.cli.convert.naming import ParameterState, Shape, StateDict
from lightning_root.optim.blocks import state_dtype
from lightning_root.optim.groups import ROLES

MomentumStart: TypeAlias = Literal["from-averages", "zero"]
BufferKind: TypeAlias = Literal["average", "sum"]

CARRIED_OPTIONS: Final = {
    "root": ("lr", "weight_decay", "momentum", "nesterov", "maximize"),
    "adamw": ("lr", "weight_decay", "betas", "eps", "maximize"),
}
"""Options that mean the same in ROOT. All others are the resumed run's own."""

SCHEDULE_OPTIONS: Final = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
"""What torch's schedules keep in the groups."""

FRESH: Final = "starts anew"

PER_GROUP: Final = (
    *("base_lrs", "_last_lr", "lr_lambdas", "min_lrs"),
    *("max_lrs", "base_momentums", "max_momentums"),
)
"""Lists in the states of torch's schedules that have one value for each group."""

_STEP: Final = "epoch_loop.automatic_optimization.optim_progress"
_MANUAL_STEP: Final = "epoch_loop.manual_optimization.optim_step_progress"


@dataclass(frozen=True)
class ConvertedParameter:
    """One parameter's state before, and after in ROOT, complete."""

    name: str
    role: str
    state: StateDict
    origin: str  # what the state was made of; begins with `FRESH` where it is new
    before: ParameterState


@dataclass(frozen=True)
class ConvertedState:
    """A ROOT state dict, keyed by names, and how it came about."""

    state_dict: StateDict
    parameters: list[ConvertedParameter]
    sources: dict[str, tuple[int, int]]  # by role: optimizer and group that gave the options
    notes: list[str]  # for the user


def convert_states(
    states: Sequence[ParameterState],
    optimizers: Sequence[StateDict],
    roles: Mapping[str, str],
    shapes: Mapping[str, Shape],
    *,
    start: MomentumStart = "from-averages",
    buffer: BufferKind = "average",
    momentum: float = 0.95,
) -> ConvertedState:
    """Turn the states of Muon, AdamW, or both, into those of one ROOT.

    `optimizers` are the state dicts that the states are from, `roles` and `momentum` those of the
    run to come (the latter where the file has none), `shapes` of parameters that may have no state.
    A `momentum_buffer` is an average in torch.optim.Muon and Keller Jordan's, a sum in
    torch.optim.SGD and Moonlight's Muon.
    """
    found = []
    for each in states:
        options = optimizers[each.optimizer]["param_groups"][each.group]
        shape = shape_of(each, shapes)
        if roles[each.name] == "root":
            state, origin = _momentum(each, options, shape, start, buffer, momentum)
        else:
            state, origin = _averages(each, shape)
        found.append(ConvertedParameter(each.name, roles[each.name], state, origin, each))
    sources = _sources(found)
    groups = [_group(role, found, optimizers, sources[role]) for role in ROLES]
    state_dict = {"state": {each.name: each.state for each in found}, "param_groups": groups}
    return ConvertedState(state_dict, found, sources, _notes(found, optimizers, groups))


def roles_from_buffers(states: Sequence[ParameterState]) -> dict[str, str] | None:
    """Return "root" for matrices with a momentum buffer, "adamw" for the rest.

    None if there are no such, or if vectors have one too: it was not Muon that had them.
    """
    buffered = {each.name: each.shape for each in states if "momentum_buffer" in each.state}
    if not buffered or any(shape is not None and len(shape) < 2 for shape in buffered.values()):
        return None
    return {each.name: "root" if each.name in buffered else "adamw" for each in states}


def shape_of(parameter: ParameterState, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of a parameter: its state's, else the model's; ValueError if unknown."""
    shape = parameter.shape if parameter.shape is not None else shapes.get(parameter.name)
    if shape is None:
        raise ValueError(
            f"`{parameter.name}` has no state, and the file does not tell its shape; give the "
            "model (`--config FILE`, or `--model CLASS_PATH`)"
        )
    return shape


def fresh_state(role: str, shape: Shape) -> StateDict:
    """Return the state before the first update; FSDP2 loads no state that lacks some."""
    if role == "root":
        return {"momentum_buffer": torch.zeros(shape)}
    averages = {key: torch.zeros(shape) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros(()), **averages}


def _momentum(
    parameter: ParameterState,
    options: Mapping[str, Any],
    shape: Shape,
    start: MomentumStart,
    buffer: BufferKind,
    momentum: float,
) -> tuple[StateDict, str]:
    """Return ROOT's state of a matrix, and what it was made of."""
    state = parameter.state
    if "momentum_buffer" in state:
        mu = float(options.get("momentum", momentum))
        value = _copy(state["momentum_buffer"])
        if buffer == "sum":
            return {"momentum_buffer": value}, "momentum_buffer"
        return {"momentum_buffer": value / (1.0 - mu)}, f"momentum_buffer / (1 - {mu:g})"
    if "exp_avg" in state and start == "from-averages":
        beta, step = float(options["betas"][0]), float(state.get("step", float("inf")))
        factor = 0.0
        if step != 0.0:
            gathered: float = 1.0 - beta**step
            factor = (1.0 - float(momentum**step)) / (gathered * (1.0 - momentum))
        value = _copy(state["exp_avg"]) * factor
        return {"momentum_buffer": value}, f"exp_avg, as a sum with mu = {momentum:g}"
    reason = "as asked" if "exp_avg" in state else "it had no state"
    return fresh_state("root", shape), f"{FRESH}: {reason}"


def _averages(parameter: ParameterState, shape: Shape) -> tuple[StateDict, str]:
    """Return AdamW's state of a parameter, and what it was made of."""
    state = parameter.state
    if "exp_avg" in state and "exp_avg_sq" in state:
        return {
            "step": torch.as_tensor(state.get("step", 0), dtype=torch.float32),
            "exp_avg": _copy(state["exp_avg"]),
            "exp_avg_sq": _copy(state["exp_avg_sq"]),
        }, "exp_avg, exp_avg_sq, step"
    reason = "its second moments are unknown" if state else "it had no state"
    return fresh_state("adamw", shape), f"{FRESH}: {reason}"


def _copy(value: Tensor) -> Tensor:
    return value.to(state_dtype(value), copy=True)


def _sources(parameters: Sequence[ConvertedParameter]) -> dict[str, tuple[int, int]]:
    """Return for each role the optimizer and group that most of its elements are from."""
    sizes: dict[str, Counter[tuple[int, int]]] = {role: Counter() for role in ROLES}
    for each in parameters:
        elements = sum(v.numel() for v in each.state.values() if isinstance(v, Tensor))
        sizes[each.role][each.before.optimizer, each.before.group] += elements
    found = {role: counts.most_common(1)[0][0] for role, counts in sizes.items() if counts}
    other = next(iter(found.values()))
    return {role: found.get(role, other) for role in ROLES}


def _group(
    role: str,
    parameters: Sequence[ConvertedParameter],
    optimizers: Sequence[StateDict],
    source: tuple[int, int],
) -> StateDict:
    options = optimizers[source[0]]["param_groups"][source[1]]
    names = [each.name for each in parameters if each.role == role]
    keys = (*CARRIED_OPTIONS[role], *SCHEDULE_OPTIONS)
    carried = {key: options[key] for key in keys if key in options}
    if role == "root" and "adjust_lr_fn" in options:  # torch.optim.Muon's, whose None is this
        carried["adjust_lr_fn"] = options["adjust_lr_fn"] or "original"
    elif role == "root" and options.get("use_muon"):  # Keller Jordan's
        carried["adjust_lr_fn"] = "original"
    return {"name": role, "role": role, **carried, "params": names, "param_names": list(names)}


def _notes(
    parameters: Sequence[ConvertedParameter],
    optimizers: Sequence[StateDict],
    groups: Sequence[StateDict],
) -> list[str]:
    notes = []
    for group in groups:
        before = [each.before for each in parameters if each.role == group["role"]]
        options = [optimizers[e.optimizer]["param_groups"][e.group] for e in before]
        for key in ("lr", "weight_decay"):
            values = {float(each.get(key, 0.0)) for each in options}
            if len(values) > 1:
                found = ", ".join(f"{value:g}" for value in sorted(values))
                notes.append(
                    f"`{group['name']}` has one `{key}` for all, {float(group[key]):g}, where the "
                    f"optimizer had {found}"
                )
    if any("max_exp_avg_sq" in each.before.state for each in parameters):
        notes.append("the largest second moments of `amsgrad` are left out; ROOT's AdamW has none")
    return notes


def merge_schedules(
    schedules: Sequence[Mapping[str, Any]],
    group_counts: Sequence[int],
    sources: Mapping[str, tuple[int, int]],
) -> tuple[list[dict[str, Any]], str]:
    """Return schedules of ROOT's two groups, and what became of those before.

    `schedules` and `group_counts` are in the order of the optimizers, `sources` as in
    `ConvertedState`.
    """
    if not schedules:
        return [], "there was none"
    if len(group_counts) == 1:
        return [_for_roles([each], group_counts, sources) for each in schedules], "continues"
    if len(schedules) != len(group_counts):
        return [], "starts anew: it is not known which optimizer each belonged to"
    if not _same_kind(schedules):
        return [], "starts anew: the optimizers had different kinds"
    return [_for_roles(schedules, group_counts, sources)], "continues, of all optimizers in one"


def _same_kind(schedules: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the schedules are of one kind, and so are their parts."""
    if any(set(schedule) != set(schedules[0]) for schedule in schedules):
        return False
    parts = [schedule.get("_schedulers", ()) for schedule in schedules]
    if any(len(own) != len(parts[0]) for own in parts):
        return False
    return all(_same_kind(pair) for pair in zip(*parts, strict=True))


def _for_roles(
    schedules: Sequence[Mapping[str, Any]],
    group_counts: Sequence[int],
    sources: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """Return one schedule of ROOT's groups from one of each optimizer."""
    places = [sources[role] for role in ROLES]
    number = places[0][0]
    merged = dict(schedules[number])
    for key, value in schedules[number].items():
        if key in PER_GROUP and isinstance(value, list) and len(value) == group_counts[number]:
            merged[key] = [schedules[optimizer][key][group] for optimizer, group in places]
        elif key == "_schedulers":  # within SequentialLR and ChainedScheduler
            parts = zip(*(schedule[key] for schedule in schedules), strict=True)
            merged[key] = [_for_roles(part, group_counts, sources) for part in parts]
    return merged


def count_steps_once(checkpoint: dict[str, Any], optimizers: int) -> None:
    """Count a Lightning checkpoint's steps, in place, as automatic optimization does.

    Manual optimization counts every optimizer's steps, so that two double `global_step`, and does
    so in another place, where a run with one ROOT does not look.
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
