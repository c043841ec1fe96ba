"""Find the output heads: the layers that compute a model's output are not hidden matrices.

A head is called so, or ends the model, or stands beside a head and reads what that reads. It is
never in a repeated block (there, the last Linear is an MLP's) but for forecasters' outputs, never
in a module beside the model (a loss, a metric, a frozen teacher), and never what steers a norm.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.names import WORDS
from lightning_root.partition.parameters import (
    CONTAINERS,
    Convolution,
    ModelParameter,
    Modules,
    ParameterUse,
    is_conv1d,
    plain_class,
)

Heads = dict[tuple[str, str], str]  # (module path, parameter's own name) -> reason
Units = dict[str, list[ParameterUse]]  # module path -> matrices in it
BlockType = type[nn.Module] | tuple[tuple[str, tuple[int, ...]], ...]


def find_heads(parameters: Sequence[ModelParameter], modules: Modules) -> Heads:
    """Find the output heads, each with the reason."""
    uses = sorted((use for p in parameters for use in p.uses), key=lambda use: use.index)
    uses = [use for use in uses if not names.MODULATION.search(use.path.lower())]
    blocks, auxiliary = _repeated_blocks(uses, modules), _auxiliary_modules(uses)
    model = [use for use in uses if auxiliary.isdisjoint(names.prefixes(use.path))]
    free = [use for use in model if blocks.isdisjoint(names.prefixes(use.path))]
    # One use a parameter: a module that is registered twice must not look like two.
    firsts = {parameter.uses[0].index for parameter in parameters}
    once = [use for use in model if use.index in firsts]
    top, units = _top_module(once), _matrices_below(once)

    towers, tied = _ends_of_towers(free), is_head_tied(parameters)
    heads = _layers_called_head(model, free, modules)
    for path, inner in units.items():  # what each block of a forecaster such as N-BEATS adds
        component, last = names.last_component(path), inner[-1]
        if names.has(component, "block_outputs") and len(inner) < 4 and last.kind == "linear":
            heads[last.path, last.leaf] = f"output head: named '{component}'"
    for use in (use for use in free if use.kind == "raw" and len(use.shape) > 1):
        words = [*use.words, names.last_component(use.path) if use.leaf == "lora_B" else ""]
        if called := next(filter(names.is_head, words), None):
            heads[use.path, use.leaf] = f"output head: named '{called}'"
    for path, module in (modules or {}).items():
        if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
            ends = ["head", *(f"tail.{number}.1" for number in range(module.n_clusters))]
            reason = "output head: a cluster of AdaptiveLogSoftmaxWithLoss"
            heads |= {(f"{path}.{end}".removeprefix("."), "weight"): reason for end in ends}
    heads = ({} if tied else _called_head_at_top(free, top)) | heads
    heads = {key: heads[key] for key in heads if not _is_read_by_a_head(key[0], heads, units)}
    if not (heads or towers or tied) and units:
        heads = _last_linear(units, free, top) or _last_of_stack(blocks, units)
    return _heads_beside(heads, free, units, modules) | towers


def is_head_tied(parameters: Iterable[ModelParameter]) -> bool:
    """Tell whether an embedding computes the output too; its own reason says so."""
    tables = (p for p in parameters if any(use.table == "embedding" for use in p.uses))
    return any(use.kind == "linear" for parameter in tables for use in parameter.uses)


def _matrices_below(model: Iterable[ParameterUse]) -> Units:
    """Return the matrices in every module that has any, in order."""
    units: Units = {}
    for use in (use for use in model if use.is_matrix):
        for path in names.prefixes(use.path):
            units.setdefault(path, []).append(use)
    return units


def _features(use: ParameterUse) -> tuple[int, int]:
    """Return how many features a matrix reads and how many it writes."""
    first, second = use.shape[:2]
    groups = use.module.groups if isinstance(use.module, Convolution) else 1
    if is_conv1d(use.module) or (isinstance(use.module, Convolution) and use.module.transposed):
        return first, second * groups
    return second * groups, first


def _is_read_by_a_head(path: str, heads: Heads, units: Units) -> bool:
    """Tell whether a layer called like a head feeds another one beside it: it is hidden."""
    # Heads that read alike feed nothing. A module's first matrix is the one that reads.
    named = (p for p in names.prefixes(path)[1:] if names.is_head(names.last_component(p)))
    unit = next(named, path)
    parent, own = unit.rpartition(".")[0], units.get(unit, [])
    for other in {p for head, _ in heads for p in names.prefixes(head)[1:]} - {unit}:
        theirs = units.get(other, [])
        if own and theirs and other.rpartition(".")[0] == parent and own[0].index < theirs[0].index:
            read, written = _features(own[0])[0], _features(own[-1])[1]
            predictor = f"{unit.removesuffix('_head')}_predictor"  # torchvision's
            if other == predictor or written == _features(theirs[0])[0] != read:
                return True
    return False


def _heads_beside(
    heads: Heads, free: Sequence[ParameterUse], units: Units, modules: Modules
) -> Heads:
    """Find layers, and modules of a head's kind, that read what a head reads and feed nothing."""
    # Actor and critic, a task's outputs, boxes and classes. The mean and variance of a latent code
    # are not among them: a decoder reads them.
    beside: dict[str, list[str]] = {}
    for path in filter(None, units):
        beside.setdefault(path.rpartition(".")[0], []).append(path)
    open_ends, found = {(use.path, use.leaf) for use in free}, dict(heads)
    pending = list(heads)
    for path, leaf in pending:  # grows with what it finds
        for unit in reversed(names.prefixes(path)[1:]):
            siblings = beside[unit.rpartition(".")[0]] if unit in units else []
            children = {names.last_component(child).lower() for child in siblings}
            attention = not children.isdisjoint(WORDS["attention_children"] - {"value"})
            if (path, leaf) not in open_ends or not siblings or attention:
                break
            last = units[unit][-1]
            if (last.path, last.leaf) not in found:
                break
            others = (p for p in siblings if _reads_alike(p, unit, units, modules))
            ends = [units[other][-1] for other in others if not _is_read(other, units)]
            ends = [use for use in ends if (use.path, use.leaf) in open_ends - found.keys()]
            sizes = [_features(use)[1] for use in ends]
            joined = any(
                _features(use)[0] == sum(sizes) for path in siblings for use in units[path]
            )
            if not joined or len(ends) == 1 or {*sizes} == {_features(last)[1]}:
                reason = f"output head: beside '{names.last_component(unit)}'"
                found |= {(use.path, use.leaf): reason for use in ends}
                pending += ((use.path, use.leaf) for use in ends)
    return found


