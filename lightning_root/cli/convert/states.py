"""State of other optimizers in ROOT's units, whose momentum is M = sum_k mu^k G_{t-k}."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_root.cli.convert.naming import ParameterState, Shape, StateDict
from lightning_root.optim.blocks import state_dtype
from lightning_root.optim.checkpoint import keyed_by_names
from lightning_root.optim.groups import ROLES
from lightning_root.optim.schedule import PER_GROUP
from lightning_root.partition import Rules, partition_named, partition_parameters

MomentumStart: TypeAlias = Literal["from-averages", "zero"]
BufferKind: TypeAlias = Literal["average", "sum"]
Converted: TypeAlias = tuple[StateDict, str]  # a state of ROOT's, and what it was made of

# Options that mean the same in ROOT; all others are the resumed run's own
CARRIED_OPTIONS: Final = {
    "root": ("lr", "weight_decay", "momentum", "nesterov", "maximize"),
    "adamw": ("lr", "weight_decay", "betas", "eps", "maximize"),
}
# Options that torch's schedules keep in the groups
SCHEDULE_OPTIONS: Final = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
FRESH: Final = "starts anew"

_STEP: Final = "epoch_loop.automatic_optimization.optim_progress"
_MANUAL_STEP: Final = "epoch_loop.manual_optimization.optim_step_progress"


class ConvertedParameter(NamedTuple):
    """One parameter's state before, and after in ROOT, complete."""

    name: str
    role: str
    state: StateDict
    origin: str  # what the state was made of; begins with `FRESH` where it is new
    before: ParameterState


class ConvertedState(NamedTuple):
    """A ROOT state dict, keyed by names, and how it came about."""

    state_dict: StateDict
    parameters: list[ConvertedParameter]
    sources: dict[str, ParameterState]  # by role: one of the group that gave the options
    notes: list[str]  # for the user


def convert_states(
    states: Sequence[ParameterState],
    roles: Mapping[str, str],
    shapes: Mapping[str, Shape],
    *,
    start: MomentumStart,
    buffer: BufferKind,
    momentum: float,
) -> ConvertedState:
    """Turn the states of Muon, AdamW, or both, into those of one ROOT."""
    # `roles` and `momentum` are those of the run to come (the latter where the file has none),
    # `shapes` of parameters that may have no state. A `momentum_buffer` is an average in
    # torch.optim.Muon and Keller Jordan's, a sum in torch.optim.SGD and Moonlight's Muon.
    found = []
    for each in states:
        role, shape = roles[each.name], _shape_of(each, shapes)
        if role == "adamw":
            state, origin = _averages(each.state, shape)
        elif "momentum_buffer" in each.state:
            state, origin = _rescaled(each, buffer, momentum)
        elif "exp_avg" in each.state and start == "from-averages":
            state, origin = _summed(each, momentum)
        else:
            reason = "as asked" if "exp_avg" in each.state else "it had no state"
            state, origin = _fresh_state("root", shape), f"{FRESH}: {reason}"
        found.append(ConvertedParameter(each.name, role, state, origin, each))
    sources = _sources(found)
    groups = [_group(role, found, sources[role].options) for role in ROLES]
    state_dict = {"state": {each.name: each.state for each in found}, "param_groups": groups}
    return ConvertedState(state_dict, found, sources, _notes(found, groups))


def find_roles(
    states: Sequence[ParameterState],
    shapes: Mapping[str, Shape],
    model: torch.nn.Module | None,
    rules: Rules | None,
) -> dict[str, str]:
    """Return each parameter's role: by the model, by buffers, or by names and shapes."""
    buffered = {each.name: each.shape or () for each in states if "momentum_buffer" in each.state}
    if model is not None:
        partition = partition_parameters(model, rules=rules)
    elif buffered and min(map(len, buffered.values())) > 1:  # Muon's, as no vector has one
        return {each.name: "root" if each.name in buffered else "adamw" for each in states}
    else:
        named = {each.name: torch.empty(_shape_of(each, shapes), device="meta") for each in states}
        partition = partition_named(named.items())
    return {route.name: route.role for route in partition.routes}


