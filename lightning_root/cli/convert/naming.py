"""The names of parameters whose states optimizers keep under numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor

from lightning_root.partition.names import canonical

StateDict = dict[str, Any]
Shape = tuple[int, ...]
Counts = tuple[int, ...]

# Buffers of torch's own layers, which lie among the weights and have no optimizer state
RUNNING_STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")

MAX_SEARCH: Final = 4096  # states of the search for an assignment; beyond, it is ambiguous

ADVICE: Final = (
    "Give the model (`--config FILE`, or `--model CLASS_PATH`), or `--names FILE` with one "
    "parameter name a line, in the order of the optimizer's groups"
)


class ParameterState(NamedTuple):
    """The state of one parameter, and where it is from."""

    name: str
    state: Mapping[str, Any]
    optimizer: int  # its number
    group: int  # its number in the optimizer
    options: Mapping[str, Any]  # of the group

    @property
    def shape(self) -> Shape | None:
        """Of its averages or momentum; None where there are none."""
        values = [self.state.get(key) for key in ("momentum_buffer", "exp_avg")]
        return next((tuple(each.shape) for each in values if isinstance(each, Tensor)), None)


def parameter_names(weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return what can be a parameter among a model's weights, in order, with the shapes."""
    # Left out are whole numbers, running statistics, and all names but the first of tied weights.
    found: dict[str, Shape] = {}
    seen = set()
    for name, weight in weights.items():
        storage = weight.untyped_storage().data_ptr()
        place = (storage, weight.storage_offset(), tuple(weight.shape), weight.stride())
        # An empty tensor, or one of a model without memory, has no place.
        tied = storage != 0 and weight.numel() > 0 and place in seen
        seen.add(place)
        buffer = name.rsplit(".", 1)[-1] in RUNNING_STATISTICS
        if weight.is_floating_point() and not tied and not buffer:
            found[canonical(name)] = tuple(weight.shape)
    return found


def name_states(
    optimizers: Sequence[StateDict],
    known: Mapping[str, Shape] | None = None,
    order: Sequence[str] | None = None,
) -> list[ParameterState]:
    """Return the state of every parameter, with its name, from optimizers' state dicts."""
    # Names come from the groups, else from `order`, which has one for each parameter, group by
    # group, else from `known`, the model's trainable parameters in order: if there is just one way
    # to deal these out to the groups, in the model's order within each, such that all shapes fit.
    # Raises ValueError if names are missing or do not fit.
    groups = [
        [
            ParameterState("", dict(optimizer["state"].get(key, {})), number, place, group)
            for key in group["params"]
        ]
        for number, optimizer in enumerate(optimizers)
        for place, group in enumerate(optimizer["param_groups"])
    ]
    names = [_names_in(group) for optimizer in optimizers for group in optimizer["param_groups"]]
    if order is not None:
        count = sum(map(len, groups))
        if len(order) != count:
            raise ValueError(
                f"`--names` must hold {count} names, one for each parameter of the optimizers, got "
                f"{len(order)}"
            )
        rest = map(canonical, order)
        names = [[next(rest) for _ in group] for group in groups]
    elif None in names:
        shapes = [[each.shape for each in group] for group in groups]
        names = list(_names_by_number(optimizers, known) or _names_by_shape(names, shapes, known))
    states = [
        each._replace(name=name)
        for group, own in zip(groups, names, strict=True)
        for each, name in zip(group, own or (), strict=True)
    ]
    _check(states, known)
    return states


def _names_in(group: Mapping[str, Any]) -> list[str] | None:
    """Return the names that a group keeps; None if it has parameters without."""
    given = group.get("param_names", group["params"])
    if len(given) != len(group["params"]) or not all(isinstance(name, str) for name in given):
        return None
    return [canonical(name) for name in given]


def _names_by_number(
    optimizers: Sequence[StateDict], known: Mapping[str, Shape] | None
) -> list[list[str]] | None:
    """Return names for numbers in the order of the model, as Lightning writes them under FSDP2."""
    # An optimizer itself numbers group by group; where the two orders agree both are right.
    if known is None or len(optimizers) != 1:
        return None
    numbers = [i for group in optimizers[0]["param_groups"] for i in group["params"]]
    if numbers == sorted(numbers) or sorted(numbers) != list(range(len(known))):
        return None
    names = list(known)
    return [[names[i] for i in group["params"]] for group in optimizers[0]["param_groups"]]


def _names_by_shape(
    names: Sequence[list[str] | None],
    shapes: Sequence[Sequence[Shape | None]],
    known: Mapping[str, Shape] | None,
) -> list[list[str]]:
    """Deal the model's parameters out to the groups without names."""
    if known is None:
        raise ValueError(f"the file has neither parameter names nor a model's weights. {ADVICE}")
    named = {name for own in names if own is not None for name in own}
    free = {name: shape for name, shape in known.items() if name not in named}
    nameless = [each for own, each in zip(names, shapes, strict=True) if own is None]
    count = sum(map(len, nameless))
    if count != len(free):
        raise ValueError(
            f"the optimizers have {count} parameters without a name, and the model has "
            f"{len(free)} for them (buffers and frozen parameters cannot be told from those that "
            f"are trained). {ADVICE}"
        )
    assigned = iter(_unique_assignment(free, nameless))
    return [next(assigned) if own is None else own for own in names]


def _unique_assignment(
    free: dict[str, Shape], groups: Sequence[Sequence[Shape | None]]
) -> list[list[str]]:
    """Assign the model's parameters to the groups, in order; ValueError unless one way fits."""
    # A state of the search is how many parameters of each group have been placed. It holds in how
    # many ways, and the last of them: a group, and the way before.
    states: dict[Counts, tuple[int, Any]] = {(0,) * len(groups): (1, None)}
    choice = ""  # the first parameter that could go to several groups
    for name, shape in free.items():
        found: dict[Counts, tuple[int, Any]] = {}
        for placed, (ways, way) in states.items():
            for number, group in enumerate(groups):
                place = placed[number]
                if place < len(group) and group[place] in (shape, None):
                    after = (*placed[:number], place + 1, *placed[number + 1 :])
                    others, _ = found.get(after, (0, None))
                    found[after] = others + ways, (number, way)
        if not found:
            raise ValueError(
                f"the optimizers' states do not fit the model in its order: from `{name}` of shape "
                f"{shape} on, no group continues with that shape. {ADVICE}"
            )
        states = found
        if len(found) > 1:
            choice = choice or name
        if len(found) > MAX_SEARCH:
            break
    ways, way = next(iter(states.values()))
    if len(states) > 1 or ways > 1:
        raise ValueError(
            f"it cannot be told from shapes which optimizer had `{choice}`: several have states of "
            f"shape {free[choice]} that fit. {ADVICE}"
        )
    result: list[list[str]] = [[] for _ in groups]
    for name in reversed(free):
        number, way = way
        result[number].insert(0, name)
    return result


def _check(states: Iterable[ParameterState], known: Mapping[str, Shape] | None) -> None:
    """Raise ValueError if a name comes twice, or is not the model's, or has another shape there."""
    names: set[str] = set()
    for each in states:
        fault = None
        if each.name in names:
            fault = f"`{each.name}` has two states in the file"
        elif known is not None and each.name not in known:
            fault = f"the model has no trainable parameter `{each.name}`"
        elif known is not None and each.shape not in (None, known[each.name]):
            fault = (
                f"the state of `{each.name}` has shape {each.shape}, but the parameter has "
                f"{known[each.name]}"
            )
        if fault:
            raise ValueError(f"{fault}. {ADVICE}")
        names.add(each.name)
