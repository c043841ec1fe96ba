"""A vision transformer and two sets of images for it, cut into patches."""

from pathlib import Path

import torch
from torch import Tensor, nn

from examples.vision import digits as vision
from examples.vision.cifar10 import decode


class ViT(nn.Module):
    """A vision transformer on patches that are cut before (pre-norm, learned positions).

    Args:
        patches: Patches per image.
        inputs: Numbers per patch.
        width: Size of the residual stream, a multiple of 32.
        depth: Number of blocks.
    """

    def __init__(self, patches: int, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(inputs, width)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 32, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, patches: Tensor) -> Tensor:  # (batch, patches, inputs)
        """Return logits: (batch, 10)."""
        x = self.patch_embedding(patches) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def cut_patches(images: Tensor, size: int) -> Tensor:  # (images, channels, height, width)
    """Cut squares of `size` pixels: (images, patches, channels * size * size)."""
    squares = images.unfold(2, size, size).unfold(3, size, size)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 digits as 16 patches of 2 x 2 pixels, and their labels.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    images, labels = vision.digits()
    return cut_patches(images.float() / 8 - 1, 2), labels


def cifar10(folder: Path, images: int = 25_600) -> tuple[Tensor, Tensor]:
    """The first training images of CIFAR-10 as 64 patches of 4 x 4 pixels, and their labels.

    Args:
        folder: Holds the data set's training part as a parquet file (`img` and `label`).
        images: How many to read.

    Raises:
        ModuleNotFoundError: If pyarrow or Pillow is not installed.
        FileNotFoundError: If the folder has no such file.
    """
    try:
        from pyarrow import parquet  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '`--cifar10` needs pyarrow; `pip install "lightning-root[examples]"`'
        ) from error
    files = sorted(folder.glob("**/*train*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"`--cifar10` must be a folder with CIFAR-10's *train*.parquet, found none in {folder}"
        )
    table = parquet.read_table(files[0]).slice(0, images)
    pixels = decode(table["img"].to_pylist()) / 127.5 - 1
    return cut_patches(pixels, 4), torch.tensor(table["label"].to_pylist())
