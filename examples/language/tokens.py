"""From texts to tokens: bytes as they are, or any tokenizer of Hugging Face's."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """What the data needs of a tokenizer."""

    vocabulary: int
    """Number of tokens; each is in [0, vocabulary)."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text, the last of them the one that ends a text."""
        ...


class ByteTokenizer:
    """The bytes of UTF-8; a zero byte, which text does not have, ends a text.

    Example:
        >>> from examples.language.tokens import ByteTokenizer
        >>> ByteTokenizer().encode(["Hi", ""])
        [array([ 72, 105,   0], dtype=int32), array([0], dtype=int32)]
    """

    vocabulary = 256

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the bytes of each text and a zero."""
        return [np.frombuffer(text.encode() + b"\0", np.uint8).astype(np.int32) for text in texts]


class HuggingFaceTokenizer:
    """A tokenizer of the Hub, or of a folder that `save_pretrained` has written.

    Args:
        name: Repository on the Hub, or local folder.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If the tokenizer has no token that ends a text.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"`tokenizer` {name!r} needs transformers: pip install 'lightning-root[examples]'; "
                "`bytes` needs nothing"
            ) from error
        # Documents are packed, so their length does not matter and is not to be warned of.
        self.tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=10**12)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"`tokenizer` must have an end-of-text token (`eos_token`), {name!r} has none; set "
                "it and save the tokenizer to a folder of yours"
            )
        self.vocabulary = len(self.tokenizer)
        self.end = np.array([self.tokenizer.eos_token_id], np.int32)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text and the end-of-text token; no other special ones."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False
        )["input_ids"]
        return [np.concatenate((np.array(tokens, np.int32), self.end)) for tokens in encoded]


def make_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that `name` says: "bytes", a repository on the Hub, or a folder."""
    return ByteTokenizer() if name == "bytes" else HuggingFaceTokenizer(name)
