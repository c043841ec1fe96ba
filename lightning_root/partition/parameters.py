"""A model's parameters: where each is registered, what its module is, and what that module says.

From here on a module's parameters and mere (name, tensor) pairs are treated alike: a
`ParameterUse` holds all that the later decisions look at. A tied parameter has several uses.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from lightning_root.partition import names

Modules = Mapping[str, nn.Module] | None  # by canonical path; None when only names are known
LayerKind = Literal["embedding", "convolution", "linear", "attention", "recurrent", "norm", "raw"]

Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
# Classes that only hold children: two of a class need have nothing in common.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DERIVED = ("FSDP", "Parametrized")  # what FSDP2 and parametrizations put before a class's name


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterUse:
    """One attribute of one module that holds a parameter."""

    index: int  # when it was registered, counted over all uses in the model
    name: str  # canonical, of the parameter in this use
    path: str  # canonical, of the owning module; "" for the model itself
    leaf: str  # the parameter's own name there, "weight" also when it is parametrized
    shape: tuple[int, ...]  # of the whole parameter
    kind: LayerKind  # what the parameter is to its owner
    owner: str  # class name of the owner, "" when there is no module to ask
    module: nn.Module | None  # the owner, None when there is no module to ask
    trainable: bool  # whether gradients are wanted
    dtype: torch.dtype

    @property
    def is_matrix(self) -> bool:
        """Whether this is a weight that maps features to features."""
        if self.kind == "raw":
            return self.leaf == "weight" and len(self.shape) == 2
        return self.kind in ("linear", "convolution", "attention", "recurrent")

    @property
    def own_component(self) -> str:
        """The component of the name that is about this parameter."""
        if isinstance(self.module, nn.ParameterDict) and names.table_kind(self.leaf) is None:
            return names.last_component(self.path)  # a dict's keys may be any words
        return names.own_component(self.path, self.leaf)

    @property
    def table(self) -> str | None:
        """Kind of this table, by type or, for a raw parameter, by name; None for no table."""
        if self.kind == "embedding":
            return "embedding"
        if self.kind != "raw":
            return None
        words = self.words if len(self.shape) == 2 else [self.own_component]
        return next(filter(None, map(names.table_kind, words)), None)

    @property
    def words(self) -> list[str]:
        """The words that name it: its own component, else what its owner and class say."""
        more = [names.last_component(self.path), names.words_of_class(self.owner)]
        return [self.own_component, *([] if names.has(self.leaf, "matrix") else more)]


class ModelParameter(NamedTuple):
    """One parameter with all its uses, in the order in which they were registered."""

    tensor: Tensor
    uses: tuple[ParameterUse, ...]

    @property
    def name(self) -> str:
        """The name that the module's own `named_parameters()` gives, without wrappers."""
        return self.uses[0].name


def survey_module(module: nn.Module) -> tuple[list[ModelParameter], dict[str, nn.Module]]:
    """List a module's parameters and, by canonical path, its submodules; refuse lazy parameters."""
    # A wrapper and the module in it share one canonical path; the inner one comes later and stays.
    bare = _without_wrappers(module)
    named_modules = module.named_modules(remove_duplicate=False)
    modules = {bare(path): child for path, child in named_modules}
    named = [(bare(name), p) for name, p in module.named_parameters(remove_duplicate=False)]
    if lazy := [name for name, parameter in named if is_lazy(parameter)]:
        more = f" and {len(lazy) - 3} more" if len(lazy) > 3 else ""
        raise ValueError(
            f"`module` has parameters without a shape yet: {', '.join(map(repr, lazy[:3]))}{more}; "
            "run one forward pass before the parameters are partitioned."
        )
    return collect_uses(named, modules), modules


