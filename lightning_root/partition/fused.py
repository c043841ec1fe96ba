"""Cut a fused layer into its matrices: q, k, v, gate and up, an LSTM's gates, a group's filters.

A cut needs certainty: the owner's type, or the modules around a Linear, must tell sizes that add
up. A wrong cut joins pieces of different matrices, so in doubt a weight stays whole, and its reason
says what it may hold.
"""

from collections.abc import Mapping

from torch import nn

from lightning_root.partition import experts, names
from lightning_root.partition.attention import is_query_key_value, qkv_parts
from lightning_root.partition.cuts import (
    WHOLE,
    Cut,
    Doubt,
    Parts,
    child,
    doubtful,
    equal,
    told,
)
from lightning_root.partition.places import Convolution, Place, is_conv1d, plain_class
from lightning_root.partition.views import MatrixView

# Fused layers, and the layer beside them that takes half as many features.
_GATED = {
    **dict.fromkeys(("gate_up_proj", "up_gate_proj"), "down_proj"),
    "gate_up": "down",
    "w12": "w3",  # DINOv2
    "w13": "w2",
    **dict.fromkeys(("wi_fused", "wi"), "wo"),  # "wi": ModernBERT
    "fc1": "fc2",  # timm's GluMlp
    "linear1": "linear2",
    "c_fc": "c_proj",
    "in_proj": "out_proj",  # Mamba's signal and gate
}
# Names that promise two matrices in one even when the layer beside them does not tell.
_SURELY_GATED = frozenset("gate_up_proj up_gate_proj gate_up w12 w13 wi_fused".split())


def find_cut(place: Place, modules: Mapping[str, nn.Module] | None) -> Cut:
    """Find the matrices in a parameter that goes to ROOT, as far as its module tells.

    Args:
        place: The parameter; what it is has been decided.
        modules: All modules by canonical path, None when there are only names and shapes.
    """
    parent = None if modules is None else modules.get(place.path.rpartition(".")[0])
    if place.kind == "convolution":
        cut = _convolution(place)
    elif place.kind == "attention":
        cut = _torch_attention(place)
    elif place.kind == "recurrent":
        cut = _recurrent(place)
    elif place.kind == "linear" or is_conv1d(place.module):
        cut = _linear(place, parent)
    else:
        cut = _raw_attention(place) if len(place.shape) == 2 else WHOLE
        cut = experts.find_cut(place) if cut == WHOLE else cut
    vectors = cut.view is not None and any(1 in m for m in cut.view.matrices(place.shape))
    return WHOLE if vectors else cut


def _convolution(place: Place) -> Cut:
    """Cut a grouped convolution into its groups; a transposed one is stored as (in, out)."""
    module = place.module
    if not isinstance(module, Convolution):
        return WHOLE
    rows = equal(module.groups, place.shape[0]) if module.groups > 1 else None
    plain = rows is None and not module.transposed
    return WHOLE if plain else Cut(view=MatrixView(rows=rows, transposed=module.transposed))


def _torch_attention(place: Place) -> Cut:
    """Cut the stacked projections of torch's attention into q, k and v."""
    if place.leaf != "in_proj_weight" or place.shape[0] % 3:
        return WHOLE
    if place.module is None:
        return doubtful(Doubt("q, k, v in one by its name", 3))
    return Cut(view=MatrixView(rows=equal(3, place.shape[0])))


def _raw_attention(place: Place) -> Cut:
    """Doubt a raw parameter that is called like fused projections and has their shape."""
    fan_out, fan_in = place.shape
    component = place.own_component.lower().removesuffix("_weight")
    fused = fan_out == 3 * fan_in and is_query_key_value(component, tripled=True)
    return doubtful(Doubt("q, k, v in one by its name", 3)) if fused else WHOLE


def _recurrent(place: Place) -> Cut:
    """Cut the gates of a recurrent layer: four in an LSTM, three in a GRU, one in a plain RNN."""
    gates = 1
    if isinstance(place.module, nn.LSTM | nn.LSTMCell):
        gates = 4
    elif isinstance(place.module, nn.GRU | nn.GRUCell):
        gates = 3
    if gates == 1 or not place.leaf.startswith(("weight_ih", "weight_hh")):
        return WHOLE
    return Cut(view=MatrixView(rows=equal(gates, place.shape[0])))


def _linear(place: Place, parent: nn.Module | None) -> Cut:
    """Cut the weight of a Linear, or of transformers' Conv1D, which is stored as (in, out)."""
    transposed = is_conv1d(place.module)
    fan_in, fan_out = place.shape if transposed else place.shape[::-1]
    if told(place.module, ("out_features", "nf")) not in (None, fan_out):
        return WHOLE  # a class of its own, stored in its own way
    component = names.last_component(place.path).lower()
    parts = (
        _gated_parts(component, fan_out, place.module, parent)
        or _state_space_parts(component, parent)
        or qkv_parts(component, fan_in, fan_out, parent)
    )
    if isinstance(parts, Doubt):
        return doubtful(parts, transposed=transposed)
    if transposed:
        return Cut(view=MatrixView(columns=parts, transposed=True))
    return WHOLE if parts is None else Cut(view=MatrixView(rows=parts))


def _gated_parts(
    component: str, fan_out: int, module: nn.Module | None, parent: nn.Module | None
) -> Parts | Doubt | None:
    """Find gate and up in one: what follows takes half of the features."""
    if fan_out % 2:
        return None
    if isinstance(parent, nn.Sequential):
        layers = zip(parent, list(parent)[1:], strict=False)
        following = next((after for layer, after in layers if layer is module), None)
        halved = isinstance(following, nn.GLU) and following.dim == -1
        return equal(2, fan_out) if halved else None
    down = child(parent, _GATED.get(component, ""))
    if told(down, ("in_features", "nx")) == fan_out // 2:
        return equal(2, fan_out)
    unit = parent is not None and plain_class(parent).__name__.endswith("GLU")
    if component in _SURELY_GATED or (unit and component == "proj"):
        return Doubt("gate and up in one", 2)
    return None


def _state_space_parts(component: str, parent: nn.Module | None) -> Doubt | None:
    """Find Mamba-2's input projection: signal, gate, B, C and time steps, of several sizes."""
    if component == "in_proj" and child(parent, "conv1d") is not None:
        return Doubt("several projections in one", None)
    return None
