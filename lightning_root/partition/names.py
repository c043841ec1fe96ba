"""Word lists: every decision that rests on a name asks here, component by component.

Sets hold components of dotted names in lower case.
"""

import re

# Components that wrappers put into a name: torch.compile, activation checkpointing, FSDP, Fabric.
_WRAPPERS = frozenset(
    "_orig_mod _checkpoint_wrapped_module _fsdp_wrapped_module _forward_module "
    "_original_module".split()
)

# Tensors that stand for a module's `weight`: after the hooks of `torch.nn.utils.weight_norm` (the
# direction), and of `torch.nn.utils.spectral_norm` or `torch.nn.utils.prune`.
_WEIGHT_ALIASES = {"weight_v": "weight", "weight_orig": "weight"}

# Parameters' own names that say nothing: the module's name speaks for them.
_GENERIC_LEAVES = frozenset("weight weights w param parameter data value".split())

# A module of this name computes the model's output, unless it sits in a repeated block.
_HEADS = frozenset(
    "head heads lm_head classifier classifiers fc_out output_projection output_layer out_layer "
    "score logits to_logits embed_out unembed unembedding head_dist head_linear predictions "
    "seq_relationship qa_outputs cls_score bbox_pred last_linear final_linear final_layer "
    "class_embed bbox_embed outc".split()
)
# After "_"; but "multi_head" is attention, "pre_logits" and "conv_head" are hidden layers.
_HEAD_ENDINGS = frozenset(
    "head heads classifier logits predictor prediction predictions pred preds".split()
)
_AUXILIARY_HEAD = re.compile(r"aux(iliary)?_?(\d+|logits|classifier|out|output)?")
# Layers beside a head that read what it reads and are hidden all the same.
HIDDEN_BESIDE_HEADS = frozenset(
    "trunk body backbone base encoder features stem embed embedding gate gate_proj up_proj up "
    "router in_proj qkv c_attn skip shortcut residual down_proj o_proj out_proj to_out".split()
)
# Networks of reinforcement learning: nothing reads them, whatever the sizes say.
ACTORS = frozenset("actor critic policy value pi vf q1 q2 qf1 qf2".split())
_BLOCK_OUTPUTS = frozenset("forecast backcast theta".split())
_HIDDEN_STEMS = frozenset(
    "multi attn attention self cross sa per each single num n pre conv".split()
)
# Heads among convolutions alone: speech models have a Linear `conv_out` behind their stem.
CONVOLUTION_HEADS = frozenset("conv_out to_rgb".split())
# Too general to count anywhere but at the top of the model, and only for a single layer.
TOP_LEVEL_HEADS = frozenset(
    "fc output out decoder generator readout prediction pred proj_out output_proj linear_out "
    "lin_out out_linear out_conv conv_last final_conv conv_final final last".split()
)
# What ends a head that has other layers registered after it.
LAST_IN_HEAD = frozenset("out_proj proj_out output_proj output out fc_out decoder".split())
# The hidden layer of a head, whose output is computed elsewhere: by the transposed embedding.
HIDDEN_IN_HEAD = frozenset("dense transform".split())
# Both towers of a contrastive model end with one; alone it leads into a model.
SHARED_SPACE = re.compile(r"^(text|visual|vision|image|audio|video)_proj(ection)?$")

# Linears that write to a residual stream. One of them can be the last Linear of a model
# whose output is computed with the transposed embedding.
RESIDUAL_OUTPUTS = frozenset("out_proj o_proj c_proj down_proj to_out wo".split())
# Children that give an attention module away, whatever it is called ("sa_head").
ATTENTION_CHILDREN = frozenset(
    "q k v query key value qkv q_proj k_proj v_proj qkv_proj to_q to_k to_v to_qkv c_attn".split()
)
# Containers that hold a model's blocks, even when there is only one.
BLOCK_CONTAINERS = frozenset("blocks layers layer h encoder_layers decoder_layers stages".split())
# Linears that make a norm's scale and shift out of a condition.
MODULATION = re.compile(r"ada_?(ln|norm|rms|group)|modulation")
# Modules beside the model: what they end with is not the model's output.
_AUXILIARY = frozenset(
    "loss losses criterion criteria metric metrics lpips perceptual teacher ema".split()
)
# The factors of a low-rank adapter.
_FACTOR = re.compile(r"lora_|hada_|lokr_", re.IGNORECASE)

_POSITION = frozenset("pos position positions positional relative posemb posembed wpe".split())
_EMBEDDING = frozenset("emb embs embed embeds embedding embeddings wte".split())
_PROJECTION = frozenset("proj projection project".split())
_TOKEN = frozenset("token tokens".split())
_VECTORS = frozenset(
    "latents queries codes codebook codebooks prototypes centroids centers anchors prompt prompts "
    "registers".split()
)
_BIAS = frozenset("bias biases".split())
_GAINS = frozenset(
    "gamma beta gain gains scale scales layerscale temperature temperatures alphas".split()
)
_TABLES = {
    "shared": "embedding",  # of encoder and decoder
    "trainable_tokens_delta": "embedding",  # PEFT's
    **dict.fromkeys(("latent", "latent_query", "z", "code"), "table"),
}
# Of state-space and linear recurrent models, one for each entry.
_RATES = re.compile(
    r"a_log|(log_|inv_)?a_(real|imag|re|im)|lambda(_\w+)?|(log_|inv_)?(dt|step)|"
    r"time_(decay|first|faaaa)"
)
# Parameters' own names that tell of a matrix, whatever their module is called.
_MATRIX = frozenset(
    "proj projection project linear dense kernel mix fc mlp conv in out up down gate q k v query "
    "key value lora".split()
)
_PATCH = re.compile(
    r"patch_?emb(?!.*_proj)|embed_patch|patchify|^conv_proj$|^patch_proj(ection)?$|^to_patch$|^w_p$"
)