def _shape_of(parameter: ParameterState, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of a parameter: its state's, else the model's; ValueError if unknown."""
    shape = parameter.shape if parameter.shape is not None else shapes.get(parameter.name)
    if shape is None:
        raise ValueError(
            f"`{parameter.name}` has no state, and the file does not tell its shape; give the "
            "model (`--config FILE`, or `--model CLASS_PATH`)"
        )
    return shape


def _fresh_state(role: str, shape: Shape) -> StateDict:
    """Return the state before the first update; FSDP2 loads no state that lacks some."""
    if role == "root":
        return {"momentum_buffer": torch.zeros(shape)}
    averages = {key: torch.zeros(shape) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros(()), **averages}


def _rescaled(parameter: ParameterState, buffer: BufferKind, momentum: float) -> Converted:
    """Return ROOT's state of a matrix that had a momentum, and what it was made of."""
    value = _copy(parameter.state["momentum_buffer"])
    if buffer == "sum":
        return {"momentum_buffer": value}, "momentum_buffer"
    mu = float(parameter.options.get("momentum", momentum))  # (1 - mu) M, as torch.optim.Muon has
    return {"momentum_buffer": value / (1.0 - mu)}, f"momentum_buffer / (1 - {mu:g})"


def _summed(parameter: ParameterState, momentum: float) -> Converted:
    """Return ROOT's state of a matrix that had AdamW's averages, and what it was made of."""
    # Of the mean gradient, exp_avg has gathered 1 - beta^t, and M would have (1 - mu^t) / (1 - mu):
    # this is M if mu = beta, and of M's size, with the same direction to come, if it is not.
    beta, step = float(parameter.options["betas"][0]), float(parameter.state.get("step", math.inf))
    factor = 0.0
    if step != 0.0:
        factor = (1.0 - momentum**step) / ((1.0 - beta**step) * (1.0 - momentum))
    value = _copy(parameter.state["exp_avg"]) * factor
    return {"momentum_buffer": value}, f"exp_avg, as a sum with mu = {momentum:g}"


def _averages(state: Mapping[str, Any], shape: Shape) -> Converted:
    """Return AdamW's state of a parameter, and what it was made of."""
    if "exp_avg" in state and "exp_avg_sq" in state:
        step = torch.as_tensor(state.get("step", 0), dtype=torch.float32)
        averages = {key: _copy(state[key]) for key in ("exp_avg", "exp_avg_sq")}
        return {"step": step, **averages}, "exp_avg, exp_avg_sq, step"
    reason = "its second moments are unknown" if state else "it had no state"
    return _fresh_state("adamw", shape), f"{FRESH}: {reason}"


def _copy(value: Tensor) -> Tensor:
    return value.to(state_dtype(value), copy=True)


def _sources(parameters: Sequence[ConvertedParameter]) -> dict[str, ParameterState]:
    """Return for each role a parameter of the group that most of its elements are from."""
    sizes: dict[str, Counter[tuple[int, int]]] = {role: Counter() for role in ROLES}
    members = {}
    for each in parameters:
        elements = sum(v.numel() for v in each.state.values() if isinstance(v, Tensor))
        place = each.before.optimizer, each.before.group
        sizes[each.role][place] += elements
        members[place] = each.before
    found = {r: members[counts.most_common(1)[0][0]] for r, counts in sizes.items() if counts}
    other = next(iter(found.values()))
    return {role: found.get(role, other) for role in ROLES}


def _group(
    role: str, parameters: Sequence[ConvertedParameter], options: Mapping[str, Any]
) -> StateDict:
    """Return a group of ROOT's with what `options` tell of it."""
    names = [each.name for each in parameters if each.role == role]
    keys = (*CARRIED_OPTIONS[role], *SCHEDULE_OPTIONS)
    carried = {key: options[key] for key in keys if key in options}
    if role == "root" and "adjust_lr_fn" in options:  # torch.optim.Muon's, whose None is this
        carried["adjust_lr_fn"] = options["adjust_lr_fn"] or "original"
    elif role == "root" and options.get("use_muon"):  # Keller Jordan's
        carried["adjust_lr_fn"] = "original"
    return {"name": role, "role": role, **carried, "params": names, "param_names": list(names)}


def _notes(
    parameters: Sequence[ConvertedParameter], groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say what of the options and states has no place in ROOT."""
    notes = []
    for group in groups:
        options = [each.before.options for each in parameters if each.role == group["role"]]
        for key in ("lr", "weight_decay"):
            values = sorted({float(each.get(key, 0.0)) for each in options})
            if len(values) > 1:
                notes.append(
                    f"`{group['name']}` has one `{key}` for all, {float(group[key]):g}, where the "
                    f"optimizer had {', '.join(f'{value:g}' for value in values)}"
                )
    if any("max_exp_avg_sq" in each.before.state for each in parameters):
        notes.append("the largest second moments of `amsgrad` are left out; ROOT's AdamW has none")
    return notes


def rekey(
    optimizers: Sequence[StateDict],
    states: Sequence[ParameterState],
    shapes: Mapping[str, Shape],
    roles: Mapping[str, str],
) -> list[StateDict]:
    """Return the state dicts with names for keys, which every reader passes on as they are."""
    found = []
    for number, optimizer in enumerate(optimizers):
        own = [each for each in states if each.optimizer == number]
        count = len(optimizer["param_groups"])
        names = [[each.name for each in own if each.group == place] for place in range(count)]
        renamed = keyed_by_names(optimizer, names)
        for each in own:
            role = each.options.get("role", roles.get(each.name))
            if not each.state and role in ROLES and each.name in shapes:
                renamed["state"][each.name] = _fresh_state(role, shapes[each.name])
        for group in renamed["param_groups"]:
            group["param_names"] = list(group["params"])
        found.append(renamed)
    return found


def convert_training(
    checkpoint: dict[str, Any],
    optimizers: Sequence[StateDict],
    sources: Mapping[str, ParameterState],
) -> str:
    """Convert the schedules and counters of a Lightning checkpoint; say what became of them."""
    _count_steps_once(checkpoint, len(optimizers))
    schedules = checkpoint.get("lr_schedulers", [])
    counts = [len(optimizer["param_groups"]) for optimizer in optimizers]
    places = {role: (source.optimizer, source.group) for role, source in sources.items()}
    checkpoint["lr_schedulers"], text = merge_schedules(schedules, counts, places)
    return text


def merge_schedules(
    schedules: Sequence[Mapping[str, Any]],
    group_counts: Sequence[int],
    sources: Mapping[str, tuple[int, int]],
) -> tuple[list[dict[str, Any]], str]:
    """Return schedules of ROOT's two groups, and what became of those before."""
    # `schedules` and `group_counts` are in the order of the optimizers; `sources` are the optimizer
    # and the group that each role's options are from.
    if not schedules:
        return [], "there was none"
    if len(group_counts) == 1:
        return [_for_roles([each], group_counts, sources) for each in schedules], "continues"
    if len(schedules) != len(group_counts):
        return [], "starts anew: it is not known which optimizer each belonged to"
    if any(_kind(schedule) != _kind(schedules[0]) for schedule in schedules):
        return [], "starts anew: the optimizers had different kinds"
    return [_for_roles(schedules, group_counts, sources)], "continues, of all optimizers in one"


def _kind(schedule: Mapping[str, Any]) -> tuple[set[str], list[Any]]:
    """Return what schedules of one kind have in common: keys, and the kinds of their parts."""
    return set(schedule), [_kind(part) for part in schedule.get("_schedulers", ())]


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


def _count_steps_once(checkpoint: dict[str, Any], optimizers: int) -> None:
    """Count a Lightning checkpoint's steps, in place, as automatic optimization does."""
    # Manual optimization counts every optimizer's steps, so that two double `global_step`, and does
    # so in another place, where a run with one ROOT does not look.
    progress = checkpoint.get("loops", {}).get("fit_loop", {})
    manual, automatic = progress.get(_MANUAL_STEP), progress.get(_STEP)
    if not manual or not automatic or not manual["total"]["completed"]:
        return
    for span in ("total", "current"):
        for key in ("ready", "completed"):
            automatic["optimizer"]["step"][span][key] += manual[span][key] // optimizers
            manual[span][key] = 0
    checkpoint["global_step"] = automatic["optimizer"]["step"]["total"]["completed"]
