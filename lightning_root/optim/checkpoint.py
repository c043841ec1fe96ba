"""State dicts that follow parameters by name, not by position, and are refused whole if wrong.

Writing: `completed`, `packed`, `keyed_by_names`. Reading: `unpacked`, `align_by_name`,
`restore_precision`; what is wrong with a state is found before anything of it is taken over.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root.optim.blocks import WHOLE, State, state_dtype
from lightning_root.optim.groups import Groups, members
from lightning_root.optim.options import ADDED_OPTIONS, check_options, plain_coefficients
from lightning_root.optim.stages import adamw
from lightning_root.optim.state import (
    EXTENTS,
    fresh_saved,
    neurons_shape,
    placed_neurons,
    specs_of,
    to_kept_,
)
from lightning_root.partition import MatrixView

StateDict = dict[str, Any]

ROLE_KEYS: Final = {"root": "momentum_buffer", "adamw": "exp_avg"}
"""A state entry that only this role has."""

_AVERAGES: Final = frozenset(spec.key for spec in adamw.STATE)
"""State entries that AdamW has together."""


def completed(
    state_dict: StateDict,
    groups: Groups,
    views: Mapping[str, MatrixView],
    device: torch.device | None = None,
) -> StateDict:
    """Give parameters the zeros that they would begin with, where they have no state so far."""
    # Some had no gradient yet. FSDP2 cannot load a state in which others are missing. Without any
    # state it stays so. `device` is where the zeros go, by default the parameters'.
    state = state_dict["state"]
    if not state:
        return state_dict
    whole = {}
    for position, (group, name, parameter) in enumerate(members(groups)):
        whole[position] = own = dict(state.get(position, {}))
        if not all(spec.key in own for spec in specs_of(group)):
            fresh = fresh_saved(parameter, views.get(name, WHOLE), group, device)
            whole[position] = {**fresh, **own}
    return {**state_dict, "state": whole}


def keyed_by_names(state_dict: StateDict, names: Sequence[Sequence[str]]) -> StateDict:
    """Put the names of each group in the place of numbers, which readers count in other orders."""
    name_of = {
        identity: name
        for group, of_group in zip(state_dict["param_groups"], names, strict=True)
        for identity, name in zip(group["params"], of_group, strict=True)
    }
    groups = [
        {**group, "params": list(of_group)}
        for group, of_group in zip(state_dict["param_groups"], names, strict=True)
    ]
    state = {name_of[identity]: state for identity, state in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": groups}


def packed(state_dict: StateDict) -> StateDict:
    """Write groups as every checkpoint can hold them."""
    # Coefficients by shape become one string, which JSON reads back to the last digit: distributed
    # checkpoints take a dict apart, and cannot load it into a group that has a name in its place.
    groups = []
    for group in state_dict["param_groups"]:
        kept = {k: v for k, v in group.items() if k not in ADDED_OPTIONS or v != ADDED_OPTIONS[k]}
        if isinstance(group["coefficients"], Mapping):
            kept["coefficients"] = json.dumps(group["coefficients"])
        groups.append(kept)
    return {**state_dict, "param_groups": groups}


def unpacked(state_dict: StateDict) -> StateDict:
    """Read what `packed` wrote; raise ValueError for what is no state of a ROOT."""
    groups = []
    for group in _checked_groups(state_dict):
        given = group.get("coefficients")
        if isinstance(given, str) and given.startswith("{"):
            try:
                plain = plain_coefficients(json.loads(given), group.get("ns_steps"))
            except (RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"the loaded `coefficients` are damaged: {error}") from error
            group = {**group, "coefficients": plain}
        groups.append(group)
    return {**state_dict, "param_groups": groups}


def align_by_name(
    state_dict: StateDict, groups: Groups, views: Mapping[str, MatrixView]
) -> StateDict:
    """Rewrite a loaded state dict in the order of the optimizer's own groups."""
    # `torch.optim.Optimizer.load_state_dict` goes by position: with another order of parameters it
    # would give one matrix the momentum of another and say nothing. Group options come from the
    # saved group of the same `name`, or else from the one at the same place. Raises ValueError if
    # names differ, or a parameter's state belongs to the other rule.
    saved_groups = state_dict["param_groups"]
    if not all("param_names" in saved for saved in saved_groups if saved["params"]):
        return state_dict
    for saved in saved_groups:
        if len(saved.get("param_names", ())) != len(saved["params"]):
            raise ValueError(
                f"the loaded state is damaged: its group {saved.get('name')!r} has "
                f"{len(saved.get('param_names', ()))} names for {len(saved['params'])} parameters"
            )
    saved_ids = {
        name: identity
        for saved in saved_groups
        for name, identity in zip(saved.get("param_names", ()), saved["params"], strict=True)
    }
    names = [name for group in groups for name in group["param_names"]]
    _check_names(set(names), set(saved_ids))
    _check_roles(groups, saved_ids, state_dict["state"])
    by_name = {saved.get("name"): saved for saved in saved_groups}
    aligned = []
    for index, group in enumerate(groups):
        at_same_place = saved_groups[min(index, len(saved_groups) - 1)]
        saved = dict(by_name.get(group["name"], at_same_place))
        saved["params"] = [saved_ids[name] for name in group["param_names"]]
        saved["param_names"] = list(group["param_names"])
        saved["name"], saved["role"] = group["name"], group["role"]
        # Distributed checkpoints lose the options of an empty group.
        aligned.append({**group, **saved})
    for group in aligned:
        _check_saved_options(group)
    _check_state(groups, views, saved_ids, state_dict["state"])
    return {**state_dict, "param_groups": aligned}