def _reads_alike(path: str, unit: str, units: Units, modules: Modules) -> bool:
    """Tell whether two modules beside each other could both be heads on one input."""
    own, theirs, component = units[path], units[unit], names.last_component(path).lower()
    parent = path.rpartition(".")[0]
    kinds = {None if modules is None else plain_class(modules[p]) for p in (path, unit)}
    several = len(own) > 1 or len(theirs) > 1
    if {component, names.last_component(unit).lower()} <= WORDS["actors"] and path != unit:
        return own[-1].kind == theirs[-1].kind  # networks of their own
    if (
        path == unit
        or own[-1].kind != theirs[-1].kind
        or component in WORDS["hidden_beside_heads"]
        or (several and (len(own) != len(theirs) or len(kinds) > 1))
        or (not several and own[0] is units[""][0])  # before it there is no trunk to read
    ):
        return False
    if modules is not None and isinstance(modules[parent], nn.ModuleList | nn.ModuleDict):
        listed = [p for p in units if p and p.rpartition(".")[0] == parent]
        if not _is_chain(listed, units):
            return True  # one for each level of a pyramid
    read, written = _features(own[0])[0], _features(own[-1])[1]
    # Wider and before a head that is called so: more likely what a reshape follows.
    early = own[-1].index < theirs[-1].index and names.is_head(names.last_component(unit))
    return read == _features(theirs[0])[0] and (written < read or (written > read and not early))


def _is_read(path: str, units: Units) -> bool:
    """Tell whether a later layer reads what a module writes, whole or cut in up to four parts."""
    last, actor = units[path][-1], names.last_component(path).lower() in WORDS["actors"]
    later = {_features(use)[0] for use in units[""] if use.index > last.index and not actor}
    return any(_features(last)[1] == parts * read for read in later for parts in (1, 2, 3, 4))


def _is_chain(paths: Sequence[str], units: Units) -> bool:
    """Tell whether one of these modules writes as many features as the next one reads."""
    return any(
        _features(units[one][-1])[1] == _features(units[two][0])[0] for one, two in pairwise(paths)
    )


