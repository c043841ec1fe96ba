"""Images as tensors: subsets, wrong labels, crops and flips, batches; what data sets share."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from examples.batches import IndexedBatches, generator_of, rank_and_world_size


class Images(NamedTuple):
    """A set of images and what is on them."""

    pixels: Tensor  # (images, channels, size, size) uint8
    labels: Tensor  # (images,) int64


def balanced_rows(labels: Tensor, size: int, *key: object) -> Tensor:
    """Choose `size` images at random, of each class as many, or one more or less: their rows.

    Args:
        labels: (images,) int64.
        size: How many; at most what the rarest class allows.
        key: Another key, other images; see `generator_of`.

    Raises:
        ValueError: If there are too few images of a class.
    """
    mixed = torch.randperm(len(labels), generator=generator_of(*key))
    classes, count = labels.unique(return_counts=True)
    if not 0 < size <= count.min() * len(classes):
        raise ValueError(
            f"a balanced subset must have 1 to {count.min() * len(classes)} images, got {size}; "
            f"the rarest of {len(classes)} classes has {count.min()}"
        )
    ranks = torch.empty_like(labels)  # each image is the how-manieth of its class
    for label in classes:
        rows = mixed[labels[mixed] == label]
        ranks[rows] = torch.arange(len(rows))
    return mixed[ranks[mixed].argsort(stable=True)[:size]].sort().values


def with_wrong_labels(labels: Tensor, share: float, classes: int, *key: object) -> Tensor:
    """Replace a share of the labels by another class each, all others equally likely.

    Args:
        labels: (images,) int64 in [0, classes).
        share: In [0, 1]; `round(share * images)` labels are replaced.
        classes: Number of classes.
        key: Another key, other images and classes; see `generator_of`.
    """
    generator = generator_of(*key)
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator)
    return labels.index_copy(0, wrong, (labels[wrong] + shift) % classes)


class RandomBatches(IndexedBatches):
    """Every image once a pass, in a new order; batch `i` depends on (seed, `i`) alone.

    A pass leaves out the images that do not fill a global batch. Each image is padded with black,
    cropped to its size at a random place, and flipped left to right every other time.

    Args:
        images: All training images.
        batch_size: Images per batch and rank.
        padding: Pixels added on each side before the crop; 0 for none.
        flip: Whether to flip.
        seed: Another seed, other orders, crops and flips.
        rank: Which part of the global batch is ours.
        world_size: Number of parts.

    Raises:
        ValueError: If there are fewer images than a global batch has.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        padding: int,
        flip: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.images, self.padding, self.flip, self.seed = images, padding, flip, seed
        self.rank, self.world_size = rank, world_size
        self.global_batch = batch_size * world_size
        if not 0 < self.global_batch <= len(images.labels):
            raise ValueError(
                f"`batch_size` times {world_size} ranks must be in 1 to {len(images.labels)}, the "
                f"number of training images, got {self.global_batch}"
            )
        self.order = (-1, torch.empty(0))  # a pass, and the rows in its order

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return len(self.images.labels) // self.global_batch

    def rows(self, index: int) -> Tensor:
        """Return which images global batch `index` has, in order."""
        number, position = divmod(index, len(self))
        known, order = self.order
        if known != number:
            generator = generator_of(self.seed, "order", number)
            order = torch.randperm(len(self.images.labels), generator=generator)
            self.order = number, order
        return order[position * self.global_batch :][: self.global_batch]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Return this rank's pixels (batch, channels, size, size) uint8 and labels (batch,)."""
        generator = generator_of(self.seed, "crop", index)
        shape = (self.global_batch, 2)
        places = torch.randint(2 * self.padding + 1, shape, generator=generator)
        flipped = torch.randint(2, shape[:1], generator=generator)
        ours = slice(self.rank, None, self.world_size)
        rows = self.rows(index)[ours]
        pixels = crop(self.images.pixels.index_select(0, rows), places[ours], self.padding)
        if self.flip:
            both = torch.cat((pixels, pixels.flip(-1)))
            pixels = both.index_select(0, torch.arange(len(rows)) + len(rows) * flipped[ours])
        return pixels, self.images.labels[rows]


