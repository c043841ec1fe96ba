"""Whose state is whose: optimizers number their parameters, and numbers do not travel."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lightning_root.partition.names import canonical

StateDict = dict[str, Any]
Shape = tuple[int, ...]
Sizes = tuple[int, ...]

RUNNING_STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of torch's own layers, which lie among the weights and have no optimizer state."""

_MANY: Final = 4096
"""Orders that are looked at side by side; more of them are not told apart."""

WAYS_OUT: Final = (
    "Give the model (`--config FILE`, or `--model CLASS_PATH`), or `--names FILE` with one "
    "parameter name a line, in the order of the optimizer's groups"
)


@dataclass(frozen=True)
class Entry:
    """A parameter as an optimizer had it.

    Args:
        name: In the model.
        state: Tensors and numbers, by their keys.
        optimizer: Number of the optimizer in the file.
        group: Number of the group in that optimizer.
    """

    name: str
    state: Mapping[str, Any]
    optimizer: int
    group: int

    @property
    def shape(self) -> Shape | None:
        """Of its averages or momentum; None where there are none."""
        return _shape(self.state)


def parameter_names(weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """What can be a parameter among a model's weights, in the order of the model, with its shape.

    Left out are whole numbers, running statistics, and all names but the first of tied weights.
    """
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


def entries_of(
    optimizers: Sequence[StateDict],
    known: Mapping[str, Shape] | None = None,
    order: Sequence[str] | None = None,
) -> list[Entry]:
    """Every parameter of the optimizers with its name.

    Names are taken from the groups where those have them, else from `order`, else from the model:
    if there is just one way to deal out its parameters to the groups, in its own order in each,
    such that all shapes fit.

    Args:
        optimizers: Their state dicts.
        known: The model's trainable parameters in their order.
        order: The names of all parameters in the order of the optimizers and their groups.

    Raises:
        ValueError: If names cannot be had, or do not fit.
    """
    groups = [
        (number, place, group, optimizer["state"])
        for number, optimizer in enumerate(optimizers)
        for place, group in enumerate(optimizer["param_groups"])
    ]
    names = [_own_names(group) for _, _, group, _ in groups]
    shapes = [[_shape(state.get(i, {})) for i in group["params"]] for _, _, group, state in groups]
    if order is not None:
        names = _dealt_in_order(order, [len(each) for each in shapes])
    elif any(each is None for each in names):
        found = _by_number(optimizers, known) or _dealt_by_shape(names, shapes, known)
        names = list(found)
    entries = [
        Entry(name, dict(state.get(identity, {})), number, place)
        for (number, place, group, state), own in zip(groups, names, strict=True)
        for name, identity in zip(own or (), group["params"], strict=True)
    ]
    _check(entries, known)
    return entries


def _own_names(group: Mapping[str, Any]) -> list[str] | None:
    """The names that a group knows; None if it has parameters without."""
    given = group.get("param_names", group["params"])
    if len(given) != len(group["params"]) or not all(isinstance(name, str) for name in given):
        return None
    return [canonical(name) for name in given]


def _dealt_in_order(order: Sequence[str], sizes: Sequence[int]) -> list[list[str] | None]:
    if len(order) != sum(sizes):
        raise ValueError(
            f"`--names` must hold {sum(sizes)} names, one for each parameter of the optimizers, "
            f"got {len(order)}"
        )
    rest = iter(canonical(name) for name in order)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _by_number(
    optimizers: Sequence[StateDict], known: Mapping[str, Shape] | None
) -> list[list[str]] | None:
    """Numbers in the order of the model, as Lightning writes them under FSDP2.

    An optimizer itself numbers group by group; where these agree both are right.
    """
    if known is None or len(optimizers) != 1:
        return None
    numbers = [i for group in optimizers[0]["param_groups"] for i in group["params"]]
    if numbers == sorted(numbers) or sorted(numbers) != list(range(len(known))):
        return None
    names = list(known)
    return [[names[i] for i in group["params"]] for group in optimizers[0]["param_groups"]]


def _dealt_by_shape(
    names: Sequence[list[str] | None],
    shapes: Sequence[Sequence[Shape | None]],
    known: Mapping[str, Shape] | None,
) -> list[list[str]]:
    """Deal the model's parameters out to the groups without names."""
    if known is None:
        raise ValueError(f"the file has neither parameter names nor a model's weights. {WAYS_OUT}")
    named = {name for own in names if own is not None for name in own}
    free = [(name, shape) for name, shape in known.items() if name not in named]
    nameless = [each for own, each in zip(names, shapes, strict=True) if own is None]
    count = sum(map(len, nameless))
    if count != len(free):
        raise ValueError(
            f"the optimizers have {count} parameters without a name, and the model has "
            f"{len(free)} for them (buffers and frozen parameters cannot be told from those that "
            f"are trained). {WAYS_OUT}"
        )
    dealt = iter(_only_way(free, nameless))
    return [next(dealt) if own is None else own for own in names]


def _only_way(
    free: Sequence[tuple[str, Shape]], groups: Sequence[Sequence[Shape | None]]
) -> list[list[str]]:
    """Merge the groups into the order of the model; there must be one way.

    A state of the search is how many of each group have been placed.
    """
    start = (0,) * len(groups)
    reached: list[dict[Sizes, tuple[int, int]]] = [{start: (1, -1)}]  # number of ways, last group
    for name, shape in free:
        found: dict[Sizes, tuple[int, int]] = {}
        for taken, (ways, _) in reached[-1].items():
            for number, group in enumerate(groups):
                place = taken[number]
                if place < len(group) and group[place] in (shape, None):
                    after = (*taken[:number], place + 1, *taken[number + 1 :])
                    found[after] = (found.get(after, (0, 0))[0] + ways, number)
        if not found:
            raise ValueError(
                f"the optimizers' states do not fit the model in its order: from `{name}` of shape "
                f"{shape} on, no group continues with that shape. {WAYS_OUT}"
            )
        if len(found) > _MANY:
            raise ValueError(_ambiguous(name, shape))
        reached.append(found)
    taken = tuple(len(group) for group in groups)
    if reached[-1][taken][0] > 1:
        choices = zip(free, reached[1:], strict=True)
        raise ValueError(_ambiguous(*next(entry for entry, found in choices if len(found) > 1)))
    result: list[list[str]] = [[] for _ in groups]
    for (name, _), found in zip(reversed(free), reversed(reached), strict=False):
        number = found[taken][1]
        result[number].insert(0, name)
        taken = (*taken[:number], taken[number] - 1, *taken[number + 1 :])
    return result


def _ambiguous(name: str, shape: Shape) -> str:
    return (
        f"it cannot be told from shapes which optimizer had `{name}`: several have states of shape "
        f"{shape} that fit. {WAYS_OUT}"
    )


def _shape(state: Mapping[str, Any]) -> Shape | None:
    for key in ("momentum_buffer", "exp_avg"):
        if isinstance(state.get(key), Tensor):
            return tuple(state[key].shape)
    return None


def _check(entries: Iterable[Entry], known: Mapping[str, Shape] | None) -> None:
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise ValueError(f"`{entry.name}` has two states in the file. {WAYS_OUT}")
        names.add(entry.name)
        if known is None:
            continue
        if entry.name not in known:
            raise ValueError(f"the model has no trainable parameter `{entry.name}`. {WAYS_OUT}")
        if entry.shape is not None and entry.shape != known[entry.name]:
            raise ValueError(
                f"the state of `{entry.name}` has shape {entry.shape}, but the parameter has "
                f"{known[entry.name]}. {WAYS_OUT}"
            )
