"""Where parameters are registered, and what kind of thing each of them is there.

A tied parameter has several places. From here on a module's parameters and mere (name, tensor)
pairs are treated alike: a place holds all that the later decisions look at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_root.partition import names

Kind = Literal["embedding", "convolution", "linear", "attention", "recurrent", "norm", "raw"]

Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One spot where a parameter is registered.

    Args:
        index: When it was registered, counted over all places of the model.
        name: Canonical name of the parameter at this place.
        path: Canonical path of the owning module, "" for the model itself.
        leaf: The parameter's own name there, "weight" also when it is parametrized.
        shape: Shape of the whole parameter.
        kind: What the parameter is to its owner.
        owner: Class name of the owner, "" when there is no module to ask.
        module: The owner, None when there is no module to ask.
        trainable: Whether gradients are wanted.
    """

    index: int
    name: str
    path: str
    leaf: str
    shape: tuple[int, ...]
    kind: Kind
    owner: str
    module: nn.Module | None
    trainable: bool

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
            return names.last_component(self.path)  # the dict's: its keys are anybody's words
        return names.own_component(self.path, self.leaf)

    @property
    def table(self) -> str | None:
        """Which kind of table this is, by type or, for a raw parameter, by name."""
        if self.kind == "embedding":
            return "embedding"
        return names.table_kind(self.own_component) if self.kind == "raw" else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entry:
    """One parameter with all its places, in the order in which they were registered."""

    parameter: Tensor
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The name that the module's own `named_parameters()` gives, without wrappers."""
        return self.places[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return self.places[0].shape

    @property
    def trainable(self) -> bool:
        """Whether gradients are wanted."""
        return self.places[0].trainable


def survey_module(module: nn.Module) -> tuple[list[Entry], dict[str, nn.Module]]:
    """List a module's parameters and, by canonical path, its submodules.

    Raises:
        ValueError: When a parameter is not initialized yet.
    """
    # A wrapper and the module in it share one canonical path; the inner one comes later and stays.
    modules = {
        names.canonical(path): child for path, child in module.named_modules(remove_duplicate=False)
    }
    named = list(module.named_parameters(remove_duplicate=False))
    if lazy := [names.canonical(name) for name, parameter in named if is_lazy(parameter)]:
        more = f" and {len(lazy) - 3} more" if len(lazy) > 3 else ""
        raise ValueError(
            f"`module` has parameters without a shape yet: {', '.join(map(repr, lazy[:3]))}{more}; "
            "run one forward pass before the parameters are partitioned."
        )
    return _entries(named, modules), modules


def survey_named(named: Iterable[tuple[str, Tensor]]) -> list[Entry]:
    """List the parameters of (name, tensor) pairs, frozen ones too: the caller chose them."""
    return _entries(named, None)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class without the subclasses that FSDP2 and parametrizations derive."""
    cls = type(module)
    while base := next(
        (
            b
            for b in cls.__bases__
            if cls.__name__ in (f"FSDP{b.__name__}", f"Parametrized{b.__name__}")
        ),
        None,
    ):
        cls = base
    return cls


def is_conv1d(module: nn.Module | None) -> bool:
    """Tell whether a module is transformers' Conv1D: a Linear with its weight as (in, out)."""
    if module is None or plain_class(module).__name__ != "Conv1D":
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape[1:] == (getattr(module, "nf", None),)


def is_container(cls: type[nn.Module]) -> bool:
    """Tell whether a class only holds children, and two of it need have nothing in common."""
    return cls in _CONTAINERS


def _entries(
    named: Iterable[tuple[str, Tensor]], modules: dict[str, nn.Module] | None
) -> list[Entry]:
    """Collect the places of each distinct parameter, in order of first appearance."""
    collected: dict[int, tuple[Tensor, list[Place]]] = {}
    for index, (name, parameter) in enumerate(named):
        place = _place(index, names.canonical(name), parameter, modules)
        collected.setdefault(id(parameter), (parameter, []))[1].append(place)
    return [Entry(parameter=p, places=tuple(places)) for p, places in collected.values()]


def _place(index: int, name: str, parameter: Tensor, modules: dict[str, nn.Module] | None) -> Place:
    """Describe one parameter at one place; of the tensor, only its metadata is read."""
    path, leaf = names.split_name(name)
    shape = tuple(parameter.shape)  # global, also for a DTensor
    module = modules[path] if modules is not None else None
    return Place(
        index=index,
        name=name,
        path=path,
        leaf=leaf,
        shape=shape,
        kind=_kind_by_name(path, leaf, len(shape))
        if module is None
        else _kind(module, leaf, len(shape)),
        owner="" if module is None else plain_class(module).__name__,
        module=module,
        trainable=module is None or parameter.requires_grad,
    )


def _kind(module: nn.Module, leaf: str, ndim: int) -> Kind:
    """Ask the owner's type; class names speak for other libraries' modules."""
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


def _kind_by_name(path: str, leaf: str, ndim: int) -> Kind:
    """Guess from names and the number of dimensions."""
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
