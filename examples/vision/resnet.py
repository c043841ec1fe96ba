"""A small residual network: convolutions for ROOT, instead of the matrices of attention.

Images go in as bytes, the logits of the classes come out. The stages halve the side of the image
and double the channels; a block adds what two convolutions make of its input:

    stem -> [ conv -> norm -> relu -> conv -> norm -> + -> relu ] x blocks x stages
        -> mean over the pixels -> head

With three stages of one, two or three blocks it is the ResNet-8, -14 or -20 of CIFAR-10, but for
its norms, which take no mean over the batch. To look at its options:

    python -m lightning_root fit --model.help examples.vision.resnet.ResNet
"""

import torch
from torch import Tensor, nn

from examples.vision.classifier import Classifier

GROUP = 8
"""Channels that are normalized together."""


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which is one of a single pixel where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width // GROUP, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width // GROUP, width)
        alike = stride == 1 and channels == width
        self.shortcut = (
            nn.Identity() if alike else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:  # (batch, channels, size, size)
        """Return (batch, width, size / stride, size / stride)."""
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(hidden)))


class ResNet(Classifier):
    """A residual network for small images; by default ResNet-20, of 0.27 M parameters.

    Weights start as torch's layers do, but for the head, which starts at zero: the first
    prediction is uniform over the classes.

    Args:
        blocks: Residual blocks in each of the stages.
        width: Channels of the first stage; a multiple of 8.
        stages: Each after the first halves the image and doubles the channels.
        channels: Colours of the images.
        classes: Number of classes.

    Raises:
        ValueError: If `width` does not split into groups of 8 channels.
    """

    def __init__(
        self,
        blocks: int = 3,
        width: int = 16,
        stages: int = 3,
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if width % GROUP:
            raise ValueError(f"`width` must be a multiple of {GROUP}, got {width}; 16 is usual")
        self.save_hyperparameters()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(width // GROUP, width),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList()
        inside = width
        for stage in range(stages):
            for place in range(blocks):
                stride = 2 if stage > 0 and place == 0 else 1
                self.blocks.append(ResidualBlock(inside, width << stage, stride))
                inside = width << stage
        self.head = nn.Linear(inside, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def configure_model(self) -> None:
        """Shard stem, blocks and head where the strategy is FSDP2."""
        self.shard(self.stem, *self.blocks, self.head)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channels, size, size) uint8
        """Return logits: (batch, classes)."""
        x = self.stem(images.to(self.head.weight.dtype) / 127.5 - 1)  # in [-1, 1]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
