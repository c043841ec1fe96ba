"""A trained language model as a Hugging Face folder, which `AutoModelForCausalLM` loads.

    python -m examples.language.export logs/text_3m/version_0/checkpoints/last.ckpt exported/text_3m
    python -m examples.language.export CHECKPOINT FOLDER --tokenizer meta-llama/Llama-3.2-1B

CHECKPOINT is a file of Lightning's, or the folder that processes have written together; the sizes
of the model are in it. The tokenizer is the one of the training, `data.init_args.tokenizer` in the
run's `config.yaml`; models of 256 tokens have been trained on bytes. The folder gives the same
logits, and the same tokens but for the one that ends a text: the data adds it, the folder's
tokenizer does not. Needs `pip install 'lightning-root[examples]'`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from examples.language.model import Llama
from examples.language.names import hugging_face_name
from examples.language.tokens import ByteTokenizer, HuggingFaceTokenizer
from lightning_root.cli.convert.checkpoints import read_content
from lightning_root.cli.parser import CommandParser, run_command

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CONFIG = "config.json"
"""By this file an exported folder is known."""


def parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(prog="python -m examples.language.export", description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt file, or a folder")
    add("folder", type=Path, metavar="FOLDER", help="where to write the model")
    add(
        "--tokenizer", metavar="NAME", help="bytes, or a tokenizer of the Hub, or a folder with one"
    )
    add("--overwrite", action="store_true", help="replace the exported model that FOLDER holds")
    parser.set_defaults(run=_run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; 0 if all went well."""
    return run_command(parser(), sys.argv[1:] if arguments is None else arguments)


def _run(options: argparse.Namespace) -> int:
    model = export(
        options.checkpoint, options.folder, options.tokenizer, overwrite=options.overwrite
    )
    print(f"{options.folder}: {model.num_parameters():,} parameters, {model.dtype}")
    print(f"to evaluate it:\n  python -m examples.language.zero_shot {options.folder}")
    return 0


def export(
    checkpoint: Path, folder: Path, tokenizer: str | None = None, *, overwrite: bool = False
) -> "LlamaForCausalLM":
    """Write a Hugging Face folder: configuration, weights, tokenizer; as a whole or not at all.

    Args:
        checkpoint: Of `examples.language.model.Llama`, with or without an optimizer's state.
        folder: Where to write it; made if need be.
        tokenizer: `bytes`, or a tokenizer of the Hub, or a folder with one. None is `bytes` for a
            model of 256 tokens.
        overwrite: Replace the exported model that the folder holds.

    Returns:
        The model that was written.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If the checkpoint is not such a model's, the tokenizer does not fit, or the
            folder is not empty.
    """
    with replaced_whole(folder, overwrite=overwrite) as draft:
        ours = read_model(checkpoint)
        theirs = hugging_face_tokenizer(tokenizer, ours.vocabulary)
        theirs.model_max_length = ours.context
        model = hugging_face_model(ours, end=theirs.eos_token_id)
        model.save_pretrained(draft)
        theirs.save_pretrained(draft)
    return model


def read_model(checkpoint: Path) -> Llama:
    """Read the language model that a checkpoint holds; nothing in it is run.

    Raises:
        ValueError: If it holds something else.
    """
    content = read_content(checkpoint)
    sizes = dict(content.get("hyper_parameters", {}))
    found = sizes.get("_class_path", "examples.language.model.Llama")
    if not sizes or "state_dict" not in content or found != "examples.language.model.Llama":
        what = f"`{found}`" if "_class_path" in sizes else "no model with its sizes"
        raise ValueError(
            f"'{checkpoint}' holds {what}; this command exports checkpoints that Lightning has "
            "written of examples.language.model.Llama"
        )
    try:
        with torch.device("meta"):
            # Names with an underscore are LightningCLI's own notes.
            model = Llama(**{name: sizes[name] for name in sizes if not name.startswith("_")})
        model.load_state_dict(content["state_dict"], assign=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"'{checkpoint}' does not hold an examples.language.model.Llama: {error}"
        ) from error
    return model


def hugging_face_model(model: Llama, end: int) -> "LlamaForCausalLM":
    """The same model as one of Hugging Face's, which shares its weights.

    Args:
        model: With weights.
        end: The token that ends a text.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = model.hparams
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.dimension,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_dimension,
        intermediate_size=sizes.mlp_dimension,
        max_position_embeddings=sizes.context,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        rms_norm_eps=sizes.norm_eps,
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,  # no text of the training begins with a token of its own
        eos_token_id=end,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    weights = {hugging_face_name(name): value for name, value in model.state_dict().items()}
    if sizes.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs.load_state_dict(weights, assign=True)
    theirs.tie_weights()
    return theirs


def hugging_face_tokenizer(name: str | None, vocabulary: int) -> "PreTrainedTokenizerBase":
    """The tokenizer that the data makes tokens with, as one of Hugging Face's.

    Args:
        name: `bytes`, or a tokenizer of the Hub, or a folder. None is `bytes` for 256 tokens.
        vocabulary: How many tokens the model has.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If there is no name, or the model has fewer tokens than the tokenizer.
    """
    if name is None and vocabulary != ByteTokenizer.vocabulary:
        raise ValueError(
            f"`--tokenizer` must be given for a model of {vocabulary} tokens; that of its training "
            "is `data.init_args.tokenizer` in the run's config.yaml"
        )
    tokenizer = (
        byte_tokenizer() if name in (None, "bytes") else HuggingFaceTokenizer(name).tokenizer
    )
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"`--tokenizer` {name!r} has {len(tokenizer)} tokens, more than the model's "
            f"{vocabulary}; give the one of its training"
        )
    return tokenizer


def byte_tokenizer() -> "PreTrainedTokenizerBase":
    r"""`ByteTokenizer` as one of Hugging Face's: token `i` is byte `i`.

    Each character that is no token of its own falls back to its bytes, for which such tokenizers
    have names: `<0x48>`. The zero byte goes by its own name, which no other text can spell.

    Example:
        >>> from examples.language.export import byte_tokenizer
        >>> byte_tokenizer().encode("é\0")
        [195, 169, 0]
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the export needs transformers: pip install 'lightning-root[examples]'"
        ) from error
    end = "\0"
    names = {end: 0} | {f"<0x{byte:02X}>": byte for byte in range(1, ByteTokenizer.vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(end, normalized=False, special=True),
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def replaced_whole(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write beside `folder`, which takes its place at the end if nothing is raised.

    Raises:
        ValueError: If there is something in the folder that is not to be replaced.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder, got the file '{folder}'")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / CONFIG).is_file():
            raise ValueError(f"'{folder}' holds something else; give another folder, or a new one")
        if not overwrite:
            raise ValueError(
                f"'{folder}' holds a model; give `--overwrite` to replace it, or another folder"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        draft, old = Path(place, "new"), Path(place, "old")
        draft.mkdir()
        yield draft
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(draft, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise


if __name__ == "__main__":
    sys.exit(main())