def crop(pixels: Tensor, places: Tensor, padding: int) -> Tensor:
    """Pad with zeros, which is black, and cut each image to its size at a place of its own.

    Args:
        pixels: (images, channels, height, width), on the CPU.
        places: (images, 2) int64 in [0, 2 padding]: the top left corner.
        padding: Pixels added on each side.
    """
    if padding == 0:
        return pixels
    padded = F.pad(pixels, (padding,) * 4).numpy()
    windows = sliding_window_view(padded, pixels.shape[-2:], axis=(-2, -1))  # every possible crop
    top, left = places.numpy().T
    # numpy copies the chosen windows row by row, torch number by number, in five times the time.
    return torch.from_numpy(windows[np.arange(len(pixels)), :, top, left])


class FixedBatches:
    """All images in their order, the same at every call and for every run.

    Each rank takes every `world_size`-th image; a remainder that does not fill all ranks is left
    out, so that all ranks run the same number of batches.
    """

    def __init__(self, images: Images, batch_size: int, rank: int, world_size: int) -> None:
        rows = torch.arange(len(images.labels) // world_size * world_size)[rank::world_size]
        self.images, self.chunks = images, torch.split(rows, batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels (batch, channels, size, size) uint8 and labels (batch,)."""
        return ((self.images.pixels[rows], self.images.labels[rows]) for rows in self.chunks)


class ImageData(L.LightningDataModule):
    """Images held in memory; a subclass reads them. Batches are (pixels uint8, labels int64).

    Args:
        batch_size: Images per batch on each device.
        train_size: Take a random subset of the training images, as many of each class; `null`
            takes all.
        validation_size: The same of the validation images; which they are depends on no seed.
        label_noise: Share of the training labels that are replaced by another class, all others
            equally likely; the same ones for the whole run.
        padding: Training images are padded by so many black pixels on each side and cropped to
            their size at a random place; 0 for none.
        flip: Whether training images are flipped left to right every other time.
        seed: Choice of the subset, of the wrong labels, of order, crops and flips.

    Raises:
        ValueError: If `label_noise` is not in [0, 1] or `padding` is negative.
    """

    def __init__(
        self,
        batch_size: int = 128,
        train_size: int | None = None,
        validation_size: int | None = None,
        label_noise: float = 0.0,
        padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_noise <= 1:
            raise ValueError(
                f"`label_noise` must be in [0, 1], got {label_noise}; 0.2 makes one label in five "
                "wrong"
            )
        if padding < 0:
            raise ValueError(f"`padding` must be >= 0, got {padding}; 4 is usual for CIFAR-10")
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip
        self.train_size, self.validation_size = train_size, validation_size
        self.label_noise, self.wrong = label_noise, 0
        self.training: Images | None = None
        self.validation: Images | None = None

    @abstractmethod
    def read(self, training: bool, size: int | None, *key: object) -> Images:
        """Read the training or the validation images: `balanced_rows(labels, size, *key)`, or all.

        Args:
            training: Which of the two sets.
            size: How many images, `None` for all.
            key: What the choice depends on.
        """

    def setup(self, stage: str) -> None:
        if self.training is not None:
            return  # read once, whichever stages follow
        pixels, labels = self.read(True, self.train_size, self.seed, "subset")
        self.validation = self.read(False, self.validation_size, "validation")
        classes = len(self.validation.labels.unique())
        noisy = with_wrong_labels(labels, self.label_noise, classes, self.seed, "labels")
        self.wrong = int((noisy != labels).sum())
        self.training = Images(pixels, noisy)

    def train_dataloader(self) -> RandomBatches:
        assert self.training is not None
        share = rank_and_world_size(self.trainer)
        options = (self.batch_size, self.padding, self.flip, self.seed)
        return RandomBatches(self.training, *options, *share)

    def val_dataloader(self) -> FixedBatches:
        assert self.validation is not None
        share = rank_and_world_size(self.trainer)
        return FixedBatches(self.validation, max(self.batch_size, 256), *share)

    def summary_lines(self) -> list[str]:
        """Say what was trained on; `RunSummary` asks."""
        assert self.training is not None and self.validation is not None
        return [
            f"images: {len(self.training.labels):,} for training, {self.wrong:,} of them with a "
            f"wrong label, {len(self.validation.labels):,} for validation"
        ]
