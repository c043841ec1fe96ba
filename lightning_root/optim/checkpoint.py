"""State dicts that follow parameters by name, not by position, and are refused whole if wrong.

Writing: `completed`, `packed`, `keyed_by_names`. Reading: `unpacked`, `align_by_name`,
`restore_precision`; what is wrong with a state is found before anything of it is taken over.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root.distributed.collectives import is_sharded
from lightning_root.optim.blocks import WHOLE, State, state_dtype
from lightning_root.optim.groups import SAVED, Groups, Member, Members, is_number, role_of
from lightning_root.optim.options import (
    ADDED_OPTIONS,
    PLANNED_OPTIONS,
    PRECONDITION_OPTIONS,
    check_options,
    plain_coefficients,
)
from lightning_root.optim.stages import adamw
from lightning_root.optim.stages.precondition import AGE
from lightning_root.optim.state import (
    EXTENTS,
    fresh_saved,
    matrices_shape,
    placed_matrices,
    specs_of,
    to_kept_,
)
from lightning_root.partition import Role
from lightning_root.partition.names import canonical

StateDict = dict[str, Any]

ROLE_KEYS: Final = {"root": "momentum_buffer", "adamw": "exp_avg"}
"""A state entry that only this role has."""

_ADAMW_OPTIONS: Final = frozenset({"betas", "eps", "foreach", "fused"})
_ROOT_OPTIONS: Final = frozenset({*PLANNED_OPTIONS, "momentum", "nesterov"}) - {"capturable"}
"""Options that only one of the rules reads; older checkpoints have a group for each rule."""

_NOT_OPTIONS: Final = ("params", "param_names", "name", "role")
"""Entries of a group that are no options."""

_AVERAGES: Final = frozenset(spec.key for spec in adamw.STATE)
"""State entries that AdamW has together."""


def completed(
    state_dict: StateDict, present: Members, device: torch.device | None = None
) -> StateDict:
    """Give parameters the zeros that they would begin with, where they have no state so far."""
    # Some had no gradient yet. FSDP2 cannot load a state in which others are missing. Without any
    # state it stays so, and frozen parameters need none. `device` is where the zeros go, by default
    # the parameters'.
    state = state_dict["state"]
    if not state:
        return state_dict
    whole = {}
    for position, member in enumerate(present):
        own = dict(state.get(position, {}))
        specs = specs_of(member.role, member.group)
        if (own or member.parameter.requires_grad) and not all(spec.key in own for spec in specs):
            own = {**fresh_saved(member, device), **own}
        if own:
            whole[position] = own
    return {**state_dict, "state": {**whole, **{k: v for k, v in state.items() if k not in whole}}}


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


def packed(state_dict: StateDict, present: Members) -> StateDict:
    """Write groups as every checkpoint can hold them."""
    # torch's loader for shards fails on entries that only the file has: older ones have a name and
    # a role for every group. Coefficients by shape become one string, which JSON reads back to the
    # last digit: distributed checkpoints take a dict apart, and cannot load it into a group that
    # has a name in its place.
    groups = []
    for group in state_dict["param_groups"]:
        off = {k for k, v in ADDED_OPTIONS.items() if group[k] == v}
        if group["precondition"] != "none":  # state has its size from all of these
            off -= PRECONDITION_OPTIONS.keys()
        kept = {k: v for k, v in group.items() if k not in off}
        kept |= {k: json.dumps(v) for k, v in kept.items() if isinstance(v, Mapping)}
        if any(is_sharded(member.parameter) for member in present):
            kept = {"name": "", "role": "", **kept}
        groups.append(kept)
    return {**state_dict, "param_groups": groups}


def unpacked(state_dict: StateDict) -> StateDict:
    """Read what `packed` wrote; raise ValueError for what is no state of a ROOT."""
    groups = []
    for group in _checked_groups(state_dict):
        plain = dict(group)
        for name in ("coefficients", "lr_scales", "weight_decays"):
            if isinstance(given := group.get(name), str) and given.startswith("{"):
                try:
                    plain[name] = plain_coefficients(json.loads(given), group.get("ns_steps"))
                except (RecursionError, TypeError, ValueError) as error:
                    raise ValueError(f"the loaded `{name}` are damaged: {error}") from error
        groups.append(plain)
    return {**state_dict, "param_groups": groups}


def align_by_name(state_dict: StateDict, groups: list[StateDict], present: Members) -> StateDict:
    """Rewrite a loaded state dict in the order of the optimizer's own groups."""
    # `torch.optim.Optimizer.load_state_dict` goes by position: with another order of parameters it
    # would give one matrix the momentum of another and say nothing. Raises ValueError if names
    # differ, or a parameter's state belongs to the other rule.
    saved_groups, state = state_dict["param_groups"], state_dict["state"]
    saved_ids = _matched(_saved_names(saved_groups), present, state)
    _check_roles(present, saved_ids, state)
    # A group takes the options of the one of its name or at its place. Older checkpoints, and those
    # of two optimizers, have one for each rule: our group is cut in two where their options differ.
    by_name = {saved["name"]: saved for saved in saved_groups if saved.get("name")}
    by_place = len(saved_groups) == len(groups) and not all(s.get("role") for s in saved_groups)
    parts: list[tuple[StateDict, Members, StateDict]] = []
    own: Members
    for place, group in enumerate(groups):
        own = [member for member in present if member.group is group]
        if by_place:
            parts.append((group, own, by_name.get(group.get("name", ""), saved_groups[place])))
            continue
        options = _saved_options(own, saved_ids, saved_groups)
        if options is not None:
            parts.append((group, own, options))
            continue
        for role, part in (("root", group), ("adamw", dict(group))):
            of_role = [member for member in own if member.role == role]
            parts.append((part, of_role, _saved_options(of_role, saved_ids, saved_groups) or {}))
    if not by_place:
        _check_split([(group, own) for group, own, _ in parts], saved_ids, saved_groups)
    aligned = [
        {
            **group,  # distributed checkpoints lose the options of an empty group
            **{k: v for k, v in options.items() if k not in _NOT_OPTIONS},
            "params": [saved_ids.get(member.name, ("frozen", member.name)) for member in own],
            "param_names": [member.name for member in own],
        }
        for group, own, options in parts
    ]
    for group in aligned:
        _check_saved_options(group)
    saved_as = [
        member._replace(group=group)  # whose options decide how large state is
        for group, (_, own, _) in zip(aligned, parts, strict=True)
        for member in own
    ]
    _check_state(saved_as, saved_ids, state)
    if len(parts) != len(groups):
        for group, own, _ in parts:
            group["params"] = [member.parameter for member in own]
        groups[:] = [group for group, _, _ in parts]
    return {**state_dict, "param_groups": aligned}


