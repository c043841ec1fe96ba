"""Where the optimizer's parameters come from: modules, generators, pairs, tensors."""

import gc
import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

Named = list[tuple[str, Tensor]]

_GENERATORS = (nn.Module.parameters.__code__, nn.Module.named_parameters.__code__)
_LAZY: tuple[type, ...] = (filter, map, chain, type(iter(())), type(iter([])))


def module_behind(params: object) -> nn.Module | None:
    """Return the module whose `parameters()` or `named_parameters()` an untouched generator is."""
    # LightningCLI passes `model.parameters()`, from which names and module types cannot be told;
    # the generator's frame still knows the module. Only torch's own two methods are recognised.
    if not inspect.isgenerator(params) or params.gi_code not in _GENERATORS:
        return None
    if inspect.getgeneratorstate(params) != inspect.GEN_CREATED or params.gi_frame is None:
        return None
    local = params.gi_frame.f_locals
    module = local.get("self")
    return module if isinstance(module, nn.Module) and local.get("recurse") is True else None


def modules_behind(params: object) -> list[nn.Module]:
    """Return the modules that parameters are drawn from, also through filters and comprehensions.

    Nothing is drawn; what has been put into a list tells nothing.
    """
    module = module_behind(params)
    if module is not None:
        return [module]
    inner: Iterable[object] = ()
    if inspect.isgenerator(params):  # `(p for p in model.parameters() if p.requires_grad)`
        inner = [params.gi_frame.f_locals.get(".0")] if params.gi_frame is not None else []
    elif isinstance(params, _LAZY):
        inner = gc.get_referents(params)
    elif isinstance(params, Mapping):
        inner = [params.get("params")]
    elif isinstance(params, list | tuple) and not any(isinstance(p, Tensor) for p in params[:1]):
        inner = params
    found = [module for each in inner for module in modules_behind(each)]
    return list({id(module): module for module in found}.values())


def joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Return one module that holds several, for all of them to be looked at together."""
    whole = nn.Module()
    for number, module in enumerate(modules):
        whole.add_module(str(number), module)
    return whole


def check_params(params: object) -> None:
    """Raise TypeError for what is not an ordered collection of parameters."""
    hint = "pass `model.parameters()`, or a list of tensors, (name, tensor) pairs or groups"
    if isinstance(params, Tensor):
        raise TypeError("`params` must be an iterable of tensors, got a tensor; pass [tensor]")
    if isinstance(params, set | frozenset):
        raise TypeError(
            "`params` must have an order, which tells states apart, got a set; pass a list"
        )
    if isinstance(params, str | Mapping) or not isinstance(params, Iterable):
        raise TypeError(
            f"`params` must be an iterable of tensors, got a {type(params).__name__}; {hint}"
        )


def group_params(param_group: object) -> list[Any]:
    """Return what a new parameter group holds, one tensor or several, or raise."""
    if not isinstance(param_group, Mapping):
        raise TypeError(
            f"`param_group` must be a dict with a key 'params', got a {type(param_group).__name__}"
        )
    if "params" not in param_group:
        raise ValueError(f"a parameter group must have a key 'params', got {list(param_group)}")
    params = param_group["params"]
    if isinstance(params, Tensor):
        return [params]
    check_params(params)
    return list(params)


def names_of(params: Iterable[Any], start: int = 0) -> Named:
    """Return (name, tensor) pairs; tensors without a name become `parameter.<number>`."""
    named: Named = []
    for number, entry in enumerate(params, start):
        name, tensor = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
        if not isinstance(tensor, Tensor) or not isinstance(name, str | None):
            raise TypeError(
                "`params` must hold tensors, (name, tensor) pairs or dicts with a key 'params', "
                f"got {type(entry).__name__}"
            )
        named.append((f"parameter.{number}" if name is None else name, tensor))
    return named
