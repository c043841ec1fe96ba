"""The shape of a model: which modules are repeated blocks, and which stand beside the model.

Both questions serve one purpose, to find the output head: it is never in a repeated block (there,
the last Linear is an MLP's) and never in a loss, a metric or a frozen teacher.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.places import Place, is_container, plain_class

Likeness = type[nn.Module] | tuple[tuple[str, tuple[int, ...]], ...]


def repeated_blocks(
    places: Iterable[Place], modules: Mapping[str, nn.Module] | None
) -> frozenset[str]:
    """Return the paths of modules that stand in a stack next to others of their kind.

    A stack is a `ModuleList`, a `Sequential` or anything with numbered children. Its children are
    blocks when they hold matrices in modules of their own (so the Linears of a plain MLP are none)
    and a sibling is alike: of the same class or, where the class says nothing, with the same
    parameters. In a stack called "blocks", "layers", ... one child of a custom class is enough.
    """
    members = _composites(places)
    stacks: dict[str, list[str]] = {}
    for path in members:
        if path and _is_stack(path, modules):
            stacks.setdefault(path.rpartition(".")[0], []).append(path)
    blocks: set[str] = set()
    for stack, children in stacks.items():
        likeness = {child: _likeness(child, members[child], modules) for child in children}
        count = Counter(likeness.values())
        named = names.is_stack(names.last_component(stack))
        for child, kind in likeness.items():
            custom = modules is None or isinstance(kind, type)
            if count[kind] > 1 or (named and custom):
                blocks.add(child)
    return frozenset(blocks)


def in_any(path: str, roots: frozenset[str]) -> bool:
    """Tell whether a module path is one of `roots` or lies in one."""
    return path in roots or any(ancestor in roots for ancestor in names.ancestors(path))


def auxiliary_modules(places: Sequence[Place]) -> frozenset[str]:
    """Return the paths of losses, metrics and teachers: known by name, or frozen as a whole.

    A frozen Linear alone or a frozen head is still part of the model.
    """
    alive = {
        a for place in places if place.trainable for a in (*names.ancestors(place.path), place.path)
    }
    found: set[str] = set()
    for place in places:
        for path in names.ancestors(place.path)[1:]:
            component = names.last_component(path)
            if names.is_auxiliary(component) or (
                path not in alive and not names.is_head(component)
            ):
                found.add(path)
        if names.is_auxiliary(names.last_component(place.path)):
            found.add(place.path)
    return frozenset(found)


def _composites(places: Iterable[Place]) -> dict[str, list[Place]]:
    """Map each module that has submodules with matrices to all the places in these submodules."""
    below: dict[str, list[Place]] = {}
    for place in places:
        for path in names.ancestors(place.path):
            below.setdefault(path, []).append(place)
    return {path: inner for path, inner in below.items() if any(p.is_matrix for p in inner)}


def _is_stack(child: str, modules: Mapping[str, nn.Module] | None) -> bool:
    """Tell whether a child's parent is a stack."""
    parent, _, key = child.rpartition(".")
    if modules is not None and isinstance(modules[parent], nn.ModuleList | nn.Sequential):
        return True
    return key.isdigit()


def _likeness(
    path: str, inner: Sequence[Place], modules: Mapping[str, nn.Module] | None
) -> Likeness:
    """Return what must be equal for two siblings to count as alike."""
    if modules is not None and not is_container(cls := plain_class(modules[path])):
        return cls
    return tuple((place.name.removeprefix(path), place.shape) for place in inner)