def _saved_names(saved_groups: Sequence[StateDict]) -> dict[str, Any]:
    """Return the identity of every saved parameter by its name, or its number."""
    found: dict[str, Any] = {}
    for saved in saved_groups:
        params, names = saved["params"], saved.get("param_names")
        if all(isinstance(identity, str) for identity in params):
            names = params  # whoever keys by names may have merged groups, and so lost a list
        elif names is None:
            names = [f"parameter.{len(found) + i}" for i in range(len(params))]
        if len(names) != len(params):
            raise ValueError(
                f"the loaded state is damaged: its group {saved.get('name')!r} has "
                f"{len(names)} names for {len(params)} parameters"
            )
        found |= zip(map(canonical, names), params, strict=True)
    return found


def _matched(saved: Mapping[str, Any], present: Members, state: Mapping[Any, Any]) -> StateDict:
    """Return the identity of the saved parameter for each of ours by our name; or raise."""
    names = [member.name for member in present]
    if set(saved) == set(names):
        return dict(saved)
    if all(map(is_number, saved)) or all(map(is_number, names)):
        # One side has no names: the order in which both were given decides, as in torch.
        ours, theirs = _in_order(names), _in_order(saved)
        if len(ours) == len(theirs):
            return {name: saved[other] for name, other in zip(ours, theirs, strict=True)}
    for own, other in _prefixes(names, list(saved)):  # of a part of the model, or of a wrapper
        renamed = {own + name.removeprefix(other): i for name, i in saved.items()}
        if set(renamed) == set(names):
            return renamed
    unknown = sorted(name for name, i in saved.items() if name not in names and state.get(i))
    trained = {member.name for member in present if member.parameter.requires_grad}
    missing = sorted(trained - set(saved))
    if unknown or missing:  # what was frozen on one side has no state to lose
        raise ValueError(
            "the loaded state does not belong to these parameters: "
            f"{len(unknown)} of its names are unknown here (first: {unknown[:3]}), and "
            f"{len(missing)} parameters have no entry in it (first: {missing[:3]}). Load it into "
            "the model that it was saved from, or rename the entries of `param_names`"
        )
    return {name: identity for name, identity in saved.items() if name in names}


