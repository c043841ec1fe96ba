"""A small vision transformer: the model of the CIFAR-10 experiment.

Images go in as bytes, the logits of the classes come out. The hidden matrices, four per block, are
what ROOT orthogonalizes:

    patches + positions -> [ norm -> attention -> + -> norm -> mlp -> + ] x depth -> norm
        -> mean over the patches -> head

The module brings no optimizer: `optimizer:` in the YAML file does. To look at its options:

    python -m lightning_root fit --model.help examples.vision.vit.ViT
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.gpt import Attention, Block
from examples.vision.classifier import Classifier


class PatchAttention(Attention):
    """The matrices of the GPT's attention, used among all patches: not causal, not rotary."""

    def forward(self, x: Tensor) -> Tensor:  # (batch, patches, width)
        """Mix information from all patches into each."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (batch, patches, 3, heads, width')
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, patches, width')
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Patches(nn.Module):
    """Cuts images into square patches, each a vector that knows where it is."""

    def __init__(self, channels: int, image_size: int, patch: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:  # (batch, channels, size, size) uint8
        """Return one row for each patch: (batch, patches, width)."""
        pixels = images.to(self.positions.dtype) / 127.5 - 1  # in [-1, 1]
        embedded: Tensor = self.embedding(pixels).flatten(2).mT
        return embedded + self.positions


class ViT(Classifier):
    """A vision transformer (pre-norm, learned positions, mean pooling) of 6.3 M parameters.

    Weights start as torch's layers do, but for the head, which starts at zero: the first
    prediction is uniform over the classes.

    Args:
        depth: Number of blocks.
        width: Size of the residual stream; `heads` must divide it.
        heads: Attention heads per block.
        patch: Side of the square patches, in pixels; must divide `image_size`.
        image_size: Side of the square images, in pixels.
        channels: Colours of the images.
        classes: Number of classes.

    Raises:
        ValueError: If `width` does not split into `heads`, or `image_size` not into patches.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 256,
        heads: int = 8,
        patch: int = 4,
        image_size: int = 32,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"`width` must be a multiple of `heads`, got width={width} and heads={heads}; "
                f"try width={32 * heads}"
            )
        if image_size % patch:
            raise ValueError(
                f"`patch` must divide `image_size`, got {patch} and {image_size}; 4 cuts CIFAR-10 "
                "into 64 patches"
            )
        self.save_hyperparameters()
        self.patches = Patches(channels, image_size, patch, width)
        self.blocks = nn.ModuleList(Block(width, heads, PatchAttention) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def configure_model(self) -> None:
        """Shard patches, blocks, norm and head where the strategy is FSDP2."""
        self.shard(self.patches, *self.blocks, self.norm, self.head)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channels, size, size) uint8
        """Return logits: (batch, classes)."""
        x = self.patches(images)  # (batch, patches, width)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
