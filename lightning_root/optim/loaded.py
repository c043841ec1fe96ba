"""What is refused of a loaded state before anything of it is taken over."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_root.optim.options import check_options

StateDict = dict[str, Any]
Groups = Sequence[Mapping[str, Any]]

ROLE_KEYS = {"root": "momentum_buffer", "adamw": "exp_avg"}
"""A state entry that only this role has."""

_AVERAGES = frozenset({"step", "exp_avg", "exp_avg_sq"})
"""State entries that AdamW has together."""

_OF_THE_SHAPE = _AVERAGES - {"step"} | {"momentum_buffer"}
"""State entries that have the shape of their parameter."""


def checked_groups(state_dict: StateDict) -> list[StateDict]:
    """The groups of a state that some ROOT has saved.

    Raises:
        ValueError: If it is another optimizer's, or no optimizer's.
    """
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


def check_saved_options(group: Mapping[str, Any]) -> None:
    """Refuse options that this version does not know, or that are damaged.

    Raises:
        ValueError: With what is wrong with them.
    """
    try:
        check_options(group)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the loaded state has options that this version of ROOT cannot use, in its group "
            f"{group.get('name')!r}: {error}"
        ) from error


def check_names(names: set[str], saved: set[str]) -> None:
    """Refuse a state of parameters with other names.

    Raises:
        ValueError: With the first of those that are unknown or missing.
    """
    if names == saved:
        return
    unknown, missing = sorted(saved - names), sorted(names - saved)
    raise ValueError(
        "the loaded state does not belong to these parameters: "
        f"{len(unknown)} of its names are unknown here (first: {unknown[:3]}), and {len(missing)} "
        f"parameters have no entry in it (first: {missing[:3]}). Load it into the model that it "
        "was saved from, or rename the entries of `param_names`"
    )


def check_state(groups: Groups, saved_ids: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    """Refuse state of other sizes, for broadcasting would hide some of it, or with parts missing.

    Raises:
        ValueError: With the first entry that does not fit.
    """
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            loaded = state.get(saved_ids[name], {})
            missing = sorted(_AVERAGES - loaded.keys()) if "exp_avg" in loaded else []
            if missing:
                raise ValueError(
                    f"the loaded state of `{name}` is damaged: it has `exp_avg` and lacks "
                    f"`{missing[0]}`"
                )
            for key, value in loaded.items():
                is_tensor = isinstance(value, Tensor)
                if not is_tensor and key in _OF_THE_SHAPE:
                    raise ValueError(f"the loaded `{key}` of `{name}` is no tensor: {value!r:.60}")
                if is_tensor and key != "step" and value.shape != parameter.shape:
                    raise ValueError(
                        f"the loaded `{key}` of `{name}` has shape {tuple(value.shape)}, but the "
                        f"parameter has {tuple(parameter.shape)}; load it into the model that it "
                        "was saved from"
                    )


def check_roles(groups: Groups, saved_ids: Mapping[str, Any], state: Mapping[Any, Any]) -> None:
    """Refuse state of the other rule.

    Raises:
        ValueError: With the rule that would keep the parameter where it was.
    """
    for group in groups:
        other = "adamw" if group["role"] == "root" else "root"
        for name in group["param_names"]:
            if ROLE_KEYS[other] in state.get(saved_ids[name], {}):
                raise ValueError(
                    f"the loaded state of `{name}` is from the rule `{other}`, but the parameter "
                    f"is now under `{group['role']}`. Pass rules={{'{name}': '{other}'}} to keep "
                    "it where it was, or start without the optimizer's state"
                )
