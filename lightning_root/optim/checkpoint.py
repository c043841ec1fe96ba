"""Optimizer state that follows parameters by name, not by position, and stays in float32."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_root.optim.adamw import fresh_averages
from lightning_root.optim.items import momentum_dtype, state_dtype
from lightning_root.optim.loaded import (
    Groups,
    StateDict,
    check_names,
    check_roles,
    check_saved_options,
    check_state,
    checked_groups,
)
from lightning_root.optim.momentum import keep_saved_, saved_fresh
from lightning_root.optim.options import plain_coefficients


def completed(
    state_dict: StateDict, groups: Groups, device: torch.device | None = None
) -> StateDict:
    """Give parameters that have not been updated yet the zeros that they would begin with.

    Some had no gradient so far. FSDP2 cannot load a state in which others are missing.

    Args:
        state_dict: From torch's `state_dict`; without any state it stays so.
        groups: The parameter groups.
        device: For the zeros. Default: the parameters'.
    """
    state = state_dict["state"]
    if not state:
        return state_dict
    parameters = [(group, parameter) for group in groups for parameter in group["params"]]
    whole = {
        position: state[position] if position in state else _fresh(parameter, group, device)
        for position, (group, parameter) in enumerate(parameters)
    }
    return {**state_dict, "state": whole}


def _fresh(parameter: Tensor, group: Mapping[str, Any], device: torch.device | None) -> StateDict:
    """The state of a parameter before its first update."""
    fresh = saved_fresh if group["role"] == "root" else fresh_averages
    state: StateDict = fresh(parameter, group)
    return {key: value.to(device) for key, value in state.items()} if device else state


def keyed_by_names(state_dict: StateDict, names: Sequence[Sequence[str]]) -> StateDict:
    """Put names in the place of numbers, which readers count in different orders.

    Args:
        state_dict: From `ROOT.state_dict()`.
        names: Of the parameters of each group.
    """
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
    """Write coefficients by shape as one string, which JSON reads back to the last digit.

    Distributed checkpoints take a dict apart, and then cannot load it into a group that has a name
    in its place.
    """
    groups = [
        {**group, "coefficients": json.dumps(group["coefficients"])}
        if isinstance(group["coefficients"], Mapping)
        else group
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def unpacked(state_dict: StateDict) -> StateDict:
    """Read what `packed` wrote.

    Raises:
        ValueError: If it is no state of a ROOT.
    """
    groups = []
    for group in checked_groups(state_dict):
        given = group.get("coefficients")
        if isinstance(given, str) and given.startswith("{"):
            try:
                plain = plain_coefficients(json.loads(given), group.get("ns_steps"))
            except (RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"the loaded `coefficients` are damaged: {error}") from error
            group = {**group, "coefficients": plain}
        groups.append(group)
    return {**state_dict, "param_groups": groups}


def align_by_name(state_dict: StateDict, groups: Groups) -> StateDict:
    """Rewrite a loaded state dict in the order of the optimizer's own groups.

    `torch.optim.Optimizer.load_state_dict` goes by position: with another order of parameters it
    would give one matrix the momentum of another and say nothing. Group options come from the saved
    group of the same `name`, or else from the one at the same place.

    Args:
        state_dict: What `ROOT.state_dict()` returned; not modified.
        groups: The optimizer's parameter groups, with `param_names`.

    Returns:
        A state dict whose groups match `groups` one by one; the given one where it has no names.

    Raises:
        ValueError: If the names differ, or a parameter's state belongs to the other rule.
    """
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
    check_names(set(names), set(saved_ids))
    check_roles(groups, saved_ids, state_dict["state"])
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
        check_saved_options(group)
    check_state(groups, saved_ids, state_dict["state"])
    return {**state_dict, "param_groups": aligned}


def restore_precision(
    state: Mapping[Tensor, StateDict], saved: Mapping[Any, StateDict], groups: Groups, ids: Groups
) -> None:
    """Put back, in place, the state that torch's loading rounded to the parameter's dtype.

    And as copies: torch's loading keeps tensors that need no rounding, so that two optimizers
    would advance one state.

    Args:
        state: The optimizer's state after loading.
        saved: The state as it was saved, by id.
        groups: The optimizer's parameter groups.
        ids: The saved groups, in the same order.
    """
    for group, saved_group in zip(groups, ids, strict=True):
        for parameter, identity in zip(group["params"], saved_group["params"], strict=True):
            for key, value in saved.get(identity, {}).items():
                loaded = state[parameter][key]
                if isinstance(value, Tensor):
                    wanted = state_dtype(parameter)
                    if key == "momentum_buffer":
                        wanted = momentum_dtype(parameter, group)
                    dtype = value.dtype if key == "step" else wanted
                    state[parameter][key] = value.to(device=loaded.device, dtype=dtype, copy=True)
    keep_saved_(state, groups)
