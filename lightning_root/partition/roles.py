"""Decide what one parameter is from its uses, and say why: its role follows from its kind."""

import json
import math
from typing import NamedTuple

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.fused import Suggestion, is_expert_stack, is_head_stack
from lightning_root.partition.heads import Heads
from lightning_root.partition.parameters import Convolution, ModelParameter, ParameterUse
from lightning_root.partition.routes import Kind


class KindDecision(NamedTuple):
    """A kind with its reason, and the rule that would change the role where it is not certain."""

    kind: Kind
    reason: str
    suggestion: Suggestion | None = None


class ModelContext(NamedTuple):
    """Facts about the rest of the model."""

    heads: Heads
    first_convolution: str | None  # its path


def decide_kind(parameter: ModelParameter, context: ModelContext) -> KindDecision:
    """Return the kind of a parameter and the reason; the first rule that applies decides."""
    use = parameter.uses[0]
    ndim = len(use.shape)
    if not (use.dtype.is_floating_point or use.dtype.is_complex):
        return KindDecision("table" if ndim > 1 else "vector", "not floating point: never trained")
    if use.dtype.is_complex and ndim > 1:
        return KindDecision("table", "complex: only AdamW can update it")
    if table := next((other for other in parameter.uses if other.kind == "embedding"), None):
        name = table.own_component.lower()
        apart = names.table_kind(name) in ("position table", "table") and name[-5:] != "table"
        kind: Kind = "vector" if ndim < 2 else "table" if apart else "embedding"
        return KindDecision(kind, f"embedding{_describe_ties(parameter)}")
    if ndim < 2:
        called = "bias or gain: 1 dimension" if ndim else "scalar: 0 dimensions"
        return KindDecision("vector", called)
    for other in parameter.uses:
        if reason := context.heads.get((other.path, other.leaf)):
            return KindDecision("head", reason)
        if other.kind == "raw" and other.table:
            name = other.own_component
            own = names.table_kind(name) is not None
            named = f"named '{name}'" if own else f"'{name}' of {other.owner or other.path}"
            kind = "embedding" if other.table == "embedding" else "table"
            return KindDecision(kind, f"{other.table}: {named}{_describe_ties(parameter)}")
    if _is_bias(use):
        kind = "table" if names.is_position_bias(use.own_component) else "vector"
        return KindDecision(kind, f"biases: named '{use.own_component}'")
    if use.kind == "norm":
        return KindDecision("vector", f"gain of {use.owner or 'a norm'}")
    if _is_vector(use):
        return KindDecision("vector", f"vector in effect: shape {use.shape}")
    if use.kind == "raw" and names.has(use.own_component, "gains"):
        return KindDecision("vector", f"gains: named '{use.own_component}'")
    if use.kind == "convolution":
        return _kind_of_convolution(use, context)
    return _kind_of_raw(use) if use.kind == "raw" else _kind_of_matrix(use)


def _describe_ties(parameter: ModelParameter) -> str:
    """Name the other uses of a tied parameter; one module under two names is no tie."""
    first, *others = parameter.uses
    owners, tied = {first.module}, []
    for use in others:
        if use.module is None or use.module not in owners:
            owners.add(use.module)
            tied.append(use.name)
    more = f" and {len(tied) - 1} more" if len(tied) > 1 else ""
    return f", tied to {tied[0]}{more}" if tied else ""


def _is_bias(use: ParameterUse) -> bool:
    """Tell whether these are biases, by name: of each head or expert, or of relative positions."""
    if use.kind == "linear":  # applied to one-hots
        return names.is_position_bias(use.own_component)
    return use.kind == "raw" and names.is_bias(use.own_component)


def _is_vector(use: ParameterUse) -> bool:
    """Tell whether nothing is left to orthogonalize: one row, one column, or no entry at all."""
    if use.kind == "convolution":
        return min(use.shape[0], math.prod(use.shape[1:])) <= 1
    return sum(size != 1 for size in use.shape) <= 1 or 0 in use.shape