def with_saved_rules(state_dict: StateDict, present: Members) -> list[Member]:
    """Return the parameters under the rules that they were saved with, if the split was another.

    Tensors without names are split by shape, and older versions missed some heads.
    """
    state, saved_groups = state_dict["state"], state_dict["param_groups"]
    saved, names = _saved_names(saved_groups), [member.name for member in present]
    numbered = [all(map(is_number, each)) for each in (saved, names)]
    older = all(group.get("role") in ROLE_KEYS for group in saved_groups if group["params"])
    found = list(present)
    if numbered[0] == numbered[1] and not older:
        return found
    saved_ids = _matched(saved, present, state)
    for place, member in enumerate(present):
        other: Role = "adamw" if member.role == "root" else "root"
        chosen = role_of(member.group) is not None or member.route.reason.startswith("rule ")
        loaded = state.get(saved_ids.get(member.name), {}).keys() & ROLE_KEYS.values()
        if loaded == {ROLE_KEYS[other]} and not chosen:
            route = replace(member.route, role=other, view=None, reason=SAVED, suggestion=None)
            found[place] = member._replace(route=route)
    return found


def _in_order(names: Iterable[str]) -> list[str]:
    """Return names as they were given; numbers tell it where groups were made of the parameters."""
    if all(map(is_number, names)):
        return sorted(names, key=lambda name: int(name.partition(".")[2]))
    return list(names)


def _prefixes(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what names may begin with on one side and not on the other."""
    for name in ours[:1]:
        for other in theirs:
            if name.endswith(f".{other}"):
                yield name.removesuffix(other), ""
            if other.endswith(f".{name}"):
                yield "", other.removesuffix(name)


def places_in(saved: Groups, groups: Groups, present: Members) -> list[int] | None:
    """Return for each group the first saved one that it is made of; None where each has its own."""
    names = [set(_saved_names([group])) for group in saved]
    ids = {name: name for of_group in names for name in of_group}
    named = [{**group, "params": sorted(own)} for group, own in zip(saved, names, strict=True)]
    places = []
    for group in groups:
        own = [member for member in present if member.group is group]
        found = [i for i, part in enumerate(names) if any(m.name in part for m in own)]
        if not found or _saved_options(own, ids, named) is None:
            return None
        places.append(found[0])
    return places if len(places) != len(saved) else None


def _saved_options(own: Members, saved_ids: Mapping[str, Any], saved: Groups) -> StateDict | None:
    """Return the options that some parameters were saved with; None if those of rules differ."""
    ids = {saved_ids[member.name] for member in own if member.name in saved_ids}
    merged: StateDict = {}
    for source in [group for group in saved if not ids.isdisjoint(group["params"])]:
        for key, value in source.items():
            owner = "adamw" if key in _ADAMW_OPTIONS else "root" if key in _ROOT_OPTIONS else None
            if key in merged and merged[key] != value and key not in _NOT_OPTIONS:
                if owner is None:
                    return None
                if source.get("role") != owner:
                    continue
            merged[key] = value
    return merged


def _check_split(
    parts: Sequence[tuple[StateDict, Members]], saved_ids: Mapping[str, Any], saved: Groups
) -> None:
    """Raise ValueError if groups with options of their own were one group when they were saved."""
    for source in saved:
        ids = set(source["params"])
        options = [
            {key: value for key, value in group.items() if key not in _NOT_OPTIONS}
            for group, own in parts
            if any(saved_ids.get(member.name) in ids for member in own)
        ]
        if any(each != options[0] for each in options):
            raise ValueError(
                f"the loaded state has {len(saved)} parameter groups, this optimizer {len(parts)} "
                "with options of their own, which the state would replace; make the same groups"
            )


def restore_precision(
    state: Mapping[Tensor, StateDict], saved: Mapping[Any, StateDict], ids: Groups, present: Members
) -> None:
    """Put back, in place, the state that torch's loading rounded to the parameter's dtype."""
    # And as copies: torch's loading keeps tensors that need no rounding, so that two optimizers
    # would advance one state. `saved` is by the ids of `ids`, whose parameters are in our order.
    identities = [identity for group in ids for identity in group["params"]]
    for member, identity in zip(present, identities, strict=True):
        group, parameter, _ = member
        dtypes = {spec.key: spec.dtype for spec in specs_of(member.role, group)}
        for key, value in saved.get(identity, {}).items():
            loaded = state[parameter][key]
            if isinstance(value, Tensor):
                if EXTENTS.get(key) == "matrices":
                    value = placed_matrices(value, parameter, member.view or WHOLE)
                dtype, device = value.dtype, loaded.device if key != AGE else "cpu"
                if EXTENTS.get(key) != "counter":
                    given = dtypes.get(key)
                    dtype = given(parameter, group) if given else state_dtype(parameter)
                state[parameter][key] = value.to(device=device, dtype=dtype, copy=True)
    to_kept_(state, present)


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
        if group["params"] and not is_roots(group):
            raise ValueError(
                "the loaded state is not ROOT's: a group has no `outlier_quantile`. `python -m "
                "lightning_root convert-checkpoint` makes one of AdamW's or Muon's; or start "
                "without the optimizer's state"
            )
    return list(groups)


def is_roots(group: Mapping[str, Any]) -> bool:
    """Tell whether a saved group is a ROOT's, or was made for one by `convert-checkpoint`."""
    return "outlier_quantile" in group or "ns_steps" in group or group.get("role") in ROLE_KEYS


def _check_saved_options(group: Mapping[str, Any]) -> None:
    """Raise ValueError for options that this version does not know, or that are damaged."""
    try:
        check_options(group)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the loaded state has options that this version of ROOT cannot use, in its group "
            f"{group.get('name')!r}: {error}"
        ) from error


