"""Documents, one after the other, cut into windows of equal length."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.language.documents import Documents
from examples.language.tokens import Tokenizer


class Packer:
    """Packs an endless stream of documents into blocks of windows; nothing is padded or lost.

    Each window begins with the token that the one before it ends with: that token is a target
    there and an input here, so that every token is predicted once.

    Args:
        documents: The stream.
        tokenizer: Its tokens; it ends each document.
        context: Length of a window, without the one further token for the last target.
        windows: Windows in a block.
    """

    def __init__(
        self, documents: Documents, tokenizer: Tokenizer, context: int, windows: int
    ) -> None:
        self.documents, self.tokenizer = documents, tokenizer
        self.context, self.windows = context, windows
        self.remainder = torch.empty(0, dtype=torch.int32)  # read, but in no window yet

    def block(self) -> Tensor:
        """Return the next windows: (windows, context + 1) int32."""
        needed = self.windows * self.context + 1
        parts, size = [self.remainder.numpy()], len(self.remainder)
        while size < needed:
            encoded = self.tokenizer.encode(next(self.documents))
            parts += encoded
            size += sum(map(len, encoded))
        tokens = torch.from_numpy(np.concatenate(parts))
        self.remainder = tokens[needed - 1 :].clone()
        return tokens[:needed].unfold(0, self.context + 1, self.context)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream, and what was read and is in no window yet."""
        return {"documents": self.documents.state_dict(), "remainder": self.remainder}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.documents.load_state_dict(state_dict["documents"])
        self.remainder = state_dict["remainder"]
