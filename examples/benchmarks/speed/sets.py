"""Sets of hidden matrices, as models have them, and random gradients for them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from examples.benchmarks.speed.operations import matrix_size

ParameterShape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    """The hidden matrices of a model; embeddings, heads, norms and biases are left out.

    Args:
        about: Which model, and which of its parameters.
        shapes: Of the parameters, (out, in) or (out, in, k, k).
    """

    about: str
    shapes: tuple[ParameterShape, ...]

    @property
    def elements(self) -> int:
        """Number of all entries."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def largest_stack(self) -> int:
        """Bytes, in float32, of all matrices of the size that has the most entries together."""
        counts = Counter(matrix_size(shape) for shape in self.shapes)
        return max(4 * count * m * n for (m, n), count in counts.items())


def transformer(width: int, layers: int, expansion: int) -> tuple[ParameterShape, ...]:
    """Per layer q, k and v as one matrix, the attention's output, and the two of the MLP."""
    inner = expansion * width
    layer = ((3 * width, width), (width, width), (inner, width), (width, inner))
    return layer * layers


def llama(width: int, inner: int, layers: int) -> tuple[ParameterShape, ...]:
    """Per layer q, k, v and the attention's output, then gate, up and down of the MLP."""
    layer = (*((width, width),) * 4, (inner, width), (inner, width), (width, inner))
    return layer * layers


def resnet_18() -> tuple[ParameterShape, ...]:
    """Its 20 convolutions, the first one for images of 3 channels."""
    shapes: list[ParameterShape] = [(64, 3, 7, 7)]
    before = 64
    for channels in (64, 128, 256, 512):
        shapes += [(channels, before, 3, 3), *((channels, channels, 3, 3),) * 3]
        if channels != before:
            shapes.append((channels, before, 1, 1))
        before = channels
    return tuple(shapes)


SETS = {
    "gpt2": ParameterSet(
        "4 layers of GPT-2 small: qkv 2304x768, attention output 768x768, MLP 3072x768 and "
        "768x3072",
        transformer(768, layers=4, expansion=4),
    ),
    "vit": ParameterSet(
        "a ViT of 5.9 M parameters, 5 layers of width 384: qkv 1152x384, attention output "
        "384x384, MLP 768x384 and 384x768",
        transformer(384, layers=5, expansion=2),
    ),
    "small": ParameterSet("200 matrices of 64x256", ((64, 256),) * 200),
    "conv": ParameterSet("the 20 convolutions of ResNet-18, 7x7, 3x3 and 1x1", resnet_18()),
    "gpt2-124m": ParameterSet(
        "all 12 layers of GPT-2 small, cut like `gpt2`", transformer(768, layers=12, expansion=4)
    ),
    "llama": ParameterSet(
        "2 layers of a Llama of 7 B: four of 4096x4096, three of 11008x4096",
        llama(4096, 11008, layers=2),
    ),
    "tiny": ParameterSet(
        "one layer of width 32 and two convolutions, to try the benchmark",
        (*transformer(32, layers=1, expansion=4), (8, 4, 3, 3), (16, 8, 1, 1)),
    ),
}


def make_parameters(
    shapes: Sequence[ParameterShape], dtype: torch.dtype, device: torch.device
) -> list[nn.Parameter]:
    """Gaussian parameters of standard deviation 0.02, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    values = (0.02 * torch.randn(shape, generator=generator) for shape in shapes)
    return [nn.Parameter(value.to(device, dtype)) for value in values]


def make_gradients(
    shapes: Sequence[ParameterShape], seed: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Gaussian gradients with loud and quiet columns."""
    generator = torch.Generator().manual_seed(1000 + seed)
    gradients = (loud_columns(s[0], math.prod(s[1:]), generator).view(s) for s in shapes)
    return [gradient.to(device, dtype) for gradient in gradients]


def loud_columns(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A Gaussian matrix times a log-normal scale for each column."""
    scales = torch.randn(columns, generator=generator).exp_()
    return torch.randn(rows, columns, generator=generator).mul_(scales)
