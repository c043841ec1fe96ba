"""Text for the language models, as a LightningDataModule.

To look at its options:

    python -m lightning_root fit --data.help examples.language.data.TextStream
"""

import math
from typing import Any

import lightning as L
import numpy as np
import torch

from examples.batches import rank_and_world_size
from examples.language.documents import (
    LOCAL_FORMATS,
    Documents,
    digest,
    in_random_order,
    list_files,
    open_documents,
)
from examples.language.loader import PackedBatches
from examples.language.packing import Packer
from examples.language.tokens import Tokenizer, make_tokenizer
from examples.stdlib_text import FixedWindows


class TextStream(L.LightningDataModule):
    """Documents of the Hub or of local files, streamed, tokenized and packed while training.

    A batch is a tensor of shape (batch_size, context + 1), int64: inputs and, one token later,
    targets. Nothing is written to disk, nothing is padded; documents follow each other with an
    end-of-text token between them. A run resumes with the very batch that would have come next.

    Validation uses documents that no training batch holds: those of `validation_files`, or the
    first `held_out_documents` (of local files in a random order that is always the same).

    Args:
        dataset: Repository on the Hub, or the format of local files: text, json, parquet, csv.
        name: Which of the repository's configurations.
        data_files: Files: paths or patterns, of the repository if one is given. `null` is all of
            the repository; for `dataset: text` Python's own standard library.
        split: Which split of the repository.
        column: Which column holds the text.
        options: Further arguments of `datasets.load_dataset`, or of the format's reader; for text
            `sample_by: document` makes one document of a file (else each line is one).
        tokenizer: `bytes`, or a tokenizer of the Hub, or a folder with one.
        context: Tokens a window. `null` takes the model's `context`.
        batch_size: Windows per batch on each device.
        validation_files: Files of the same format to validate on. `null` holds documents out.
        held_out_documents: How many documents to hold out.
        validation_windows: Windows to validate on, evenly spaced over the held-out text.
        shuffle_windows: Windows that are read ahead and put in random order; 0 keeps theirs.
        batches_per_epoch: Batches in an epoch: a stream has no end. `null` makes the whole run one.
        seed: Order of local files and of windows.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        dataset: str = "text",
        name: str | None = None,
        data_files: str | list[str] | None = None,
        split: str = "train",
        column: str = "text",
        options: dict[str, Any] | None = None,
        tokenizer: str = "bytes",
        context: int | None = None,
        batch_size: int = 16,
        validation_files: str | list[str] | None = None,
        held_out_documents: int = 100,
        validation_windows: int = 128,
        shuffle_windows: int = 4096,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"batch_size": batch_size, "validation_windows": validation_windows}
        if validation_files is None:
            positive["held_out_documents"] = held_out_documents
        for argument, value in positive.items():
            if value < 1:
                raise ValueError(f"`{argument}` must be at least 1, got {value}")
        self.dataset, self.name, self.split, self.column = dataset, name, split, column
        self.data_files, self.validation_files = data_files, validation_files
        self.options, self.tokenizer_name = options or {}, tokenizer
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.held_out_documents = held_out_documents
        self.validation_windows, self.shuffle_windows = validation_windows, shuffle_windows
        self.batches_per_epoch = batches_per_epoch
        self.tokenizer: Tokenizer | None = None
        self.batches: PackedBatches | None = None

    def setup(self, stage: str) -> None:
        if self.tokenizer is not None:
            return  # read once, whichever stages follow
        tokenizer = make_tokenizer(self.tokenizer_name)
        self.check_vocabulary(tokenizer.vocabulary)
        self.files = list_files(self.dataset, self.data_files)
        texts = self.read_validation_texts()
        self.held_out, self.validation_documents = frozenset(map(digest, texts)), len(texts)
        self.validation_bytes = sum(len(text.encode()) for text in texts)
        self.validation_tokens = torch.from_numpy(np.concatenate(tokenizer.encode(texts)))
        self.tokenizer = tokenizer

    def check_vocabulary(self, tokens: int) -> None:
        """Raise a ValueError if the model has fewer tokens than the tokenizer."""
        model: Any = self.trainer.lightning_module if self.trainer else None
        vocabulary = getattr(model, "vocabulary", tokens)
        if tokens > vocabulary:
            enough = math.ceil(tokens / 64) * 64
            raise ValueError(
                f"`tokenizer` {self.tokenizer_name!r} has {tokens} tokens, more than the model's "
                f"`vocabulary` of {vocabulary}; set `--model.vocabulary {enough}`"
            )

    def read_validation_texts(self) -> list[str]:
        """Return the documents to validate on, the same on every rank and for every seed."""
        count: int | None = None
        if self.validation_files is not None:
            files = list_files(self.dataset, self.validation_files)
        else:
            files, count = in_random_order(self.files, seed=0), self.held_out_documents
            if self.dataset in LOCAL_FORMATS and files is not None:
                files = files[:count]  # each holds a document or more
        documents = self.open(files)
        if count is not None:
            documents = documents.take(count)
        texts = [row[self.column] for row in documents]
        if not texts:
            raise ValueError(f"no document to validate on in {files or self.dataset}")
        return texts

    def open(self, files: list[str] | None) -> Any:
        """Open `files` of the dataset, or all of it, in streaming mode."""
        return open_documents(self.dataset, self.name, files, self.split, self.column, self.options)

    def window_length(self) -> int:
        """Return `context`, or the model's."""
        if self.context is not None:
            return self.context
        if self.trainer is None:
            raise ValueError("`context` must be given without a Trainer, whose model has one")
        model: Any = self.trainer.lightning_module
        return int(model.context)

    def pass_length(self) -> int:
        """Return `batches_per_epoch`, or the batches of the whole run."""
        if self.batches_per_epoch is not None:
            return self.batches_per_epoch
        if self.trainer is None or self.trainer.max_steps < 0:
            raise ValueError(
                "`batches_per_epoch` must be given, or the Trainer's `max_steps`: a stream of text "
                "has no end"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> PackedBatches:
        assert self.tokenizer is not None
        rank, world_size = rank_and_world_size(self.trainer)
        opened = self.open(in_random_order(self.files, self.seed))
        documents = Documents(opened, self.column, rank, world_size, self.held_out)
        batches = max(1, math.ceil(self.shuffle_windows / self.batch_size))
        windows = batches * self.batch_size
        packer = Packer(documents, self.tokenizer, self.window_length(), windows)
        self.batches = PackedBatches(
            packer,
            self.batch_size,
            self.pass_length(),
            self.seed if self.shuffle_windows else None,
            rank,
            world_size,
        )
        return self.batches

    def val_dataloader(self) -> FixedWindows:
        context, share = self.window_length(), rank_and_world_size(self.trainer)
        text, count = self.validation_tokens, self.validation_windows
        return FixedWindows(text, context, self.batch_size, count, *share)

    def summary_lines(self) -> list[str]:
        """Say what was read, and whether training waited for it; `RunSummary` asks."""
        tokens = len(self.validation_tokens)
        lines = [
            f"held-out text: {self.validation_documents:,} documents, {tokens:,} tokens, "
            f"{self.validation_bytes / tokens:.2f} bytes a token"
        ]
        if self.batches is not None:
            share = self.batches.waiting_share()
            lines.append(f"waiting for text: {share:.2%} of the time since the first batch")
        return lines
