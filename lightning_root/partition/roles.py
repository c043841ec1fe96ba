"""Decide the role of one parameter from its places, and say why."""

import math
import re
from dataclasses import dataclass

from torch import nn

from lightning_root.partition import names
from lightning_root.partition.heads import Heads
from lightning_root.partition.places import Convolution, Entry, Place
from lightning_root.partition.routes import Role

Decision = tuple[Role, str]


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
            return "adamw", f"embedding{_ties(entry)}"
    if ndim == 0:
        return "adamw", "scalar: 0 dimensions"
    if ndim == 1:
        return "adamw", "bias or gain: 1 dimension"
    for other in entry.places:
        if reason := context.heads.get((other.path, other.leaf)):
            return "adamw", reason
        if other.kind == "raw" and (table := names.table_kind(other.own_component)):
            return "adamw", f"{table}: named '{other.own_component}'{_ties(entry)}"
    if place.kind == "norm":
        return "adamw", f"gain of {place.owner or 'a norm'}"
    if _is_vector(place):
        return "adamw", f"vector in effect: shape {place.shape}"
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
    if tiles and (component := names.patch_component(place.path)):
        return "adamw", f"input embedding: named '{component}'"
    if groups > 1:
        kind = "depthwise" if groups == channels else "grouped"
        return "adamw", f"{kind} convolution: {groups} groups"
    if tiles and first and channels <= 4 and place.module is not None:
        return "adamw", "input embedding: patches of the raw input"
    owner = place.owner or "convolution"
    return "root", f"{owner} weight, flattened to {flattened(place)}"


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
        return "root", "attention: q, k, v stacked" if stacked else f"attention: {place.leaf[0]}"
    if place.kind == "recurrent":
        return "root", f"{place.owner or 'recurrent'} weight"
    if component := names.patch_component(place.path):
        return "adamw", f"input embedding: named '{component}'"
    is_torch = isinstance(place.module, nn.Linear)
    return "root", f"{'Linear' if is_torch else place.owner or '2-D'} weight"


def _raw(place: Place) -> Decision:
    """Decide about a parameter of a custom module, by its shape."""
    shape, owner = place.shape, f" of {place.owner}" if place.owner else ""
    if shape[0] == 1:
        return "adamw", f"table: leading dimension of 1, shape {shape}"
    if any(map(names.is_auxiliary, place.path.split("."))):
        return "adamw", f"beside the model: in '{place.path}'"  # such as a loss's class prototypes
    if len(shape) == 2:
        return "root", f"2-D weight{owner}"
    # By its last components, so that equal blocks give equal reasons.
    ending = re.split(r"(?:^|\.)\d+\.", place.name)[-1].split(".")[-2:]
    pattern = ".".join(ending) if place.name.split(".") == ending else f"*.{'.'.join(ending)}"
    return "adamw", (
        f"{len(shape)} dimensions{owner}: the rule ('{pattern}', 'root') would flatten it to "
        f"{flattened(place)}"
    )