def canonical(name: str) -> str:
    """Return `name` without the components that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def split_name(name: str) -> tuple[str, str]:
    """Split a canonical name into the path of the owning module and the parameter's own name."""
    # `fc.parametrizations.weight.original` belongs to `fc` and is its `weight`.
    path, _, leaf = name.rpartition(".")
    owner, _, parametrized = path.rpartition(".parametrizations.")
    if owner and "." not in parametrized and leaf.startswith("original"):
        path, leaf = owner, parametrized
    elif path.startswith("parametrizations.") and path.count(".") == 1:
        path, leaf = "", path.removeprefix("parametrizations.")
    return path, _WEIGHT_ALIASES.get(leaf, leaf)


def prefixes(path: str) -> list[str]:
    """Return a module's ancestors, outermost first, and itself; "" is the model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def candidate_globs(name: str) -> list[str]:
    """Return globs that match a name, from its last telling components to the name itself."""
    parts = name.split(".")
    # The last two components, and more where these do not name the layer.
    starts = [len(parts) - 2]
    starts += [i for i, part in enumerate(parts) if _FACTOR.match(part)]
    starts += [i - 1 for i, part in enumerate(parts) if part == "parametrizations"]
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    start = max(min(starts), 0, *(i + 1 for i in numbers))
    ending = ".".join(parts[start:])
    starred = ".".join("*" if part.isdigit() else part for part in parts)
    return list(dict.fromkeys([f"*.{ending}" if start else ending, starred, name]))


def last_component(path: str) -> str:
    """Return what follows the last dot of `path`."""
    return path.rpartition(".")[2]


def own_component(path: str, leaf: str) -> str:
    """Return the component that names a tensor: its own, or its module's if it is `weight`."""
    if leaf.isdigit():  # of a ParameterList
        path, _, leaf = path.rpartition(".")
    return last_component(path) if leaf in _GENERIC_LEAVES and path else leaf


def tokenize(component: str) -> list[str]:
    """Split a component at its underscores, in lower case."""
    return component.lower().split("_")


def is_head(component: str) -> bool:
    """Tell whether a component names an output head wherever it is found outside of a block."""
    name = component.lower()
    stem, underscore, ending = name.rpartition("_")
    ends = bool(underscore) and ending in _HEAD_ENDINGS and stem not in _HIDDEN_STEMS
    named = name in _HEADS or name.startswith(("predict_", "unembed"))
    return ends or named or bool(_AUXILIARY_HEAD.fullmatch(name))


def is_block_output(component: str) -> bool:
    """Tell whether a component names what a block adds to the output, as in N-BEATS."""
    return not _BLOCK_OUTPUTS.isdisjoint(tokenize(component))


def is_auxiliary(component: str) -> bool:
    """Tell whether a component names something beside the model: a loss, a metric, a teacher."""
    return not _AUXILIARY.isdisjoint(tokenize(component))


def factor_component(name: str) -> str | None:
    """Return the component that names a factor of a low-rank adapter, None when there is none."""
    return next((part for part in name.split(".") if _FACTOR.match(part)), None)


def patch_component(path: str) -> str | None:
    """Return the component that names a patch embedding: the module's own or its parent's."""
    return next((part for part in path.split(".")[-2:] if _PATCH.search(part.lower())), None)


def table_kind(component: str) -> str | None:
    """Return which kind of table a component names (its entries stand alone), None for no table."""
    tokens = tokenize(component)
    if is_head(component) or not _PROJECTION.isdisjoint(tokens):
        return None
    if not _POSITION.isdisjoint(tokens):
        return "position table"
    if not _EMBEDDING.isdisjoint(tokens):
        return "embedding"
    if tokens[-1] in _TOKEN:
        return "learned token"
    if not _VECTORS.isdisjoint(tokens) or tokens[-1] == "table":
        return "table"
    name = component.lower()
    return "decay rates" if _RATES.fullmatch(name) else _TABLES.get(name)


def words_of_class(name: str) -> str:
    """Write the name of a class as a component: "PosEmbed" is "pos_embed"."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", name).lower()


def is_silent(leaf: str) -> bool:
    """Tell whether a parameter's own name leaves to its module's what it is."""
    return _MATRIX.isdisjoint(tokenize(leaf))


def is_gain(component: str) -> bool:
    """Tell whether a component names gains, which may have a row for each layer or head."""
    return not _GAINS.isdisjoint(tokenize(component))


def is_bias(component: str) -> bool:
    """Tell whether a component names biases: one for each expert or each head makes a table."""
    tokens = tokenize(component)
    short = "b" in tokens[:-1] and _PROJECTION.isdisjoint(tokens)  # TransformerLens' b_Q
    return short or not _BIAS.isdisjoint(tokens)


def is_position_bias(component: str) -> bool:
    """Tell whether a component names biases of positions, which may be a Linear of one-hots."""
    return is_bias(component) and not (_POSITION | {"rel"}).isdisjoint(tokenize(component))
