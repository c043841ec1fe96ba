"""What the guides train: a small network on scikit-learn's handwritten digits, seconds on a CPU."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vision.digits import Digits


class Classifier(L.LightningModule):
    """Three layers, without an optimizer; each guide brings its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 96), nn.Tanh())
        self.head = nn.Linear(96, 10)

    def forward(self, pixels: Tensor) -> Tensor:  # (images, 1, 8, 8) uint8
        """Return the logits, (images, 10)."""
        logits: Tensor = self.head(self.layers(pixels.flatten(1) / 127.5 - 1))
        return logits

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy of a batch, in nats."""
        pixels, labels = batch
        return F.cross_entropy(self(pixels), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch[1]))


def make_trainer(steps: int, **options: Any) -> L.Trainer:
    """A Trainer for some steps on the CPU that says and writes nothing by itself."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    limits: dict[str, Any] = {"max_steps": steps, "max_epochs": -1, "log_every_n_steps": 1}
    return L.Trainer(accelerator="cpu", devices=1, **limits, **{**quiet, **options})


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Training batches of 64 images, for loops without a Trainer."""
    data = digits()
    data.setup("fit")
    loader = data.train_dataloader()
    return [loader.batch(index) for index in range(steps)]


def digits() -> Digits:
    """The data: 1437 images to train on, 360 held out."""
    return Digits(batch_size=64, padding=0)


@torch.no_grad()
def held_out_loss(model: Classifier) -> float:
    """Loss on the 360 images that are not trained on, in nats."""
    held_out = digits().read(training=False, size=None)
    return float(model.loss((held_out.pixels, held_out.labels)))