def canonical_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List `module.named_parameters()` by the names that they have without wrappers."""
    bare = _without_wrappers(module)
    return [(bare(name), parameter) for name, parameter in module.named_parameters()]


def _without_wrappers(module: nn.Module) -> Callable[[str], str]:
    """Return what turns a name in a module into the one that the bare model gives."""
    # `module` is a word like any other; only below these two classes is it a wrapper's.
    inner = {
        f"{path}.module".removeprefix(".")
        for path, child in module.named_modules(remove_duplicate=False)
        if isinstance(child, DistributedDataParallel | DataParallel)
    }

    def bare(name: str) -> str:
        kept = (path for path in names.prefixes(name)[1:] if path not in inner)
        return names.canonical(".".join(map(names.last_component, kept)))

    return bare


def collect_uses(named: Iterable[tuple[str, Tensor]], modules: Modules) -> list[ModelParameter]:
    """List each distinct parameter with all its uses, in order of first appearance."""
    collected: dict[int, tuple[Tensor, list[ParameterUse]]] = {}
    # Fabric registers a model twice, under names that are equal but for the wrapper.
    distinct = {(name, id(tensor)): tensor for name, tensor in named}
    for index, ((name, key), tensor) in enumerate(distinct.items()):
        use = _describe_use(index, names.canonical(name), tensor, modules)
        collected.setdefault(key, (tensor, []))[1].append(use)
    return [ModelParameter(tensor=t, uses=tuple(uses)) for t, uses in collected.values()]


def _describe_use(index: int, name: str, tensor: Tensor, modules: Modules) -> ParameterUse:
    """Describe one parameter in one module; of the tensor, only its metadata is read."""
    path, leaf = names.split_name(name)
    module, ndim = None if modules is None else modules[path], tensor.ndim
    kind = _kind_by_name(path, leaf, ndim) if module is None else _kind_by_type(module, leaf, ndim)
    return ParameterUse(
        index=index,
        name=name,
        path=path,
        leaf=leaf,
        shape=tuple(tensor.shape),  # global, also for a DTensor
        kind=kind,
        owner="" if module is None else plain_class(module).__name__,
        module=module,
        trainable=module is None or tensor.requires_grad,  # who names a parameter wants it
        dtype=tensor.dtype,
    )


def _kind_by_type(module: nn.Module, leaf: str, ndim: int) -> LayerKind:
    """Read the kind from the owner's type; class names speak for other libraries' modules."""
    name = plain_class(module).__name__
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Embedding" in name:
        return "embedding"
    if isinstance(module, Convolution) and leaf == "weight":
        return "convolution"
    linear = isinstance(module, nn.Linear) or name.endswith("Linear")
    if linear and leaf == "weight" and ndim == 2:
        return "linear"
    if isinstance(module, nn.MultiheadAttention) and leaf.endswith("proj_weight"):
        return "attention"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and leaf.startswith("weight_"):
        return "recurrent"
    return "norm" if "Norm" in name and not linear else "raw"


def _kind_by_name(path: str, leaf: str, ndim: int) -> LayerKind:
    """Guess the kind from names and the number of dimensions."""
    own = names.own_component(path, leaf)
    if names.table_kind(own) is not None and names.patch_component(path) is None:
        return "raw"
    if leaf.endswith("proj_weight"):
        return "attention"
    if leaf.startswith(("weight_ih", "weight_hh", "weight_hr")):
        return "recurrent"
    if "norm" in own.lower():
        return "norm"
    if leaf == "weight" and ndim in (2, 4, 5):  # a 3-D weight: a convolution or a stack of experts
        return "linear" if ndim == 2 else "convolution"
    return "raw"


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without the subclasses that FSDP2 and parametrizations derive."""
    cls = type(module)
    while bases := [b for b in cls.__bases__ for p in _DERIVED if cls.__name__ == p + b.__name__]:
        cls = bases[0]
    return cls


def is_conv1d(module: nn.Module | None) -> bool:
    """Tell whether a module is transformers' Conv1D: a Linear with its weight as (in, out)."""
    if module is None or plain_class(module).__name__ != "Conv1D":
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape[1:] == (getattr(module, "nf", None),)


def find_size(module: nn.Module | None, size: str) -> int | None:
    """Return the first positive integer that a module or its `config` has for a kind of size."""
    for holder in (module, getattr(module, "config", None)):
        for name in names.WORDS.get(size, (size,)):
            value = getattr(holder, name, None)
            if type(value) is int and value > 0:
                return value
    return None


def find_child(parent: nn.Module | None, name: str) -> nn.Module | None:
    """Return a module's child by its name in lower case, without its adapter, if there is one."""
    children = parent.named_children() if parent is not None else ()
    found = next((module for own, module in children if own.lower() == name), None)
    return getattr(found, "base_layer", found)
