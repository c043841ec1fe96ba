"""Find q, k and v, or k and v, in one matrix: in what sizes, and whether the order is known."""

from torch import nn

from lightning_root.partition.cuts import Doubt, Parts, child, equal, fan_out_of, told
from lightning_root.partition.places import plain_class

# Names of fused projections: q, k and v below each other; in an order that differs by model.
_QUERY_KEY_VALUE = frozenset(
    "qkv qkv_proj wqkv to_qkv c_attn qkv_linear qkv_layer fused_qkv attn_qkv proj_qkv c_qkv "
    "w_pack".split()
)
_OF_UNKNOWN_ORDER = frozenset("query_key_value linear_qkv".split())
_KEY_VALUE = frozenset("kv to_kv kv_proj wkv c_kv key_value fused_kv kv_linear".split())
_QUERIES = ("q", "to_q", "q_proj", "wq", "query", "c_q", "q_attn", "q_linear")

_HEADS = (
    *("num_heads", "num_attention_heads", "n_head", "n_heads", "nhead", "heads"),
    *("num_q_heads", "num_query_heads"),
)
_KEY_VALUE_HEADS = (
    *("num_kv_heads", "num_key_value_heads", "n_kv_heads", "n_kv_head", "kv_heads"),
    *("num_heads_kv", "num_query_groups", "n_query_groups"),
)
_HEAD_SIZE = (
    *("head_dim", "head_size", "attention_head_size", "dim_head", "d_head"),
    "hidden_size_per_attention_head",
)

# Attention that stores q, k and v head by head, or group of heads by group, in one matrix. Every
# piece is a multiple of the head size there, whatever the configuration.
_HEAD_BY_HEAD = frozenset(
    {
        "BloomAttention",
        "CodeGenAttention",  # four groups of [q, v, k]
        "DisentangledSelfAttention",  # the first DeBERTa
        "FalconAttention",  # in all three of its architectures
        "FalconFlashAttention2",
        "GPTBigCodeAttention",  # [q, k, v] per head; with one key head: all queries, k, v
        "GPTNeoXAttention",
        "GPTNeoXJapaneseAttention",
        "InternLM2Attention",  # groups of [queries, k, v]
        "MiniMaxLightningAttention",
        "PersimmonAttention",
    }
)
_HEAD_BY_HEAD_MODELS = frozenset(
    "bloom codegen falcon gpt_bigcode gpt_neox gpt_neox_japanese internlm2 persimmon".split()
)


def qkv_parts(
    component: str, fan_in: int, fan_out: int, parent: nn.Module | None
) -> Parts | Doubt | None:
    """Say how the output features of a fused projection split into matrices.

    Args:
        component: What the Linear is called, in lower case.
        fan_in: Its input features.
        fan_out: Its output features.
        parent: The attention module, None when there is no module to ask.

    Returns:
        Sizes that are certain, a doubt, or None when nothing suggests a fused projection.
    """
    if component == "kv_b_proj":  # DeepSeek's
        return Doubt("k and v of each head in turn", None)
    if component in _KEY_VALUE or _is_cross_attention(component, parent):
        return _key_value(fan_out, parent)
    if not is_query_key_value(component, tripled=fan_out == 3 * fan_in):
        return None
    if parent is None:
        return Doubt("q, k, v in one by its name", _guess(component, fan_in, fan_out))
    size = told(parent, _HEAD_SIZE)
    heads = told(parent, _HEADS)
    if size is None and heads is not None and fan_in % heads == 0:
        size = fan_in // heads
    if _is_head_by_head(parent):
        if size is not None and fan_out % size == 0:
            return equal(fan_out // size, fan_out)
        return Doubt("heads of q, k and v in turn", None)
    if _has_unequal_heads(parent):
        return Doubt("q, k, v in one of unknown order", None)
    if component not in {*_QUERY_KEY_VALUE, "in_proj"}:
        guess = _guess(component, fan_in, fan_out)
        if guess is not None and size is not None and fan_out % size == 0:
            guess = fan_out // size  # single heads are right in any order
        return Doubt("q, k, v in one of unknown order", guess)
    groups = told(parent, _KEY_VALUE_HEADS)
    if heads is not None and size is not None:
        query, key = heads * size, (groups or heads) * size
        if query + 2 * key == fan_out:
            return (query, key, key)
    if fan_out == 3 * fan_in and (groups in (None, heads) or component == "in_proj"):
        return equal(3, fan_out)
    return Doubt("q, k, v in one of unknown sizes", _guess(component, fan_in, fan_out))


def is_query_key_value(component: str, *, tripled: bool) -> bool:
    """Tell whether a component in lower case names q, k and v in one matrix.

    Args:
        component: A component of a name.
        tripled: Whether there are three times as many outputs as inputs; `in_proj` says nothing by
            itself.
    """
    return (
        "qkv" in component
        or component in _QUERY_KEY_VALUE | _OF_UNKNOWN_ORDER
        or (component == "in_proj" and tripled)
    )


def _key_value(fan_out: int, parent: nn.Module | None) -> Parts | Doubt | None:
    """Cut k and v in one, when each is as large as the query beside them or as the heads told."""
    sizes = [fan_out_of(child(parent, name)) for name in _QUERIES]
    groups, size = told(parent, _KEY_VALUE_HEADS), told(parent, _HEAD_SIZE)
    if groups is not None and size is not None:
        sizes.append(groups * size)
    if fan_out % 2 == 0 and fan_out // 2 in sizes:
        return equal(2, fan_out)
    return Doubt("k, v in one of unknown sizes", 2 if fan_out % 2 == 0 else None)


def _is_cross_attention(component: str, parent: nn.Module | None) -> bool:
    """Tell whether this is GPT-2's `c_attn` beside a projection of the query."""
    return component == "c_attn" and child(parent, "q_attn") is not None


def _is_head_by_head(parent: nn.Module) -> bool:
    """Tell whether an attention module is known to store heads one after the other."""
    model = getattr(getattr(parent, "config", None), "model_type", None)
    return (
        plain_class(parent).__name__ in _HEAD_BY_HEAD
        or model in _HEAD_BY_HEAD_MODELS
        or getattr(parent, "head_first", False) is True  # timm's MaxViT
    )


def _has_unequal_heads(parent: nn.Module) -> bool:
    """Tell whether values are sized apart from keys, as in TinyViT, which goes head by head."""
    return told(parent, ("key_dim",)) is not None and told(parent, ("val_dim",)) is not None


def _guess(component: str, fan_in: int, fan_out: int) -> int | tuple[int, ...] | None:
    """Guess sizes for a proposal: as many queries as inputs, the rest for keys and values."""
    if component not in {*_QUERY_KEY_VALUE, *_OF_UNKNOWN_ORDER, "in_proj"}:
        return None  # "qkvz", or so: something is beside them
    if fan_out % 3 == 0 and fan_out >= 3 * fan_in:
        return 3
    rest = fan_out - fan_in
    return (fan_in, rest // 2, rest // 2) if rest > 0 and rest % 2 == 0 else None
