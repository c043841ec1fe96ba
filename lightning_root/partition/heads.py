"""Find the output heads: the layers that compute a model's output are not hidden matrices.

A head is never in a repeated block (there, the last Linear is an MLP's), never in a module beside
the model (a loss, a metric, a frozen teacher), and never what steers a norm.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.parameters import (
    CONTAINERS,
    ModelParameter,
    Modules,
    ParameterUse,
    plain_class,
)

Heads = dict[tuple[str, str], str]  # (module path, parameter's own name) -> reason
BlockType = type[nn.Module] | tuple[tuple[str, tuple[int, ...]], ...]


def find_heads(parameters: Sequence[ModelParameter], modules: Modules) -> Heads:
    """Find the output heads, each with the reason."""
    uses = sorted((use for p in parameters for use in p.uses), key=lambda use: use.index)
    uses = [use for use in uses if not names.MODULATION.search(use.path.lower())]
    blocks, auxiliary = _repeated_blocks(uses, modules), _auxiliary_modules(uses)
    model = [use for use in uses if auxiliary.isdisjoint(names.prefixes(use.path))]
    free = [use for use in model if blocks.isdisjoint(names.prefixes(use.path))]

    heads = _layers_called_head(model, free, modules)
    for use in free:
        if use.kind == "raw" and len(use.shape) > 1 and names.is_head(use.own_component):
            heads[use.path, use.leaf] = f"output head: named '{use.own_component}'"
    heads |= _ends_of_towers(free)
    tables = (p for p in parameters if any(use.table == "embedding" for use in p.uses))
    if heads or any(use.kind == "linear" for parameter in tables for use in parameter.uses):
        return heads  # a head tied to an embedding has its reason there
    # One use a parameter: a module that is registered twice must not look like two.
    firsts = {parameter.uses[0].index for parameter in parameters}
    model = [use for use in model if use.index in firsts]
    top = _top_module(model)
    return _called_head_at_top(free, top) or _last_linear(model, free, top)


def _layers_called_head(
    model: Sequence[ParameterUse], free: Sequence[ParameterUse], modules: Modules
) -> Heads:
    """Find the last layer of every module that is called like a head."""
    groups: dict[str, str] = {}  # path of a head -> the component that names it
    for use in (use for use in free if use.is_matrix):
        for path in names.prefixes(use.path)[1:]:
            component = names.last_component(path)
            in_convolutions = component.lower() in names.CONVOLUTION_HEADS
            if not names.is_head(component) and not (use.kind == "convolution" and in_convolutions):
                continue
            if modules is not None and isinstance(modules[path], nn.ModuleDict | nn.ModuleList):
                # Parallel heads, one for each task.
                path = ".".join(use.path.split(".")[: path.count(".") + 2])
            groups[path] = component
    outer = {ancestor for path in groups for ancestor in names.prefixes(path)[:-1]}
    heads: Heads = {}
    for path, component in groups.items():
        inner = [use for use in model if use.is_matrix and path in names.prefixes(use.path)]
        if path in outer or _is_attention(path, inner):
            continue  # a head in a head is the narrower one
        last = _last_of_head(path, inner)
        if last is not None and last in free and last.kind in ("linear", "convolution"):
            called = "named" if last.path == path else "last layer of"
            heads[last.path, last.leaf] = f"output head: {called} '{component}'"
    return heads


def _last_of_head(path: str, inner: Sequence[ParameterUse]) -> ParameterUse | None:
    """Return the layer that computes a head's output, None when it is elsewhere."""
    for use in reversed(inner):
        parent, _, component = use.path.rpartition(".")
        if parent == path and component.lower() in names.LAST_IN_HEAD:
            return use
    last = inner[-1]
    hidden = names.last_component(last.path).lower() in names.HIDDEN_IN_HEAD
    return None if hidden and last.path != path else last


def _ends_of_towers(free: Sequence[ParameterUse]) -> Heads:
    """Find the projections into a space that two towers share, such as images and texts."""
    towers: dict[str, dict[str, ParameterUse]] = {}  # parent -> projection -> its last layer
    for use in (use for use in free if use.kind == "linear"):
        for path in names.prefixes(use.path)[1:]:
            parent, _, component = path.rpartition(".")
            if names.SHARED_SPACE.match(component.lower()):
                towers.setdefault(parent, {})[component] = use
    return {
        (use.path, use.leaf): f"output head: '{component}', one of {len(ends)}"
        for ends in towers.values()
        for component, use in ends.items()
        if len(ends) > 1
    }


