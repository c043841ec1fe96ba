"""Decide the role of one parameter from its places, and say why."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lightning_root.partition import experts, names
from lightning_root.partition.cuts import Hint, written
from lightning_root.partition.heads import Heads
from lightning_root.partition.places import Convolution, Entry, Place
from lightning_root.partition.routes import Role


class Decision(NamedTuple):
    """A role with its reason, and the value of the rule that would change a role in doubt."""

    role: Role
    reason: str
    hint: Hint | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a decision needs to know about the rest of the model.

    Args:
        heads: The output heads, by module path and own name.
        first_convolution: Path of the model's first convolution, None when it has none.
    """

    heads: Heads
    first_convolution: str | None


def decide(entry: Entry, context: Context) -> Decision:
    """Return the role of a parameter and the reason; the first rule that applies decides."""
    place = entry.places[0]
    ndim = len(place.shape)
    for other in entry.places:
        if other.kind == "embedding":
            return Decision("adamw", f"embedding{_ties(entry)}")
    if ndim == 0:
        return Decision("adamw", "scalar: 0 dimensions")
    if ndim == 1:
        return Decision("adamw", "bias or gain: 1 dimension")
    for other in entry.places:
        if reason := context.heads.get((other.path, other.leaf)):
            return Decision("adamw", reason)
        if other.kind == "raw" and (table := names.table_kind(other.own_component)):
            return Decision("adamw", f"{table}: named '{other.own_component}'{_ties(entry)}")
    if _is_bias(place):
        return Decision("adamw", f"biases: named '{place.own_component}'")
    if place.kind == "norm":
        return Decision("adamw", f"gain of {place.owner or 'a norm'}")
    if _is_vector(place):
        return Decision("adamw", f"vector in effect: shape {place.shape}")
    if place.kind == "convolution":
        return _convolution(place, context)
    return _raw(place) if place.kind == "raw" else _matrix(place)


def flattened(place: Place) -> tuple[int, int]:
    """Return the shape of the matrix that is left when all dimensions but the first are joined."""
    return place.shape[0], math.prod(place.shape[1:])


def _ties(entry: Entry) -> str:
    """Name the other places of a tied parameter; one module under two names is no tie."""
    first, *others = entry.places
    owners, tied = {first.module}, []
    for place in others:
        if place.module is None or place.module not in owners:
            owners.add(place.module)
            tied.append(place.name)
    more = f" and {len(tied) - 1} more" if len(tied) > 1 else ""
    return f", tied to {tied[0]}{more}" if tied else ""


def _is_bias(place: Place) -> bool:
    """Tell whether these are biases, by name: of each head or expert, or of relative positions."""
    own = place.own_component
    is_position = place.kind == "linear" and names.is_position_bias(own)  # applied to one-hots
    return is_position or (place.kind == "raw" and names.is_bias(own))


def _is_vector(place: Place) -> bool:
    """Tell whether nothing is left to orthogonalize: one row, one column, or no entry at all."""
    shape = place.shape
    if place.kind == "convolution":
        return min(flattened(place)) <= 1
    return sum(size != 1 for size in shape) <= 1 or 0 in shape


def _convolution(place: Place, context: Context) -> Decision:
    """Decide about a convolution: (out, in / groups, *kernel), or transposed (in, out, *kernel)."""
    first = place.path == context.first_convolution
    channels, groups, tiles = _geometry(place, first)
    component = names.patch_component(place.path)
    if tiles and component and (first or channels <= 4):  # later ones merge hidden patches
        return Decision("adamw", f"input embedding: named '{component}'")
    if groups == channels > 1:
        return Decision("adamw", f"depthwise convolution: {groups} groups")
    if groups > 1:
        return _grouped(place, groups)
    # Nothing hidden has as few channels as an image; latents have four.
    if tiles and channels <= (4 if first else 3) and place.module is not None:
        return Decision("adamw", "input embedding: patches of the raw input")
    owner = place.owner or "convolution"
    return Decision("root", f"{owner} weight, flattened to {flattened(place)}")


def _grouped(place: Place, groups: int) -> Decision:
    """Decide about a grouped convolution, where each group is a matrix of its own."""
    rows, columns = flattened(place)
    block = (rows // groups, columns)
    if 1 in block:
        return Decision("adamw", f"grouped convolution: {groups} vectors of shape {block}")
    return Decision("root", f"{place.owner} weight, {groups} groups")


def _geometry(place: Place, first: bool) -> tuple[int, int, bool]:
    """Return input channels, groups, and whether a convolution cuts its input into patches."""
    module = place.module
    if isinstance(module, Convolution):
        tiles = module.stride == module.kernel_size and max(module.kernel_size) > 1
        return module.in_channels, module.groups, tiles and not module.transposed
    # A guess from the shape: one channel in means depthwise, unless it may be a grey image. Whether
    # strides make patches is for the name alone to say.
    groups = place.shape[0] if place.shape[1] == 1 and not first else 1
    return place.shape[1] * groups, groups, max(place.shape[2:]) > 1


def _matrix(place: Place) -> Decision:
    """Decide about the weight of a Linear, an attention or a recurrent layer."""
    if place.kind == "attention":
        stacked = place.leaf == "in_proj_weight"
        part = "q, k, v stacked" if stacked else place.leaf[0]
        return Decision("root", f"attention: {part}")
    if place.kind == "recurrent":
        return Decision("root", f"{place.owner or 'recurrent'} weight")
    if component := names.patch_component(place.path):
        return Decision("adamw", f"input embedding: named '{component}'")
    is_torch = isinstance(place.module, nn.Linear)
    owner = "Linear" if is_torch else place.owner or "2-D"
    return Decision("root", f"{owner} weight{_factor(place)}", _factor_hint(place))


def _raw(place: Place) -> Decision:
    """Decide about a parameter of a custom module, by its shape."""
    shape, owner = place.shape, f" of {place.owner}" if place.owner else ""
    if shape[0] == 1:
        return Decision("adamw", f"table: leading dimension of 1, shape {shape}")
    if any(map(names.is_auxiliary, place.path.split("."))):
        # Such as a loss's class prototypes.
        return Decision("adamw", f"beside the model: in '{place.path}'")
    if experts.is_stack(place):
        return Decision("root", f"experts{owner}")
    if len(shape) == 2:
        return Decision("root", f"2-D weight{owner}{_factor(place)}", _factor_hint(place))
    hint: dict[str, int | tuple[int, ...]] = {"stack": len(shape) - 2}
    count, matrix = math.prod(shape[:-2]), shape[-2:]
    return Decision(
        "adamw",
        f"{len(shape)} dimensions{owner}: {written(hint)} would make it {count} blocks of {matrix}",
        hint,
    )


def _factor(place: Place) -> str:
    """Say that a matrix is one of the two factors of a low-rank adapter.

    Each factor is orthogonalized on its own, as everybody does who gives adapters to Muon. That is
    not the steepest descent of their product, which the hint leaves for the user to weigh:
    arXiv:2606.12921 treats both together, others give the first to Adam.
    """
    component = names.factor_component(place.name)
    return f", factor '{component}': by custom like any matrix" if component else ""


def _factor_hint(place: Place) -> Hint | None:
    """Propose AdamW for the factors of adapters."""
    return "adamw" if names.factor_component(place.name) else None
