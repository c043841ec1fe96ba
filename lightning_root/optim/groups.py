"""Parameter groups as the user made them, and the rule that each parameter in them has.

Number, order, names and options of groups are the user's. A rule belongs to a parameter: its route,
from the module or its name, or from the `role` that the user gives to a whole group.
"""

import warnings
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from torch import Tensor, nn

from lightning_root.coefficients import lookup
from lightning_root.optim.binding import Named, names_of
from lightning_root.optim.blocks import WHOLE, Rates
from lightning_root.partition import MatrixView, Role, Route
from lightning_root.partition.parameters import canonical_parameters

ROLES: Final[tuple[Role, ...]] = ("root", "adamw")

_FORCED: Final = "parameter group"
"""Reason of a route whose role the user has given to the group."""

SAVED: Final = "as in the loaded state"
"""Reason of a route that was taken over with a state."""

Group: TypeAlias = dict[str, Any]
Groups: TypeAlias = Sequence[Group]


class Member(NamedTuple):
    """A parameter in its group."""

    group: Group
    parameter: Tensor
    route: Route  # its name, its rule and how it is cut

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.route.name

    @property
    def role(self) -> Role:
        """Rule that updates it."""
        return self.route.role

    @property
    def rates(self) -> Rates | None:
        """Learning rate and decay by its rule, or else by its kind; None for the group's."""
        scales, decays = self.group["lr_scales"] or {}, self.group["weight_decays"] or {}
        scale, decay = self.route.lr_scale, self.route.weight_decay
        scale = scales.get(self.route.kind, 1.0) if scale is None else scale
        decay = decays.get(self.route.kind) if decay is None else decay
        return Rates(scale, decay) if scale != 1.0 or decay is not None else None

    @property
    def view(self) -> MatrixView | None:
        """Cut into matrices; None under AdamW."""
        return (self.route.view or WHOLE) if self.route.role == "root" else None


Members: TypeAlias = Sequence[Member]


def members(groups: Groups, routes: Mapping[Tensor, Route]) -> list[Member]:
    """Return every parameter of every group, in order."""
    return [Member(group, p, routes[p]) for group in groups for p in group["params"]]


def name_params(params: Sequence[Any], present: Sequence[str], module: nn.Module | None) -> Named:
    """Return (name, tensor) pairs for a new group; the nameless get the module's or a number."""
    known = {id(p): name for name, p in canonical_parameters(module)} if module is not None else {}
    entries = [(known[id(entry)], entry) if id(entry) in known else entry for entry in params]
    named = names_of(entries, len(present))
    times = Counter([*present, *(name for name, _ in named)])
    double = [name for name, count in times.items() if count > 1]
    if double:
        raise ValueError(f"parameter names must be unique, but {double[:3]} appear more than once")
    return named


def role_of(group: Mapping[str, Any]) -> Role | None:
    """Return the rule that the user gives to a whole group, by `role` or by name; None for none."""
    role = group.get("role", group.get("name") if group.get("name") in ROLES else None)
    if role is not None and role not in ROLES:
        raise ValueError(f"`role` must be one of {list(ROLES)}, got {role!r}")
    return role  # type: ignore[no-any-return]


def routed(contents: Groups, routes: Mapping[Tensor, Route]) -> dict[Tensor, Route]:
    """Return the routes of all parameters of groups; raise for what its rule cannot update.

    The role that a group has goes before what the module tells.
    """
    found: dict[Tensor, Route] = {}
    for group in contents:
        role = role_of(group)
        for parameter in group["params"]:
            route = routes[parameter]
            if role is not None and role != route.role:
                route = replace(route, role=role, reason=_FORCED, view=None, suggestion=None)
            check_parameter(route.name, parameter, route.role)
            found[parameter] = route
    return found


def names_in(
    groups: Groups, routes: Mapping[Tensor, Route], module: nn.Module | None
) -> dict[Tensor, str]:
    """Return a name for every parameter: its route's, its group's, the module's, or a number."""
    own = {p: name for name, p in canonical_parameters(module)} if module is not None else {}
    found: dict[Tensor, str] = {}
    for group in groups:
        params, names = group["params"], group.get("param_names", ())
        at_place = names if len(names) == len(params) else [None] * len(params)
        for parameter, given in zip(params, at_place, strict=True):
            name = routes[parameter].name if parameter in routes else own.get(parameter, given)
            found[parameter] = name or f"parameter.{len(found)}"
    return found


def stale(parameters: Iterable[Tensor], module: nn.Module) -> list[Tensor]:
    """Return the parameters that are not, or no longer, the module's."""
    live = {id(parameter) for parameter in module.parameters()}
    return [parameter for parameter in parameters if id(parameter) not in live]


def replacements(own: Members, foreign: Container[Tensor], module: nn.Module) -> list[Tensor]:
    """Return for each parameter of a group the module's: itself, or that of its name; or raise."""
    live = dict(canonical_parameters(module))
    lost = {id(p) for p in stale([m.parameter for m in own if m.parameter not in foreign], module)}
    numbered = all(is_number(member.name) for member in own)
    if lost and numbered and len(lost) == len(own) == len(live):
        return list(live.values())
    missing = sorted(m.name for m in own if id(m.parameter) in lost and m.name not in live)
    if missing:
        raise ValueError(
            f"{len(missing)} parameters of ROOT's groups are no longer the model's and cannot be "
            f"found by name (first: {missing[:3]}). Build the groups from `named_parameters()`, or "
            "after the model has been wrapped"
        )
    return [live[m.name] if id(m.parameter) in lost else m.parameter for m in own]


def is_number(name: str) -> bool:
    """Return whether a name only tells the place among parameters that came without names."""
    stem, _, number = name.partition(".")
    return stem == "parameter" and number.isdigit()


def separate_rates_(groups: Groups) -> None:
    """Give every group a tensor of its own where its learning rate is one."""
    # One tensor in two groups, and who scales the rate of each in place scales it twice.
    seen: set[int] = set()
    for group in groups:
        if isinstance(group["lr"], Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))


def check_parameter(name: str, parameter: Tensor, role: Role | None) -> None:
    """Raise TypeError or ValueError if a parameter has no gradient of its own, or not this role."""
    if not (parameter.is_leaf or parameter.retains_grad):
        raise ValueError(
            f"`{name}` is computed from other tensors and has no gradient of its own (it is no "
            "leaf); pass those instead"
        )
    if role != "root":
        return
    if not parameter.is_floating_point():
        raise TypeError(
            f"`{name}` must be a real floating point tensor to be orthogonalized, got "
            f'{parameter.dtype}; put it into an "adamw" group'
        )
    if parameter.ndim < 2:
        raise ValueError(
            f"`{name}` has shape {tuple(parameter.shape)} and is not a matrix, so it cannot be "
            'in a "root" group; put it into an "adamw" group'
        )


def warn_of_published(present: Members) -> None:
    """Warn of shapes at which the authors' triples scale a direction by more than 1.3."""
    for shape, steps in dict.fromkeys(
        (shape, member.group["ns_steps"])
        for member in present
        if member.view is not None and member.group["coefficients"] == "published"
        for shape in member.view.matrices(member.parameter.shape)
    ):
        high = lookup(shape, "published", steps).certificate[1]
        if high > 1.3:
            warnings.warn(
                f'`coefficients="published"` at {shape[0]} x {shape[1]} can scale a singular '
                f'direction by {high:.3g} instead of 1 in {steps} steps; "adaptive" cannot',
                stacklevel=5,
            )