def _kind_of_convolution(use: ParameterUse, context: ModelContext) -> KindDecision:
    """Decide about a convolution: (out, in / groups, *kernel), or transposed (in, out, *kernel)."""
    first = use.path == context.first_convolution
    channels, groups, tiles = _convolution_geometry(use, first)
    component = names.patch_component(use.path)
    if tiles and component and (first or channels <= 4):  # later ones merge hidden patches
        return KindDecision("embedding", f"input embedding: named '{component}'")
    if groups == channels > 1:
        return KindDecision("table", f"depthwise convolution: {groups} groups")
    rows, columns = use.shape[0], math.prod(use.shape[1:])
    if groups > 1:  # each group is a matrix of its own
        block = (rows // groups, columns)
        if 1 in block:
            return KindDecision("table", f"grouped convolution: {groups} vectors of shape {block}")
        return KindDecision("hidden", f"{use.owner} weight, {groups} groups")
    # Nothing hidden has as few channels as an image; latents have four.
    if tiles and channels <= (4 if first else 3) and use.module is not None:
        return KindDecision("embedding", "input embedding: patches of the raw input")
    owner = use.owner or "convolution"
    return KindDecision("hidden", f"{owner} weight, flattened to {(rows, columns)}")


def _convolution_geometry(use: ParameterUse, first: bool) -> tuple[int, int, bool]:
    """Return input channels, groups, and whether a convolution cuts its input into patches."""
    module = use.module
    if isinstance(module, Convolution):
        tiles = module.stride == module.kernel_size and max(module.kernel_size) > 1
        return module.in_channels, module.groups, tiles and not module.transposed
    # A guess from the shape: one channel in means depthwise, unless it may be a grey image. Whether
    # strides make patches is for the name alone to say.
    groups = use.shape[0] if use.shape[1] == 1 and not first else 1
    return use.shape[1] * groups, groups, max(use.shape[2:]) > 1


def _kind_of_matrix(use: ParameterUse) -> KindDecision:
    """Decide about the weight of a Linear, an attention or a recurrent layer."""
    if use.kind == "attention":
        content = "q, k, v stacked" if use.leaf == "in_proj_weight" else use.leaf[0]
        return KindDecision("hidden", f"attention: {content}")
    if use.kind == "recurrent":
        return KindDecision("hidden", f"{use.owner or 'recurrent'} weight")
    if component := names.patch_component(use.path):
        return KindDecision("embedding", f"input embedding: named '{component}'")
    owner = "Linear" if isinstance(use.module, nn.Linear) else use.owner or "2-D"
    return _maybe_factor(use, f"{owner} weight")


def _kind_of_raw(use: ParameterUse) -> KindDecision:
    """Decide about a parameter of a custom module, by its shape."""
    shape, owner = use.shape, f" of {use.owner}" if use.owner else ""
    if shape[0] == 1:
        return KindDecision("table", f"table: leading dimension of 1, shape {shape}")
    if names.has(use.path.replace(".", "_"), "auxiliary"):  # such as a loss's class prototypes
        return KindDecision("table", f"beside the model: in '{use.path}'")
    if is_expert_stack(use):
        return KindDecision("hidden", f"experts{owner}")
    if is_head_stack(use):
        return KindDecision("hidden", f"attention{owner}, a matrix for each head")
    if len(shape) > 2 and shape[-1] == 2:
        return KindDecision("table", f"pairs, such as of complex numbers: shape {shape}")
    if _is_beside_rates(use):
        return KindDecision("table", f"beside decay rates: '{use.leaf}'{owner}")
    if len(shape) == 2:
        return _maybe_factor(use, f"2-D weight{owner}")
    rule = {"stack": len(shape) - 2}
    blocks = f"{math.prod(shape[:-2])} blocks of {shape[-2:]}"
    reason = f"{len(shape)} dimensions{owner}: {json.dumps(rule)} would make it {blocks}"
    return KindDecision("table", reason, rule)


def _is_beside_rates(use: ParameterUse) -> bool:
    """Tell whether a state-space model multiplies its states with this entry by entry."""
    beside = use.module.named_parameters(recurse=False) if use.module is not None else ()
    rates = [tuple(p.shape) for name, p in beside if names.table_kind(name) == "decay rates"]
    return bool(rates) and (use.leaf == "D" or (use.leaf in {*"BCPQ"} and use.shape in rates))


def _maybe_factor(use: ParameterUse, reason: str) -> KindDecision:
    """Give a matrix to ROOT, and suggest AdamW if it is a factor of a low-rank adapter."""
    # Each factor is orthogonalized on its own, as is usual with Muon, and not by the steepest
    # descent of their product (arXiv:2606.12921 treats both together, others give one to Adam).
    if (component := names.factor_component(use.name)) is None:
        return KindDecision("hidden", reason)
    return KindDecision(
        "hidden", f"{reason}, factor '{component}': by custom like any matrix", "adamw"
    )
