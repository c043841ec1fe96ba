"""Find the matrices in one parameter: q, k, v; gate and up; an LSTM's gates; groups; experts.

A wrong cut joins pieces of different matrices, so a weight stays whole unless its owner's type, or
the modules around a Linear, tell sizes that add up; the reason says what it may hold.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_root.partition import names
from lightning_root.partition.names import WORDS
from lightning_root.partition.parameters import (
    Convolution,
    Modules,
    ParameterUse,
    find_child,
    find_size,
    is_conv1d,
    plain_class,
)
from lightning_root.partition.views import MatrixView

Shape = tuple[int, int]
Sizes = tuple[int, ...]
Suggestion = str | dict[str, Any]  # the value of a rule, to be written as JSON, which is YAML too


class Ambiguity(NamedTuple):
    """Guess at the contents of a weight, and the block sizes, or number, right if it is true."""

    content: str
    guess: int | Sizes | None


class ViewDecision(NamedTuple):
    """A parameter's view, None if whole; an end for its reason; a rule that would resolve it."""

    view: MatrixView | None = None
    note: str = ""
    suggestion: Suggestion | None = None


_GATED = dict(pair.split(":") for pair in WORDS["gated"])
_IN_AND_OUT = (("in_features", "out_features"), ("input_size", "output_size"))
_ADAPTED = re.compile(r"\.(base_layer|lora_[AB](\.\w+)?)$")
_EXPERT_PATH = re.compile(r"expert|(?<![a-z])moe(?![a-z])")
_EXPERT_CLASS = re.compile(r"Expert|M[oO]E(?![a-z])|Moe(?![a-z])")
_EXPERT_BIAS = re.compile(r"(?<![a-z])bias(es)?(?![a-z])")
_EXPERT_UP = re.compile(r"gate|up|w1|w3|wi|v1")
_EXPERT_DOWN = re.compile(r"down|w2|wo")


def find_view(use: ParameterUse, modules: Modules) -> ViewDecision:
    """Find the matrices in a parameter that goes to ROOT, as far as its module tells."""
    get, path = (modules or {}).get, _ADAPTED.sub("", use.path)
    if path.endswith(".linear") and hasattr(get(path[:-7]), "lora_A"):
        path = path[:-7]  # litgpt's base layer
    parent, component = get(path.rpartition(".")[0]), names.last_component(path).lower()
    if names.factor_component(use.name) is not None and len(use.shape) == 2:
        decision = _view_of_factor(use, component, get(path), parent)
    elif _is_router(use, parent):
        return ViewDecision(note="; chooses experts, often left to AdamW", suggestion="adamw")
    elif use.kind == "convolution":
        decision = _view_of_convolution(use)
    elif use.kind == "attention" and use.leaf == "in_proj_weight":
        told = use.module is not None
        sizes = (
            _equal_sizes(3, use.shape[0]) if told else Ambiguity("q, k, v in one by its name", 3)
        )
        decision = _cut_outputs(MatrixView(), sizes)
    elif use.kind == "recurrent":
        decision = _view_of_gates(use)
    elif use.kind == "linear" or is_conv1d(use.module):
        decision = _view_of_linear(use, component, parent)
    elif is_head_stack(use):
        decision = ViewDecision(MatrixView(stack=1, transposed=True))
    elif is_expert_stack(use):
        decision = _view_of_expert_stack(use)
    else:
        decision = _cut_outputs(MatrixView(), _raw_sizes(use))
    view = decision.view
    vectors = view is not None and any(1 in shape for shape in view.matrices(use.shape))
    return ViewDecision() if vectors else decision


