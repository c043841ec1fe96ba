"""Text that every machine has: the source files of Python's own standard library.

About 30 MB of real text, nothing to download. A few files, chosen by a hash of their path, are
held out for validation; the rest is training text. To look at the options:

    python -m lightning_root fit --data.help examples.stdlib_text.StdlibText
"""

import hashlib
import math
import os
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from examples.batches import IndexedBatches, generator_of, rank_and_world_size

SEPARATOR = b"\0"
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}  # not Python's own, or no text


def find_files(root: Path, pattern: str) -> list[str]:
    """List the files below `root` whose name matches `pattern`, as sorted relative POSIX paths."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths = (Path(folder, name) for name in names if fnmatch(name, pattern))
        found += [path.relative_to(root).as_posix() for path in paths if os.access(path, os.R_OK)]
    return sorted(found)


def split_files(files: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Split paths into (training, validation) by a hash of each path.

    A file keeps its side whatever other files come or go. About `fraction` of the files, and at
    least one, are held out.
    """

    def position(path: str) -> float:  # uniform in [0, 1)
        return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64

    threshold = max(fraction, min(map(position, files)))
    held_out = [path for path in files if position(path) <= threshold]
    return [path for path in files if position(path) > threshold], held_out


def read_text(root: Path, files: list[str]) -> Tensor:
    """Join the bytes of `files`, each followed by a zero byte: (bytes,) uint8."""
    with ThreadPoolExecutor(16) as pool:  # many small files: the disk is waited for in parallel
        contents = pool.map(lambda path: (root / path).read_bytes() + SEPARATOR, files)
        return torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor, context: int) -> Tensor:
    """Cut one row of `context + 1` bytes at each start: (starts, context + 1) int64."""
    return text[starts[:, None] + torch.arange(context + 1)].long()


def unigram_cross_entropy(training: Tensor, validation: Tensor) -> float:
    """Loss, in nats per byte, of predicting held-out bytes from byte frequencies alone.

    The frequencies are those of the training text with one added to each count, so that a byte
    never seen in training costs much but not infinitely much. A model below it uses context.
    """
    counts = torch.bincount(training, minlength=256).double() + 1
    held_out = torch.bincount(validation, minlength=256).double()
    return -(held_out / held_out.sum() * (counts / counts.sum()).log()).sum().item()


