"""What the zoo knows of one architecture: how to build it, how to train it, what is no matrix."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from lightning_root.partition import Partition, partition_parameters

VOCABULARY = 48
WIDTH = 16

# True of every attention: a shift of all keys shifts all scores of a query alike.
KEY_BIASES = dict.fromkeys(
    ("*k_proj.bias", "*key.bias", "*key_proj.bias", "*k_lin.bias"), "softmax does not see a shift"
)


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One architecture in a tiny size.

    Args:
        build: Makes the model, with random weights.
        loss: One forward pass on tiny inputs; what comes back can be differentiated.
        aside: Globs on names of parameters with two and more dimensions that are no hidden
            matrices, each with what the parameter is. Written from knowledge of the architecture.
        idle: Globs on names of trainable parameters that this forward pass does not reach, each
            with the reason.
        blind: Globs on names of parameters that the loss does not depend on, each with the reason:
            their gradient is what rounding leaves, which may be nothing.
        preset: Name of the preset that the family needs, None for nearly all.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    aside: Mapping[str, str]
    idle: Mapping[str, str] = field(default_factory=dict)
    blind: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None

    def partition(self, model: nn.Module) -> Partition:
        """Partition a model as its users would."""
        return partition_parameters(model, rules=self.preset)

    def made(self) -> nn.Module:
        """Build the model, always with the same weights.

        Noise on every parameter: what starts from zero (LoRA's second factor, the gates of a
        diffusion transformer) would keep gradients from what comes before it.
        """
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        return model


def covered(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of the globs covers a whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def from_transformers(model: str, config: str, **sizes: object) -> Callable[[], nn.Module]:
    """Return what builds a model of `transformers`; the import waits until the model is wanted."""

    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="the zoo needs transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return build


def tokens(length: int = 12, vocabulary: int = VOCABULARY) -> Tensor:
    """Two sequences of random tokens, without the special ones."""
    return torch.randint(4, vocabulary, (2, length))


def images(size: int = 16) -> Tensor:
    """Two random images with three channels."""
    return torch.randn(2, 3, size, size)


def language_loss(model: nn.Module) -> Tensor:
    """The loss of a language model of `transformers`, of whichever kind."""
    batch = tokens()
    return model(input_ids=batch, labels=batch).loss


def image_loss(model: nn.Module) -> Tensor:
    """The loss of an image classifier of `transformers`."""
    return model(pixel_values=images(), labels=torch.tensor([0, 1])).loss


def logits_loss(inputs: Callable[[], Tensor]) -> Callable[[nn.Module], Tensor]:
    """Return a loss for a model that turns one tensor into another."""

    def loss(model: nn.Module) -> Tensor:
        return model(inputs()).square().mean()

    return loss
