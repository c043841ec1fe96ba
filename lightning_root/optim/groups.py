"""Parameter groups: their names, their roles, what may be in them."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_root.coefficients import lookup
from lightning_root.optim.binding import Named, names_of, split
from lightning_root.partition import MatrixView, Partition, Route, Rules, partition_parameters
from lightning_root.partition.names import canonical
from lightning_root.partition.parameters import canonical_parameters

ROLES = ("root", "adamw")

Group = dict[str, Any]
Groups = Sequence[Group]


def members(groups: Iterable[Group]) -> list[tuple[Group, str, Tensor]]:
    """Return every (group, name, parameter), in order."""
    return [
        (group, name, parameter)
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def name_params(params: Sequence[Any], groups: Groups, module: nn.Module | None) -> Named:
    """Return (name, tensor) pairs for a new group; the nameless get the module's or a number."""
    known = {id(p): name for name, p in module.named_parameters()} if module is not None else {}
    entries = [(known[id(entry)], entry) if id(entry) in known else entry for entry in params]
    present = [name for _, name, _ in members(groups)]
    named = names_of(entries, len(present))
    times = Counter([*present, *(name for name, _ in named)])
    double = [name for name, count in times.items() if count > 1]
    if double:
        raise ValueError(f"parameter names must be unique, but {double[:3]} appear more than once")
    return named


def free_name(name: str, groups: Groups) -> str:
    """Return `name`, or `name.1`, ...: learning rate monitors need one name per group."""
    taken = {group["name"] for group in groups}
    numbered = (f"{name}.{number}" for number in range(1, len(taken) + 1))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def partition_from_groups(groups: Groups, views: Mapping[str, MatrixView]) -> Partition:
    """Return the partition that the groups themselves express."""
    routes = [
        Route(
            name=name,
            shape=tuple(parameter.shape),
            role=group["role"],
            kind="hidden"
            if group["role"] == "root"
            else "table"
            if parameter.ndim > 1
            else "vector",
            reason="parameter group",
            view=views.get(name),
        )
        for group, name, parameter in members(groups)
    ]
    return Partition(tuple(routes), tuple(parameter for _, _, parameter in members(groups)))


def stale_names(groups: Groups, module: nn.Module) -> list[str]:
    """Return the names of bound parameters that are no longer the module's."""
    live = {id(parameter) for parameter in module.parameters()}
    return [name for _, name, parameter in members(groups) if id(parameter) not in live]


def select(partition: Partition, parameters: Iterable[Tensor]) -> Partition:
    """Return the part of a partition that is about these parameters."""
    wanted = {id(parameter) for parameter in parameters}
    pairs = zip(partition.routes, partition.parameters, strict=True)
    chosen = [(route, parameter) for route, parameter in pairs if id(parameter) in wanted]
    return Partition(tuple(route for route, _ in chosen), tuple(p for _, p in chosen))


def selected(partition: Partition, groups: Groups, module: nn.Module) -> Partition:
    """Return the part of a partition that was given as tensors, if those are the module's."""
    bound = [parameter for group in groups for parameter in group["params"]]
    if not bound or stale_names(groups, module):
        return partition
    return select(partition, bound)


def split_new(
    named: Named, groups: Groups, module: nn.Module | None, rules: Rules | None
) -> Partition:
    """Split parameters without a role: as the module's are where it has them, else by name."""
    parameters = [parameter for _, parameter in named]
    if not parameters:
        raise ValueError(
            "`params` of a group without a `role` must hold a parameter, got none; give the group "
            'the `role` "root" or "adamw"'
        )
    if module is not None and any(p.requires_grad for p in module.parameters()):
        partition = select(partition_parameters(module, rules=rules), parameters)
        if len(partition.routes) == len(named):
            return partition
    nameless = all(name.startswith("parameter.") for name, _ in named)
    return split(parameters if nameless else named, None, len(members(groups)))


def fill(groups: Groups, partition: Partition) -> None:
    """Put a partition's parameters into the standing groups, all or none; others keep theirs."""
    added = {id(p) for group in groups[len(ROLES) :] for p in group["params"]}
    pairs = [
        (group, [(name, p) for name, p in new["params"] if id(p) not in added])
        for group, new in zip(groups, partition.groups(), strict=False)
    ]
    for group, named in pairs:
        check_parameters(group, named, views_of(partition))
    for group, named in pairs:
        group["params"] = [parameter for _, parameter in named]
        group["param_names"] = [name for name, _ in named]


def replace_stale(groups: Groups, module: nn.Module, stale: Iterable[str]) -> None:
    """Put the live parameter of the same name in the place of each stale one, or raise."""
    live = {canonical(name): parameter for name, parameter in module.named_parameters()}
    live |= canonical_parameters(module)
    names = set(stale)
    lost = sorted(name for name in names if canonical(name) not in live)
    if lost:
        raise ValueError(
            f"{len(lost)} parameters of ROOT's groups are no longer the model's and cannot be "
            f"found by name (first: {lost[:3]}). Build the groups from `named_parameters()`, or "
            "after the model has been wrapped"
        )
    for group in groups:
        pairs = zip(group["param_names"], group["params"], strict=True)
        group["params"] = [live[canonical(name)] if name in names else p for name, p in pairs]


def views_of(partition: Partition) -> dict[str, MatrixView]:
    """Return how parameters are cut into matrices, by name, where they are not taken whole."""
    return {route.name: route.view for route in partition.routes if route.view is not None}


def check_parameters(
    group: Mapping[str, Any], named: Iterable[tuple[str, Tensor]], views: Mapping[str, MatrixView]
) -> None:
    """Raise TypeError or ValueError if parameters do not fit the role of their group."""
    for name, parameter in named:
        if not parameter.is_floating_point():
            raise TypeError(f"`{name}` must be a real floating point tensor, got {parameter.dtype}")
        if not (parameter.is_leaf or parameter.retains_grad):
            raise ValueError(
                f"`{name}` is computed from other tensors and has no gradient of its own (it is no "
                "leaf); pass those instead"
            )
        if group["role"] != "root":
            continue
        if parameter.ndim < 2:
            raise ValueError(
                f"`{name}` has shape {tuple(parameter.shape)} and is not a matrix, so it cannot be "
                'in a "root" group; put it into an "adamw" group'
            )
        if group["coefficients"] == "published":
            for shape in set(views.get(name, MatrixView()).matrices(parameter.shape)):
                _check_published(shape, group["ns_steps"])


def _check_published(shape: tuple[int, int], steps: int) -> None:
    high = lookup(shape, "published", steps).certificate[1]
    if high > 1.3:
        warnings.warn(
            f'`coefficients="published"` at {shape[0]} x {shape[1]} can scale a singular direction '
            f'by {high:.3g} instead of 1 in {steps} steps; "adaptive" cannot',
            stacklevel=5,
        )