def restore_precision(
    state: Mapping[Tensor, StateDict],
    saved: Mapping[Any, StateDict],
    groups: Groups,
    ids: Groups,
    views: Mapping[str, MatrixView],
) -> None:
    """Put back, in place, the state that torch's loading rounded to the parameter's dtype."""
    # And as copies: torch's loading keeps tensors that need no rounding, so that two optimizers
    # would advance one state. `saved` is by the ids of `ids`, whose groups are in the same order.
    for group, saved_group in zip(groups, ids, strict=True):
        dtypes = {spec.key: spec.dtype for spec in specs_of(group)}
        names, parameters = group["param_names"], group["params"]
        for name, parameter, identity in zip(names, parameters, saved_group["params"], strict=True):
            for key, value in saved.get(identity, {}).items():
                loaded = state[parameter][key]
                if isinstance(value, Tensor):
                    if EXTENTS.get(key) == "neurons":
                        value = placed_neurons(value, parameter, views.get(name, WHOLE))
                    dtype = value.dtype
                    if EXTENTS.get(key) != "counter":
                        given = dtypes.get(key)
                        dtype = given(parameter, group) if given else state_dtype(parameter)
                    state[parameter][key] = value.to(device=loaded.device, dtype=dtype, copy=True)
    to_kept_(state, groups)


def _checked_groups(state_dict: StateDict) -> list[StateDict]:
    """Return the groups of a state of some ROOT; raise ValueError for any other state."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, Sequence) or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError(
            "the loaded state is not an optimizer's: it needs `state` and `param_groups`, as "
            "`ROOT.state_dict()` returns them"
        )
    for group in groups:
        if not isinstance(group, Mapping) or "params" not in group:
            raise ValueError(f"the loaded state is damaged: {group!r:.60} is no parameter group")
        if group["params"] and group.get("role") not in ROLE_KEYS:
            raise ValueError(
                f"the loaded state is not ROOT's: a group has the role {group.get('role')!r}, not "
                f"one of {list(ROLE_KEYS)}. `python -m lightning_root convert-checkpoint` makes "
                "one of AdamW's or Muon's; or start without the optimizer's state"
            )
    return list(groups)


def _check_saved_options(group: Mapping[str, Any]) -> None:
    """Raise ValueError for options that this version does not know, or that are damaged."""
    try:
        check_options(group)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the loaded state has options that this version of ROOT cannot use, in its group "
            f"{group.get('name')!r}: {error}"
        ) from error


def _check_names(names: set[str], saved: set[str]) -> None:
    """Raise ValueError for a state of parameters with other names."""
    if names == saved:
        return
    unknown, missing = sorted(saved - names), sorted(names - saved)
    raise ValueError(
        "the loaded state does not belong to these parameters: "
        f"{len(unknown)} of its names are unknown here (first: {unknown[:3]}), and {len(missing)} "
        f"parameters have no entry in it (first: {missing[:3]}). Load it into the model that it "
        "was saved from, or rename the entries of `param_names`"
    )


def _check_state(
    groups: Groups,
    views: Mapping[str, MatrixView],
    saved_ids: Mapping[str, Any],
    state: Mapping[Any, State],
) -> None:
    """Raise ValueError for state of other sizes, which broadcasting would hide, or with gaps."""
    for _, name, parameter in members(groups):
        loaded = state.get(saved_ids[name], {})
        missing = sorted(_AVERAGES - loaded.keys()) if "exp_avg" in loaded else []
        if missing:
            raise ValueError(
                f"the loaded state of `{name}` is damaged: it has `exp_avg` and lacks "
                f"`{missing[0]}`"
            )
        for key, value in loaded.items():
            extent = EXTENTS.get(key)
            if not isinstance(value, Tensor):
                if extent in ("entries", "neurons"):
                    raise ValueError(f"the loaded `{key}` of `{name}` is no tensor: {value!r:.60}")
                continue
            shape: tuple[int, ...] = tuple(parameter.shape)
            if extent == "neurons":
                shape = neurons_shape(views.get(name, WHOLE), parameter.shape)
            if extent != "counter" and tuple(value.shape) != shape:
                whose = "the parameter has" if extent != "neurons" else "its matrices need"
                raise ValueError(
                    f"the loaded `{key}` of `{name}` has shape {tuple(value.shape)}, but "
                    f"{whose} {shape}; load it into the model that it was saved from"
                )


def _check_roles(groups: Groups, saved_ids: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    """Raise ValueError for state of the other rule, with the rule that would keep it."""
    for group in groups:
        other = "adamw" if group["role"] == "root" else "root"
        for name in group["param_names"]:
            if ROLE_KEYS[other] in state.get(saved_ids[name], {}):
                raise ValueError(
                    f"the loaded state of `{name}` is from the rule `{other}`, but the parameter "
                    f"is now under `{group['role']}`. Pass rules={{'{name}': '{other}'}} to keep "
                    "it where it was, or start without the optimizer's state"
                )