def _check_state(
    present: Members, saved_ids: Mapping[str, Any], state: Mapping[Any, State]
) -> None:
    """Raise ValueError for state of other sizes, which broadcasting would hide, or with gaps."""
    for member in present:
        name, parameter = member.name, member.parameter
        specs = {spec.key: spec for spec in specs_of(member.role, member.group)}
        loaded = state.get(saved_ids.get(name), {})
        missing = sorted(_AVERAGES - loaded.keys()) if "exp_avg" in loaded else []
        if missing:
            raise ValueError(
                f"the loaded state of `{name}` is damaged: it has `exp_avg` and lacks "
                f"`{missing[0]}`"
            )
        for key, value in loaded.items():
            extent = EXTENTS.get(key)
            if not isinstance(value, Tensor):
                if extent in ("entries", "matrices"):
                    raise ValueError(f"the loaded `{key}` of `{name}` is no tensor: {value!r:.60}")
                continue
            shape: tuple[int, ...] = tuple(parameter.shape)
            if extent == "matrices":
                if key not in specs:
                    continue  # of a stage that is off
                view = member.view or WHOLE
                shape = matrices_shape(specs[key], view, parameter.shape, member.group)
            if extent != "counter" and tuple(value.shape) != shape:
                whose = "the parameter has" if extent != "matrices" else "its matrices need"
                raise ValueError(
                    f"the loaded `{key}` of `{name}` has shape {tuple(value.shape)}, but "
                    f"{whose} {shape}; load it into the model that it was saved from"
                )


def _check_roles(present: Members, saved_ids: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    """Raise ValueError for state of the other rule, with the rule that would keep it."""
    for member in present:
        other = "adamw" if member.role == "root" else "root"
        if ROLE_KEYS[other] in state.get(saved_ids.get(member.name), {}):
            raise ValueError(
                f"the loaded state of `{member.name}` is from the rule `{other}`, but the "
                f"parameter is now under `{member.role}`. Pass rules={{'{member.name}': "
                f"'{other}'}} to keep it where it was, or start without the optimizer's state"
            )