def _last_of_stack(blocks: set[str], units: Units) -> Heads:
    """Find the end of a stack of blocks that ends the model, or of each if they stand abreast."""
    last = units[""][-1]
    block = next((path for path in names.prefixes(last.path) if path in blocks), "")
    stack = [p for p in units if p in blocks and p.rpartition(".")[0] == block.rpartition(".")[0]]
    if last.kind != "linear" or len(stack) < 2:
        return {}
    ends, written = [units[path][-1] for path in stack], _features(last)[1]
    if not _is_chain(stack, units):
        return {(use.path, use.leaf): "output head: end of parallel blocks" for use in ends}
    if written in (_features(units[block][0])[0], _features(ends[-2])[1]):
        return {}
    parent = last.path.rpartition(".")[0]
    return {
        (use.path, use.leaf): "output head: the last block, of another size"
        for use in units[block]
        if use.path.rpartition(".")[0] == parent and use.shape == last.shape
    }


def _layers_called_head(
    model: Sequence[ParameterUse], free: Sequence[ParameterUse], modules: Modules
) -> Heads:
    """Find the last layer of every module that is called like a head."""
    groups: dict[str, str] = {}  # path of a head -> the component that names it
    for use in (use for use in free if use.is_matrix):
        for path in names.prefixes(use.path)[1:]:
            component = names.last_component(path)
            in_convolutions = component.lower() in WORDS["convolution_heads"]
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
        frozen = [f"{path}.base_layer", f"{path}.original_module"]  # below an adapter
        heads |= {
            (use.path, use.leaf): f"output head: named '{component}'"
            for use in inner
            if use.path in frozen
        }
        if last is not None and last in free and last.kind in ("linear", "convolution"):
            called = "named" if last.path == path else "last layer of"
            heads[last.path, last.leaf] = f"output head: {called} '{component}'"
    return heads


def _last_of_head(path: str, inner: Sequence[ParameterUse]) -> ParameterUse | None:
    """Return the layer that computes a head's output, None when it is elsewhere."""
    for use in reversed(inner):
        parent, _, component = use.path.rpartition(".")
        if parent == path and component.lower() in WORDS["last_in_head"]:
            return use
    last = inner[-1]
    hidden = names.last_component(last.path).lower() in WORDS["hidden_in_head"]
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
        if parent == top and component.lower() in WORDS["top_level_heads"]:
            return {(use.path, use.leaf): f"output head: named '{component}'"}
        # Norm, activation, layer: a U-Net's `out`.
        grandparent, _, holder = parent.rpartition(".")
        numbered = parent and grandparent == top and component.isdigit()
        if numbered and holder.lower() in WORDS["last_in_head"]:
            return {(use.path, use.leaf): f"output head: last layer of '{holder}'"}
    return {}


def _last_linear(units: Units, free: Sequence[ParameterUse], top: str) -> Heads:
    """Take the last Linear for the head, unless something says that it is hidden."""
    last = units[""][-1]
    parent, _, component = last.path.rpartition(".")
    residual = component.lower() in WORDS["residual_outputs"] and parent != top
    if last.kind != "linear" or last not in free or residual:
        return {}
    only = len({use.path for use in units[""]}) == 1
    return {(last.path, last.leaf): f"output head: {'the only' if only else 'last'} Linear"}


def _is_attention(path: str, inner: Sequence[ParameterUse]) -> bool:
    """Tell whether a module called like a head is an attention's."""
    depth = path.count(".") + 1
    children = {use.path.split(".")[depth].lower() for use in inner if use.path != path}
    itself = any(use.kind == "attention" and use.path == path for use in inner)
    return itself or not children.isdisjoint(WORDS["attention_children"])


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
            if frozen or names.has(component, "auxiliary"):
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
            cls = CONTAINERS[0] if modules is None else plain_class(modules[path])
            own = tuple((use.name.removeprefix(path), use.shape) for use in inner)
            stacks.setdefault(parent, {})[path] = own if cls in CONTAINERS else cls
    blocks: set[str] = set()
    for stack, children in stacks.items():
        component = names.last_component(stack)
        if names.is_head(component):
            continue  # parallel heads are alike, and no blocks for that
        count, named = Counter(children.values()), component.lower() in WORDS["block_containers"]
        blocks |= {
            child
            for child, block_type in children.items()
            if count[block_type] > 1
            or (named and (modules is None or isinstance(block_type, type)))
        }
    return blocks