def _called_head_at_top(free: Sequence[ParameterUse], top: str) -> Heads:
    """Find the last layer at the top of the model with a name that is only telling there."""
    for use in reversed(free):
        parent, _, component = use.path.rpartition(".")
        if use.kind not in ("linear", "convolution"):
            continue
        if parent == top and component.lower() in names.TOP_LEVEL_HEADS:
            return {(use.path, use.leaf): f"output head: named '{component}'"}
        # Norm, activation, layer: a U-Net's `out`.
        grandparent, _, holder = parent.rpartition(".")
        numbered = parent and grandparent == top and component.isdigit()
        if numbered and holder.lower() in names.LAST_IN_HEAD:
            return {(use.path, use.leaf): f"output head: last layer of '{holder}'"}
    return {}


def _last_linear(model: Sequence[ParameterUse], free: Sequence[ParameterUse], top: str) -> Heads:
    """Take the last Linear for the head, unless something says that it is hidden."""
    matrices = [use for use in model if use.is_matrix]
    if not matrices or matrices[-1].kind != "linear" or matrices[-1] not in free:
        return {}
    last = matrices[-1]
    parent, _, component = last.path.rpartition(".")
    if component.lower() in names.RESIDUAL_OUTPUTS and parent != top:
        return {}
    only = len({use.path for use in matrices}) == 1
    return {(last.path, last.leaf): f"output head: {'the only' if only else 'last'} Linear"}


def _is_attention(path: str, inner: Sequence[ParameterUse]) -> bool:
    """Tell whether a module called like a head is an attention's."""
    depth = path.count(".") + 1
    children = {use.path.split(".")[depth].lower() for use in inner if use.path != path}
    itself = any(use.kind == "attention" and use.path == path for use in inner)
    return itself or not children.isdisjoint(names.ATTENTION_CHILDREN)


def _top_module(model: Sequence[ParameterUse]) -> str:
    """Return the innermost module that holds the whole model, below wrappers like `self.model`."""
    holders = [
        (use.path if use.kind == "raw" else use.path.rpartition(".")[0]).split(".")
        for use in model
        if len(use.shape) > 1
    ]
    levels = zip(*holders, strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    return ".".join(level[0] for level in shared)


def _auxiliary_modules(uses: Sequence[ParameterUse]) -> set[str]:
    """Return the paths of losses, metrics and teachers: known by name, or frozen as a whole."""
    trained = {path for use in uses if use.trainable for path in names.prefixes(use.path)}
    found: set[str] = set()
    for use in uses:
        for path in names.prefixes(use.path)[1:]:
            component = names.last_component(path)
            # A frozen Linear alone or a frozen head is still part of the model.
            frozen = path not in trained and path != use.path and not names.is_head(component)
            if frozen or names.is_auxiliary(component):
                found.add(path)
    return found


def _repeated_blocks(uses: Iterable[ParameterUse], modules: Modules) -> set[str]:
    """Return the paths of modules that stand in a stack next to others of their kind."""
    # A stack is a `ModuleList`, a `Sequential` or anything with numbered children. Its children are
    # blocks when they hold matrices in modules of their own (so the Linears of a plain MLP are
    # none) and a sibling is of the same class or, where the class says nothing, has the same
    # parameters. In a stack called "blocks", "layers", ... one child of a custom class is enough.
    below: dict[str, list[ParameterUse]] = {}  # path of a module -> uses in its submodules
    for use in uses:
        for path in names.prefixes(use.path)[:-1]:
            below.setdefault(path, []).append(use)
    stacks: dict[str, dict[str, BlockType]] = {}  # path of a stack -> path of a child -> its type
    for path, inner in below.items():
        parent, _, key = path.rpartition(".")
        listed = modules is not None and isinstance(modules[parent], nn.ModuleList | nn.Sequential)
        if path and (listed or key.isdigit()) and any(use.is_matrix for use in inner):
            stacks.setdefault(parent, {})[path] = _block_type(path, inner, modules)
    blocks: set[str] = set()
    for stack, children in stacks.items():
        component = names.last_component(stack)
        if names.is_head(component):
            continue  # parallel heads are alike, and no blocks for that
        count, named = Counter(children.values()), component.lower() in names.BLOCK_CONTAINERS
        for child, block_type in children.items():
            custom = modules is None or isinstance(block_type, type)
            if count[block_type] > 1 or (named and custom):
                blocks.add(child)
    return blocks


def _block_type(path: str, inner: Sequence[ParameterUse], modules: Modules) -> BlockType:
    """Return what must be equal for two siblings to count as alike."""
    if modules is not None and (cls := plain_class(modules[path])) not in CONTAINERS:
        return cls
    return tuple((use.name.removeprefix(path), use.shape) for use in inner)
