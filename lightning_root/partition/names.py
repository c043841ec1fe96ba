"""Words of names: every decision that rests on a name asks here, component by component.

The words themselves are in `words.toml`.
"""

import re
import tomllib
from collections.abc import KeysView
from importlib.resources import files
from typing import Final

_FILE = files("lightning_root.partition").joinpath("words.toml")
WORDS: Final[dict[str, KeysView[str]]] = {
    name: dict.fromkeys(words.split()).keys()
    for name, words in tomllib.loads(_FILE.read_text("utf-8")).items()
}

# Components that wrappers put into a name: torch.compile, activation checkpointing, FSDP, Fabric.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_(checkpoint|fsdp)_wrapped_module|_(forward|original)_module)(\.|$)"
)
# Tensors that stand for a module's `weight`: after the hooks of `torch.nn.utils.weight_norm` (the
# direction), and of `torch.nn.utils.spectral_norm` or `torch.nn.utils.prune`.
_WEIGHT_ALIASES = {"weight_v": "weight", "weight_orig": "weight"}
_AUXILIARY_HEAD = re.compile(r"aux(iliary)?_?(\d+|logits|classifier|out|output)?")
# Both towers of a contrastive model end with one; alone it leads into a model.
SHARED_SPACE = re.compile(r"^(text|visual|vision|image|audio|video)_proj(ection)?$")
# Linears that make a norm's scale and shift out of a condition.
MODULATION = re.compile(r"ada_?(ln|norm|rms|group)|modulation")
_FACTOR = re.compile(r"lora_|hada_|lokr_", re.IGNORECASE)  # of a low-rank adapter
# Of state-space and linear recurrent models, one for each entry.
_RATES = re.compile(
    r"a_log|(log_|inv_)?a_(real|imag|re|im)|lambda(_\w+)?|(log_|inv_)?(dt|step)|"
    r"time_(decay|first|faaaa)"
)
_PATCH = re.compile(
    r"patch_?emb(?!.*_proj)|embed_patch|patchify|^conv_proj$|^patch_proj(ection)?$|^to_patch$|^w_p$"
)


def canonical(name: str) -> str:
    """Return `name` without the components that wrappers put in."""
    return _WRAPPERS.sub("", name).removesuffix(".")


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
    return last_component(path) if leaf in WORDS["generic_leaves"] and path else leaf


def tokenize(component: str) -> list[str]:
    """Split a component at its underscores, in lower case."""
    return component.lower().split("_")


def has(component: str, words: str) -> bool:
    """Tell whether a component has one of these words."""
    return not WORDS[words].isdisjoint(tokenize(component))


def is_head(component: str) -> bool:
    """Tell whether a component names an output head wherever it is found outside of a block."""
    name = component.lower()
    stem, _, ending = name.rpartition("_")
    ends = stem != "" and ending in WORDS["head_endings"] and stem not in WORDS["hidden_stems"]
    named = name in WORDS["heads"] or name.startswith(("predict_", "unembed"))
    return ends or named or bool(_AUXILIARY_HEAD.fullmatch(name))


def factor_component(name: str) -> str | None:
    """Return the component that names a factor of a low-rank adapter, None when there is none."""
    return next((part for part in name.split(".") if _FACTOR.match(part)), None)


def patch_component(path: str) -> str | None:
    """Return the component that names a patch embedding: the module's own or its parent's."""
    return next((part for part in path.split(".")[-2:] if _PATCH.search(part.lower())), None)


def table_kind(component: str) -> str | None:
    """Return which kind of table a component names (its entries stand alone), None for no table."""
    tokens = tokenize(component)
    if is_head(component) or has(component, "projection"):
        return None
    if has(component, "position"):
        return "position table"
    if has(component, "embedding"):
        return "embedding"
    if tokens[-1] in WORDS["token"]:
        return "learned token"
    if has(component, "vectors") or tokens[-1] == "table":
        return "table"
    name = component.lower()
    if _RATES.fullmatch(name):
        return "decay rates"
    if name in WORDS["embedding_tables"]:
        return "embedding"
    return "table" if name in WORDS["tables"] else None


def words_of_class(name: str) -> str:
    """Write the name of a class as a component: "PosEmbed" is "pos_embed"."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", name).lower()


def is_bias(component: str) -> bool:
    """Tell whether a component names biases: one for each expert or each head makes a table."""
    tokens = tokenize(component)
    # TransformerLens' b_Q, experts' b1; but B alone is a state-space model's.
    short = ("b" in tokens[:-1] and not has(component, "projection")) or tokens[-1] in ("b1", "b2")
    return short or has(component, "bias")


def is_position_bias(component: str) -> bool:
    """Tell whether a component names biases of positions, which may be a Linear of one-hots."""
    position = has(component, "position") or "rel" in tokenize(component)
    return is_bias(component) and position
