"""Rules by name, for families whose modules do not tell.

Few need one: types, uses and names decide for GPT-2, Llama, BERT, T5, ViT, Swin, ConvNeXt,
Mixtral, Mamba, Whisper, CLIP and the rest of the architectures that the tests build. Here are those
that keep hidden matrices in raw 3-D parameters.
"""

from collections.abc import Mapping
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Attention weights of shape (width, heads, head size): into the heads, and `o` out of them.
    "xlnet": {
        "*.rel_attn.[qkvr]": {"transposed": True},
        "*.rel_attn.o": "root",
    },
    "funnel": {
        "*.attention.r_kernel": {"transposed": True},
    },
}


def preset(name: str) -> Mapping[str, Any]:
    """The rules of a family.

    Raises:
        ValueError: If there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"`rules` must be globs with their rules or the name of a preset {sorted(PRESETS)}, "
            f"got {name!r}; most families need none, `print(partition_parameters(model))` shows it"
        )
    return PRESETS[name]