class RandomWindows(IndexedBatches):
    """Endless random windows, cut into passes; batch `i` depends on (seed, `i`) alone.

    Args:
        text: (bytes,) uint8.
        context: Window length, without the one further byte for the last target.
        batch_size: Windows per batch and rank.
        seed: Another seed, other windows.
        rank: Which part of the global batch is ours.
        world_size: Number of parts.
    """

    def __init__(
        self, text: Tensor, context: int, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.text, self.context, self.batch_size, self.seed = text, context, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Number of batches in a pass, which draws about as many bytes as the text has."""
        global_batch_bytes = self.batch_size * self.world_size * self.context
        return math.ceil(len(self.text) / global_batch_bytes)

    def batch(self, index: int) -> Tensor:
        """Return this rank's part of global batch `index`: (batch_size, context + 1) int64."""
        generator = generator_of(self.seed, index)
        total = self.batch_size * self.world_size
        starts = torch.randint(len(self.text) - self.context, (total,), generator=generator)
        return windows(self.text, starts[self.rank :: self.world_size], self.context)


class FixedWindows:
    """Evenly spaced windows, the same at every call and for every run.

    Each rank takes every `world_size`-th window; a remainder that does not fill all ranks is left
    out, so that all ranks run the same number of batches.

    Args:
        text: (length,) bytes or tokens, of any integer dtype.
        context: Window length, without the one further entry for the last target.
        batch_size: Windows per batch and rank.
        count: Windows of all ranks together; no more than fit without overlap are taken.
        rank: Which part of them is ours.
        world_size: Number of parts.

    Raises:
        ValueError: If there is not a window for each rank.
    """

    def __init__(
        self, text: Tensor, context: int, batch_size: int, count: int, rank: int, world_size: int
    ) -> None:
        count = min(count, (len(text) - 1) // context)  # no more than fit without overlap
        if count < world_size:
            raise ValueError(
                f"`validation_windows` must give each of {world_size} ranks at least one window, "
                f"got {count}; raise it or hold out more text"
            )
        spacing = (len(text) - context - 1) / max(count - 1, 1)
        starts = torch.tensor([int(i * spacing) for i in range(count - count % world_size)])
        self.text, self.context = text, context
        self.chunks = torch.split(starts[rank::world_size], batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.chunks)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each batch: (batch_size or fewer, context + 1) int64."""
        return (windows(self.text, starts, self.context) for starts in self.chunks)


class StdlibText(L.LightningDataModule):
    """Bytes of Python's standard library: random training windows, fixed held-out windows.

    A batch is a tensor of shape (batch_size, context + 1), int64 in [0, 256): inputs and, one byte
    later, targets. The text depends on the Python version, so compare runs made with the same one.

    Args:
        context: Bytes a window. `null` takes the model's `context`.
        batch_size: Windows per batch on each device.
        validation_windows: Held-out windows, evenly spaced over the held-out text.
        validation_fraction: About which part of the files is held out; at least one file is.
        root: Another folder of text files to read instead of the standard library.
        pattern: Which file names to read, in the folder and all below it.
        seed: Choice of the training windows; the split and the held-out windows have no seed.
    """

    def __init__(
        self,
        context: int | None = None,
        batch_size: int = 16,
        validation_windows: int = 256,
        validation_fraction: float = 0.05,
        root: str | None = None,
        pattern: str = "*.py",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must be in [0, 1), got {validation_fraction}; 0.05 is usual"
            )
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.validation_windows, self.validation_fraction = validation_windows, validation_fraction
        self.root = Path(root or sysconfig.get_paths()["stdlib"])
        self.pattern = pattern
        self.validation_files: list[str] = []

    def setup(self, stage: str) -> None:
        if self.validation_files:
            return  # read once, whichever stages follow
        files = find_files(self.root, self.pattern)
        if len(files) < 2:
            raise FileNotFoundError(
                f"`root` must hold at least two files that match {self.pattern!r}, found "
                f"{len(files)} in {self.root}; give another folder with `--data.root`"
            )
        self.training_files, self.validation_files = split_files(files, self.validation_fraction)
        self.training_text = read_text(self.root, self.training_files)
        self.validation_text = read_text(self.root, self.validation_files)
        self.unigram_nats = unigram_cross_entropy(self.training_text, self.validation_text)
        self.unigram_bits = self.unigram_nats / math.log(2)

    def window_length(self) -> int:
        """Return `context`, or the model's; a ValueError if either text is too short for it."""
        context = self.context
        if context is None:
            if self.trainer is None:
                raise ValueError("`context` must be given without a Trainer, whose model has one")
            model: Any = self.trainer.lightning_module
            context = int(model.context)
        shortest = min(len(self.training_text), len(self.validation_text))
        if not 0 < context < shortest:
            raise ValueError(
                f"`context` must be positive and below the length of each text, got {context}; the "
                f"shorter text in {self.root} has {shortest} bytes"
            )
        return context

    def train_dataloader(self) -> RandomWindows:
        context, share = self.window_length(), rank_and_world_size(self.trainer)
        return RandomWindows(self.training_text, context, self.batch_size, self.seed, *share)

    def val_dataloader(self) -> FixedWindows:
        context, share = self.window_length(), rank_and_world_size(self.trainer)
        text, count = self.validation_text, self.validation_windows
        return FixedWindows(text, context, self.batch_size, count, *share)

    def summary_lines(self) -> list[str]:
        """Say what a model that knows only byte frequencies would reach; `RunSummary` asks."""
        return [
            f"unigram baseline: {self.unigram_nats:.4f} nats = {self.unigram_bits:.4f} bits per "
            "byte, from byte frequencies alone",
            f"text: {len(self.training_text):,} training bytes, {len(self.validation_text):,} "
            f"held-out bytes in {len(self.validation_files)} files",
        ]
