r"""What another optimizer has gathered, in ROOT's units.

ROOT's momentum is a sum, M = sum_k mu^k G_{t-k} (arXiv:2511.20626, Algorithm 2). torch.optim.Muon
keeps the average (1 - mu) sum_k mu^k G_{t-k} (`buf.lerp_(grad, 1 - momentum)`), which is M but for
the factor. AdamW's `exp_avg` is such an average with beta1 in place of mu; after t steps it has
gathered 1 - beta1^t of the mean gradient, and M would have gathered (1 - mu^t) / (1 - mu) of it, so

    M = exp_avg (1 - mu^t) / ((1 - beta1^t) (1 - mu)),

which is M itself if mu = beta1, and of M's size, with the same direction to come, if it is not.
AdamW's own state is ROOT's for all other parameters, bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_root.cli.convert.naming import Entry, Shape, StateDict
from lightning_root.optim.blocks import state_dtype
from lightning_root.optim.groups import ROLES

MomentumStart: TypeAlias = Literal["from-averages", "zero"]
BufferKind: TypeAlias = Literal["average", "sum"]

CARRIED: Final = {
    "root": ("lr", "weight_decay", "momentum", "nesterov", "maximize"),
    "adamw": ("lr", "weight_decay", "betas", "eps", "maximize"),
}
"""Options that mean the same in ROOT. All others are the resumed run's own."""

OF_SCHEDULES: Final = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
"""What torch's schedules keep in the groups."""

FRESH: Final = "starts anew"


@dataclass(frozen=True)
class Taken:
    """What became of one parameter.

    Args:
        name: In the model.
        role: "root" or "adamw".
        state: ROOT's, complete.
        origin: In words; begins with `FRESH` where nothing could be taken.
        entry: As it was.
    """

    name: str
    role: str
    state: StateDict
    origin: str
    entry: Entry


@dataclass(frozen=True)
class Takeover:
    """A ROOT state dict, and how it came about.

    Args:
        state_dict: What `ROOT.load_state_dict` takes, keyed by names.
        taken: Every parameter.
        sources: For each role the number of the optimizer and of its group that gave the options.
        notes: What the user should know.
    """

    state_dict: StateDict
    taken: list[Taken]
    sources: dict[str, tuple[int, int]]
    notes: list[str] = field(default_factory=list)


def take_over(
    entries: Sequence[Entry],
    optimizers: Sequence[StateDict],
    roles: Mapping[str, str],
    shapes: Mapping[str, Shape],
    *,
    start: MomentumStart = "from-averages",
    buffer: BufferKind = "average",
    momentum: float = 0.95,
) -> Takeover:
    """Turn the states of Muon, AdamW, or both, into those of one ROOT.

    Args:
        entries: Every parameter with its state.
        optimizers: The state dicts that they are from.
        roles: The rule of each parameter in the run to come.
        shapes: Of each parameter that may have no state.
        start: Whether matrices that were AdamW's begin with its averages or without momentum.
        buffer: What a `momentum_buffer` is: torch.optim.Muon's and Keller Jordan's are averages,
            that of torch.optim.SGD and of Moonlight's Muon is the sum.
        momentum: mu of the run to come, where the file has none.
    """
    taken = []
    for entry in entries:
        options = optimizers[entry.optimizer]["param_groups"][entry.group]
        shape = shape_in(shapes, entry)
        if roles[entry.name] == "root":
            state, origin = _momentum(entry, options, shape, start, buffer, momentum)
        else:
            state, origin = _averages(entry, shape)
        taken.append(Taken(entry.name, roles[entry.name], state, origin, entry))
    sources = _sources(taken)
    groups = [_group(role, taken, optimizers, sources[role]) for role in ROLES]
    state_dict = {"state": {each.name: each.state for each in taken}, "param_groups": groups}
    return Takeover(state_dict, taken, sources, _notes(taken, optimizers, groups))


def roles_as_they_were(entries: Sequence[Entry]) -> dict[str, str] | None:
    """Matrices with a momentum buffer are ROOT's, the rest AdamW's.

    Returns:
        None if there are no such, or if vectors have one too: it was not Muon that had them.
    """
    buffered = {entry.name: entry.shape for entry in entries if "momentum_buffer" in entry.state}
    if not buffered or any(shape is not None and len(shape) < 2 for shape in buffered.values()):
        return None
    return {entry.name: "root" if entry.name in buffered else "adamw" for entry in entries}


def shape_in(shapes: Mapping[str, Shape], entry: Entry) -> Shape:
    """The shape of a parameter: that of its state, or else the model's.

    Raises:
        ValueError: If nobody knows it.
    """
    shape = entry.shape if entry.shape is not None else shapes.get(entry.name)
    if shape is None:
        raise ValueError(
            f"`{entry.name}` has no state, and the file does not tell its shape; give the model "
            "(`--config FILE`, or `--model CLASS_PATH`)"
        )
    return shape


