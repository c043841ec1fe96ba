"""Find the output heads: the layers that compute a model's output are not hidden matrices."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.places import Entry, Place
from lightning_root.partition.structure import auxiliary_modules, in_any, repeated_blocks

Heads = dict[tuple[str, str], str]  # (module path, parameter's own name) -> reason


def find_heads(entries: Sequence[Entry], modules: Mapping[str, nn.Module] | None) -> Heads:
    """Find the output heads and say what gave them away.

    In this order: layers called like a head; both ends of two towers; a head tied to an embedding
    (nothing more to find); a layer called `fc`, `output`, ... at the top of the model; the last
    Linear, provided that no other matrix comes after it. A head is never in a repeated block or in
    an auxiliary module, and never what steers a norm.
    """
    every = sorted((p for e in entries for p in e.places), key=lambda place: place.index)
    every = [place for place in every if not any(map(names.is_modulation, place.path.split(".")))]
    # Parallel heads are alike, and no blocks for that.
    blocks = frozenset(
        path for path in repeated_blocks(every, modules) if not _is_parallel_head(path)
    )
    auxiliary = auxiliary_modules(every)
    model = [place for place in every if not in_any(place.path, auxiliary)]
    free = [place for place in model if not in_any(place.path, blocks)]

    heads = _layers_called_head(model, free, modules) | _tables_called_head(free)
    heads |= _ends_of_towers(free)
    if heads or any(_is_tied_head(entry) for entry in entries):
        return heads
    # One place a parameter: a module that is registered twice must not look like two.
    firsts = {entry.places[0].index for entry in entries}
    model = [place for place in model if place.index in firsts]
    top = _top(model)
    return _called_head_at_top(free, top) or _last_linear(model, free, top)


def _layers_called_head(
    model: Sequence[Place], free: Sequence[Place], modules: Mapping[str, nn.Module] | None
) -> Heads:
    """Find the last layer of every module that is called like a head."""
    groups: dict[str, str] = {}  # path of a head -> the component that names it
    for place in (place for place in free if place.is_matrix):
        for path in (*names.ancestors(place.path)[1:], place.path):
            component = names.last_component(path)
            convolution = place.kind == "convolution" and names.is_convolution_head(component)
            if not names.is_head(component) and not convolution:
                continue
            if modules is not None and isinstance(modules[path], nn.ModuleDict | nn.ModuleList):
                # Parallel heads, one for each task.
                path = ".".join(place.path.split(".")[: path.count(".") + 2])
            groups[path] = component
    outer = frozenset(ancestor for path in groups for ancestor in names.ancestors(path))
    heads: Heads = {}
    for path, component in groups.items():
        inner = [p for p in model if p.is_matrix and in_any(p.path, frozenset({path}))]
        if path in outer or _is_attention(path, inner):
            continue  # a head in a head is the narrower one
        last = _last_of_head(path, inner)
        if last is not None and last in free and last.kind in ("linear", "convolution"):
            called = "named" if last.path == path else "last layer of"
            heads[last.path, last.leaf] = f"output head: {called} '{component}'"
    return heads


def _last_of_head(path: str, inner: Sequence[Place]) -> Place | None:
    """Return the layer that computes a head's output, None when it is elsewhere."""
    for place in reversed(inner):
        parent, _, component = place.path.rpartition(".")
        if parent == path and names.ends_head(component):
            return place
    last = inner[-1]
    hidden = last.path != path and names.is_transform(names.last_component(last.path))
    return None if hidden else last


def _ends_of_towers(free: Sequence[Place]) -> Heads:
    """Find the projections into a space that two towers share, such as images and texts."""
    towers: dict[str, dict[str, Place]] = {}  # the towers' parent -> projection -> its last layer
    for place in (place for place in free if place.kind == "linear"):
        for path in (*names.ancestors(place.path)[1:], place.path):
            parent, _, component = path.rpartition(".")
            if names.leads_to_shared_space(component):
                towers.setdefault(parent, {})[component] = place
    return {
        (place.path, place.leaf): f"output head: '{component}', one of {len(ends)}"
        for ends in towers.values()
        for component, place in ends.items()
        if len(ends) > 1
    }


def _tables_called_head(free: Sequence[Place]) -> Heads:
    """Find parameters of custom modules that are called like a head."""
    return {
        (place.path, place.leaf): f"output head: named '{place.own_component}'"
        for place in free
        if place.kind == "raw" and len(place.shape) > 1 and names.is_head(place.own_component)
    }


def _called_head_at_top(free: Sequence[Place], top: str) -> Heads:
    """Find the last layer at the top of the model with a name that is only telling there."""
    for place in reversed(free):
        parent, _, component = place.path.rpartition(".")
        if place.kind not in ("linear", "convolution"):
            continue
        if parent == top and names.is_top_level_head(component):
            return {(place.path, place.leaf): f"output head: named '{component}'"}
        # Norm, activation, layer: a U-Net's `out`.
        grandparent, _, holder = parent.rpartition(".")
        if parent and grandparent == top and component.isdigit() and names.ends_head(holder):
            return {(place.path, place.leaf): f"output head: last layer of '{holder}'"}
    return {}


def _last_linear(model: Sequence[Place], free: Sequence[Place], top: str) -> Heads:
    """Take the last Linear for the head, unless something says that it is hidden."""
    matrices = [place for place in model if place.is_matrix]
    if not matrices or matrices[-1].kind != "linear" or matrices[-1] not in free:
        return {}
    last = matrices[-1]
    parent, _, component = last.path.rpartition(".")
    if names.is_hidden(component) and parent != top:
        return {}
    only = len({place.path for place in matrices}) == 1
    return {(last.path, last.leaf): f"output head: {'the only' if only else 'last'} Linear"}


def _is_parallel_head(path: str) -> bool:
    """Tell whether a module is one of several in a container called like a head."""
    return names.is_head(names.last_component(path.rpartition(".")[0]))


def _is_tied_head(entry: Entry) -> bool:
    """Tell whether a parameter is both an embedding and a Linear's weight."""
    return any(p.table == "embedding" for p in entry.places) and any(
        p.kind == "linear" for p in entry.places
    )


def _is_attention(path: str, inner: Sequence[Place]) -> bool:
    """Tell whether a module called like a head is an attention's."""
    depth = path.count(".") + 1
    parts = (place.path.split(".")[depth] for place in inner if place.path != path)
    return any(place.kind == "attention" and place.path == path for place in inner) or any(
        map(names.is_attention_part, parts)
    )


def _top(model: Sequence[Place]) -> str:
    """Return the innermost module that holds the whole model, below wrappers like `self.model`."""
    holders = [
        (p.path if p.kind == "raw" else p.path.rpartition(".")[0]).split(".")
        for p in model
        if len(p.shape) > 1
    ]
    levels = zip(*holders, strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    return ".".join(level[0] for level in shared)