def _cut_outputs(view: MatrixView, sizes: Sizes | Ambiguity | None) -> ViewDecision:
    """Cut a view's outputs, its rows, or columns if transposed; if ambiguous, suggest the rule."""
    axis = "columns" if view.transposed else "rows"
    if not isinstance(sizes, Ambiguity):
        changes: dict[str, Any] = {axis: sizes}
        view = replace(view, **changes)
        return ViewDecision(None if view == MatrixView() else view)
    whole = None if view == MatrixView() else view
    content, guess = sizes
    if guess is None:
        return ViewDecision(whole, f'; {content}, whole: a rule with "{axis}" would cut it')
    rule = {"stack": view.stack, axis: guess, "transposed": view.transposed}
    rule = {key: value for key, value in rule.items() if value}
    return ViewDecision(whole, f"; {content}, whole: {json.dumps(rule)} would cut it", rule)


def _equal_sizes(count: int, extent: int) -> Sizes:
    """Return the sizes of `count` equal blocks."""
    return (extent // count,) * count


def _view_of_convolution(use: ParameterUse) -> ViewDecision:
    """Cut a grouped convolution into its groups, also a transposed one, stored as (in, out)."""
    if not isinstance(use.module, Convolution):
        return ViewDecision()
    groups = use.module.groups
    rows = _equal_sizes(groups, use.shape[0]) if groups > 1 else None
    view = MatrixView(rows=rows, transposed=use.module.transposed)
    return ViewDecision(None if view == MatrixView() else view)


def _view_of_gates(use: ParameterUse) -> ViewDecision:
    """Cut the weight of an LSTM into four gates, of a GRU into three; a plain RNN has one."""
    gates = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
    count = next((n for kind, n in gates.items() if isinstance(use.module, kind)), 1)
    gated = count > 1 and use.leaf.startswith(("weight_ih", "weight_hh"))
    return _cut_outputs(MatrixView(), _equal_sizes(count, use.shape[0]) if gated else None)


def _raw_sizes(use: ParameterUse) -> Sizes | Ambiguity | None:
    """Return the sizes in a 2-D parameter of a custom module: q, k, v by name; DBRX's experts."""
    if len(use.shape) != 2:
        return None
    fan_out, fan_in = use.shape
    component = use.own_component.lower().removesuffix("_weight")
    if fan_out == 3 * fan_in and _is_query_key_value(component, fan_in, fan_out):
        return Ambiguity("q, k, v in one by its name", 3)
    count, inner = (find_size(use.module, size) for size in ("n_experts", "expert_width"))
    if count is None or inner is None or not _is_named_expert(use):
        return None
    below = count > 1 and fan_out == count * inner
    return _equal_sizes(count, fan_out) if below else None


def _is_router(use: ParameterUse, parent: nn.Module | None) -> bool:
    """Tell whether a matrix has a row for each of the experts beside it."""
    experts = find_child(parent, "experts")
    counts = [find_size(module, "n_experts") for module in (parent, experts, use.module)]
    counts += [len(experts)] if isinstance(experts, nn.ModuleList) else []
    return use.own_component.lower() in WORDS["routers"] and use.shape[0] in counts


def _view_of_factor(
    use: ParameterUse, component: str, holder: nn.Module | None, parent: nn.Module | None
) -> ViewDecision:
    """Cut a low-rank adapter's factor like the outputs of the layer that it adapts."""
    rows, read_by = use.shape[0], parent
    first, second = (getattr(holder, name, None) for name in ("lora_A", "lora_B"))
    if isinstance(first, Tensor) and isinstance(second, Tensor):  # litgpt's
        parts = len(first) // second.shape[-1]
        if use.leaf == "lora_A":  # one below the other for q, k and v
            return _cut_outputs(MatrixView(), _equal_sizes(parts, rows) if parts > 1 else None)
        component, read_by = ("qkv", holder) if parts > 1 else (component, parent)
    if "lora_b" not in (use.leaf.lower(), (names.factor_component(use.name) or "").lower()):
        return ViewDecision()
    sizes: tuple[int, ...] = tuple(getattr(holder, "qkv_shapes", ()))
    if len(sizes) > 1 and sum(sizes) == rows:
        return _cut_outputs(MatrixView(), sizes)
    layer = getattr(holder, "base_layer", getattr(holder, "linear", None))
    fan_in = find_size(layer, "fan_in") or rows // 3
    return _cut_outputs(MatrixView(), _output_sizes(component, fan_in, rows, layer, read_by))


def _view_of_linear(use: ParameterUse, component: str, parent: nn.Module | None) -> ViewDecision:
    """Cut the weight of a Linear, or of transformers' Conv1D, which is stored as (in, out)."""
    transposed = is_conv1d(use.module)
    fan_in, fan_out = use.shape if transposed else use.shape[::-1]
    if find_size(use.module, "fan_out") not in (None, fan_out):
        return ViewDecision()  # a class of its own, stored in its own way
    sizes = _output_sizes(component, fan_in, fan_out, use.module, parent)
    return _cut_outputs(MatrixView(transposed=transposed), sizes)


def _output_sizes(
    component: str, fan_in: int, fan_out: int, module: nn.Module | None, parent: nn.Module | None
) -> Sizes | Ambiguity | None:
    """Return the sizes of what a Linear called `component` computes in one."""
    sizes: Sizes | Ambiguity | None = _gated_sizes(component, fan_out, module, parent)
    if sizes is None and component == "in_proj" and find_child(parent, "conv1d") is not None:
        # Mamba-2's signal, gate, B, C and time steps, of several sizes.
        return Ambiguity("several projections in one", None)
    return sizes or _attention_sizes(component, fan_in, fan_out, parent)


def _gated_sizes(
    component: str, fan_out: int, module: nn.Module | None, parent: nn.Module | None
) -> Sizes | Ambiguity | None:
    """Return the sizes of gate and up in one: what follows takes half of the features."""
    if fan_out % 2:
        return None
    if isinstance(parent, nn.Sequential):
        layers = zip(parent, list(parent)[1:], strict=False)
        # A wrapper of the Linear alone, such as for checkpointing, is no other layer.
        own = (after for layer, after in layers if module in (layer, *layer.children()))
        following = next(own, None)
        halved = isinstance(following, nn.GLU) and following.dim == -1
        return _equal_sizes(2, fan_out) if halved else None
    down = find_child(parent, _GATED.get(component, ""))
    if find_size(down, "fan_in") == fan_out // 2:
        return _equal_sizes(2, fan_out)
    owner = "" if parent is None else plain_class(parent).__name__
    linears = [m for m in parent.children() if isinstance(m, nn.Linear)] if parent else []
    if owner == "GatedLinearUnit" and linears == [module]:
        return _equal_sizes(2, fan_out)  # `F.glu` follows
    is_glu = owner.endswith(("GLU", "GatedLinearUnit")) and component in ("proj", "fc", "linear")
    if component in WORDS["surely_gated"] or is_glu:
        return Ambiguity("gate and up in one", 2)
    return None


def _attention_sizes(
    component: str, fan_in: int, fan_out: int, parent: nn.Module | None
) -> Sizes | Ambiguity | None:
    """Return the sizes of q, k and v in a Linear called `component`, None if they are not fused."""
    if component == "kv_b_proj":  # DeepSeek's
        return Ambiguity("k and v of each head in turn", None)
    crossing = component == "c_attn" and find_child(parent, "q_attn") is not None  # of GPT-2
    if component in WORDS["key_value"] or crossing:
        return _key_value_sizes(fan_out, parent)
    if not _is_query_key_value(component, fan_in, fan_out):
        return _gated_query_sizes(fan_out, parent) if component in WORDS["queries"] else None
    guess = _guess_sizes(component, fan_in, fan_out)
    if parent is None:
        return Ambiguity("q, k, v in one by its name", guess)
    size, heads = find_size(parent, "head_size"), find_size(parent, "n_heads")
    if size is None and heads is not None and fan_in % heads == 0:
        size = fan_in // heads
    single_heads = fan_out // size if size is not None and fan_out % size == 0 else None
    if _is_head_by_head(parent):
        if single_heads is not None:
            return _equal_sizes(single_heads, fan_out)
        return Ambiguity("heads of q, k and v in turn", None)
    if find_size(parent, "key_dim") is not None and find_size(parent, "val_dim") is not None:
        # TinyViT's values are sized apart from keys, and go head by head.
        return Ambiguity("q, k, v in one of unknown order", None)
    if component not in {*WORDS["query_key_value"], "in_proj"}:
        if guess is not None and single_heads is not None:
            guess = single_heads  # right in any order
        return Ambiguity("q, k, v in one of unknown order", guess)
    groups = find_size(parent, "n_key_value_heads")
    if heads is not None and size is not None:
        query, key = heads * size, (groups or heads) * size
        if query + 2 * key == fan_out:
            return (query, key, key)
    if fan_out == 3 * fan_in and (groups in (None, heads) or component == "in_proj"):
        return _equal_sizes(3, fan_out)
    return Ambiguity("q, k, v in one of unknown sizes", guess)


def _gated_query_sizes(fan_out: int, parent: nn.Module | None) -> Sizes | Ambiguity | None:
    """Return the sizes of queries and their gates in one: twice as much as attention gives."""
    size, heads = find_size(parent, "head_size"), find_size(parent, "n_heads")
    outputs = (find_child(parent, name) for name in ("o_proj", "out_proj", "wo", "to_out"))
    given = next((find_size(layer, "fan_in") for layer in outputs if layer is not None), None)
    latent = find_size(parent, "kv_lora_rank") is not None  # keys and values differ in size
    twice = (2 * (given or 0), 2 * (size or 0) * (heads or 0))
    if parent is None or latent or fan_out not in twice:
        return None
    count = fan_out // size if size is not None and fan_out % size == 0 else None
    if count is not None and _is_head_by_head(parent):
        return _equal_sizes(count, fan_out)
    return Ambiguity("query and gate in one of unknown order", count or 2)  # heads: in any order


def _is_query_key_value(component: str, fan_in: int, fan_out: int) -> bool:
    """Tell whether a component in lower case names q, k and v in one; `in_proj` needs the shape."""
    named = "qkv" in component or component in WORDS["query_key_value"] | WORDS["of_unknown_order"]
    return named or (component == "in_proj" and fan_out == 3 * fan_in)


def _key_value_sizes(fan_out: int, parent: nn.Module | None) -> Sizes | Ambiguity:
    """Return the sizes of k and v in one, if each is as large as the query or as the key heads."""
    known = [find_size(find_child(parent, name), "fan_out") for name in WORDS["queries"]]
    groups, size = (find_size(parent, name) for name in ("n_key_value_heads", "head_size"))
    if groups is not None and size is not None:
        known.append(groups * size)
    if fan_out % 2 == 0 and fan_out // 2 in known:
        return _equal_sizes(2, fan_out)
    return Ambiguity("k, v in one of unknown sizes", 2 if fan_out % 2 == 0 else None)


def _is_head_by_head(parent: nn.Module) -> bool:
    """Tell whether an attention module is known to store heads one after the other."""
    model = getattr(getattr(parent, "config", None), "model_type", None)
    known = model in WORDS["head_by_head_models"]
    known = known or plain_class(parent).__name__ in WORDS["head_by_head"]
    return known or getattr(parent, "head_first", False) is True  # timm's MaxViT


def _guess_sizes(component: str, fan_in: int, fan_out: int) -> int | Sizes | None:
    """Guess sizes for a suggestion: as many queries as inputs, the rest for keys and values."""
    if component not in {*WORDS["query_key_value"], *WORDS["of_unknown_order"], "in_proj"}:
        return None  # "qkvz", or so: something is beside them
    if fan_out % 3 == 0 and fan_out >= 3 * fan_in:
        return 3
    rest = fan_out - fan_in
    return (fan_in, rest // 2, rest // 2) if rest > 0 and rest % 2 == 0 else None


def is_head_stack(use: ParameterUse) -> bool:
    """Tell whether a parameter is TransformerLens' stack of a matrix, (in, out), for each head."""
    named = use.leaf.lstrip("_") in ("W_Q", "W_K", "W_V", "W_O")
    return named and len(use.shape) == 3 and min(use.shape) > 1


def is_expert_stack(use: ParameterUse) -> bool:
    """Tell whether a parameter with three dimensions is certainly a stack of experts' matrices."""
    # Its module, or the path to it, must be called after experts or count as many as there are; a
    # module that counts another number rules it out. Names without a module are not certain.
    if use.module is None or len(use.shape) != 3 or min(use.shape) < 2:
        return False
    if _EXPERT_BIAS.search(use.leaf.lower()):  # a row for each expert
        return False
    own = (getattr(use.module, name, None) for name in WORDS["n_experts"])
    if counted := [count for count in own if type(count) is int]:
        return use.shape[0] in counted
    return _is_named_expert(use) or find_size(use.module, "n_experts") == use.shape[0]


def _is_named_expert(use: ParameterUse) -> bool:
    """Tell whether the path or the class of the owner speaks of experts."""
    return bool(_EXPERT_PATH.search(use.path.lower()) or _EXPERT_CLASS.search(use.owner))


def _view_of_expert_stack(use: ParameterUse) -> ViewDecision:
    """Cut a stack, and in it gate and up, when the down projections beside it take half as much."""
    matrix = (use.shape[1], use.shape[2])
    beside = [
        (p.shape[1], p.shape[2])
        for p in (use.module.parameters(recurse=False) if use.module is not None else ())
        if p.ndim == 3 and p.shape[0] == use.shape[0]
    ]
    fused, down = _pair_transposed([matrix], beside), _pair_transposed(beside, [matrix])
    transposed = _are_experts_transposed(use, matrix, fused if down is None else down)
    stack = MatrixView(stack=1, transposed=transposed)
    if fused != transposed and "gate_up" not in use.leaf:
        return ViewDecision(stack)
    apart = getattr(use.module, "is_concatenated", True)
    if use.owner in WORDS["interleaved_experts"] or apart is False:
        return ViewDecision(stack, "; gate and up interleaved, which no cut separates")
    if fused != transposed:
        return _cut_outputs(stack, Ambiguity("gate and up in one", 2))
    return _cut_outputs(stack, _equal_sizes(2, matrix[1 if transposed else 0]))


def _pair_transposed(ups: Iterable[Shape], downs: Iterable[Shape]) -> bool | None:
    """Tell whether gate and up in one and their down projection are (in, out), None if no pair."""
    for up, down in product(ups, downs):
        if up == (2 * down[1], down[0]):
            return False
        if up == (down[1], 2 * down[0]):
            return True
    return None


def _are_experts_transposed(use: ParameterUse, matrix: Shape, paired: bool | None) -> bool:
    """Tell whether experts are stored as (in, out), as far as the module tells; else False."""
    module, rows, columns = use.module, *matrix
    stated = getattr(module, "is_transposed", None)
    if isinstance(stated, bool):
        return stated
    if rows != columns:
        sizes = [tuple(find_size(module, name) for name in pair) for pair in _IN_AND_OUT]
        if any(size in sizes for size in (matrix, matrix[::-1])):
            return matrix in sizes
    if paired is not None:
        return paired
    width, leaf = find_size(module, "model_width"), use.leaf.lower()
    if (rows == width) != (columns == width):
        up, down = _EXPERT_UP.search(leaf), _EXPERT_DOWN.search(leaf)
        return bool(rows == width and up and not down) or bool(columns == width and down)
    return False
