"""Train with the installed wheel and nothing else: `make wheel-check` runs this, pytest does not.

It must run outside the source tree, in an environment that holds the wheel and what it declares.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_root
from lightning_root import ROOT, ROOTMixin


class Net(ROOTMixin, LightningModule):
    """A small regression; ROOT takes the first two matrices, AdamW the head and the biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)


def main() -> None:
    assert Path(lightning_root.__file__).is_relative_to(sys.prefix), lightning_root.__file__
    seed_everything(0)
    inputs = torch.randn(256, 16)
    targets = torch.tanh(inputs @ torch.randn(16, 4))
    net = Net()

    def loss() -> float:
        with torch.no_grad():
            return net.training_step([inputs, targets], 0).item()

    before = loss()
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    trainer = Trainer(accelerator="cpu", max_steps=400, **quiet)
    trainer.fit(net, DataLoader(TensorDataset(inputs, targets), batch_size=64))
    after = loss()
    assert isinstance(trainer.optimizers[0], ROOT), trainer.optimizers
    assert after < 0.5 * before, f"the loss went from {before:.4f} to {after:.4f}"
    print(f"lightning-root {version('lightning-root')}: loss {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    main()
