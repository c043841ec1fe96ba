"""What each parameter is called in Hugging Face's `LlamaForCausalLM`.

The weights mean the same and have the same shapes there, so that a name is all that changes. With
tied embeddings Hugging Face's `lm_head.weight` is `network.embedding.weight` here.
"""

from collections.abc import Mapping
from typing import Final

OUTSIDE_BLOCKS: Final[Mapping[str, str]] = {
    "network.embedding.weight": "model.embed_tokens.weight",
    "network.norm.weight": "model.norm.weight",
    "network.head.weight": "lm_head.weight",
}
IN_BLOCKS: Final[Mapping[str, str]] = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def hugging_face_name(name: str) -> str:
    """Return Hugging Face's name of a parameter of `examples.language.model.Llama`.

    Raises:
        KeyError: If the model has no such parameter.

    Example:
        >>> from examples.language.names import hugging_face_name
        >>> hugging_face_name("network.blocks.3.mlp.gate.weight")
        'model.layers.3.mlp.gate_proj.weight'
    """
    if name in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[name]
    _, _, number, part = name.split(".", 3)  # network.blocks.3.mlp.gate.weight
    return f"model.layers.{number}.{IN_BLOCKS[part.removesuffix('.weight')]}.weight"