def fresh_state(role: str, shape: Shape) -> StateDict:
    """The state of a parameter before its first update; FSDP2 loads no state that lacks some."""
    if role == "root":
        return {"momentum_buffer": torch.zeros(shape)}
    averages = {key: torch.zeros(shape) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros(()), **averages}


def _momentum(
    entry: Entry,
    options: Mapping[str, Any],
    shape: Shape,
    start: MomentumStart,
    buffer: BufferKind,
    momentum: float,
) -> tuple[StateDict, str]:
    if "momentum_buffer" in entry.state:
        mu = float(options.get("momentum", momentum))
        value = _wide(entry.state["momentum_buffer"])
        if buffer == "sum":
            return {"momentum_buffer": value}, "momentum_buffer"
        return {"momentum_buffer": value / (1.0 - mu)}, f"momentum_buffer / (1 - {mu:g})"
    if "exp_avg" in entry.state and start == "from-averages":
        beta, step = float(options["betas"][0]), float(entry.state.get("step", float("inf")))
        value = _wide(entry.state["exp_avg"]) * _mass(momentum, beta, step)
        return {"momentum_buffer": value}, f"exp_avg, as a sum with mu = {momentum:g}"
    reason = "as asked" if "exp_avg" in entry.state else "it had no state"
    return fresh_state("root", shape), f"{FRESH}: {reason}"


def _averages(entry: Entry, shape: Shape) -> tuple[StateDict, str]:
    state = entry.state
    if "exp_avg" in state and "exp_avg_sq" in state:
        return {
            "step": torch.as_tensor(state.get("step", 0), dtype=torch.float32),
            "exp_avg": _wide(state["exp_avg"]),
            "exp_avg_sq": _wide(state["exp_avg_sq"]),
        }, "exp_avg, exp_avg_sq, step"
    reason = "its second moments are unknown" if state else "it had no state"
    return fresh_state("adamw", shape), f"{FRESH}: {reason}"


def _mass(mu: float, beta: float, step: float) -> float:
    """By what an average of t gradients is multiplied to be the sum of as many."""
    if step == 0.0:
        return 0.0
    gathered: float = 1.0 - beta**step
    return (1.0 - float(mu**step)) / (gathered * (1.0 - mu))


def _wide(value: Tensor) -> Tensor:
    return value.to(state_dtype(value), copy=True)


def _sources(taken: Sequence[Taken]) -> dict[str, tuple[int, int]]:
    """For each role the group that most of its elements are from."""
    found: dict[str, tuple[int, int]] = {}
    for role in ROLES:
        sizes: dict[tuple[int, int], int] = {}
        for each in taken:
            if each.role == role:
                place = (each.entry.optimizer, each.entry.group)
                elements = sum(v.numel() for v in each.state.values() if isinstance(v, Tensor))
                sizes[place] = sizes.get(place, 0) + elements
        if sizes:
            found[role] = max(sizes, key=lambda place: sizes[place])
    other = next(iter(found.values()))
    return {role: found.get(role, other) for role in ROLES}


def _group(
    role: str,
    taken: Sequence[Taken],
    optimizers: Sequence[StateDict],
    source: tuple[int, int],
) -> StateDict:
    options = optimizers[source[0]]["param_groups"][source[1]]
    names = [each.name for each in taken if each.role == role]
    kept = {key: options[key] for key in (*CARRIED[role], *OF_SCHEDULES) if key in options}
    if role == "root" and "adjust_lr_fn" in options:  # torch.optim.Muon's, whose None is this
        kept["adjust_lr_fn"] = options["adjust_lr_fn"] or "original"
    elif role == "root" and options.get("use_muon"):  # Keller Jordan's
        kept["adjust_lr_fn"] = "original"
    return {"name": role, "role": role, **kept, "params": names, "param_names": list(names)}


def _notes(
    taken: Sequence[Taken], optimizers: Sequence[StateDict], groups: Sequence[StateDict]
) -> list[str]:
    notes = []
    for group in groups:
        for key in ("lr", "weight_decay"):
            values = {
                float(optimizers[e.optimizer]["param_groups"][e.group].get(key, 0.0)): e.name
                for e in (each.entry for each in taken if each.role == group["role"])
            }
            if len(values) > 1:
                found = ", ".join(f"{value:g}" for value in sorted(values))
                notes.append(
                    f"`{group['name']}` has one `{key}` for all, {float(group[key]):g}, where the "
                    f"optimizer had {found}"
                )
    if any("max_exp_avg_sq" in each.entry.state for each in taken):
        notes.append("the largest second moments of `amsgrad` are left out; ROOT's AdamW has none")
    return notes
