"""What models of images share: the loss and the accuracy of a LightningModule that gives logits."""

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard


class Classifier(L.LightningModule):
    """Trains on (pixels, labels), and validates loss and accuracy; a subclass is the model."""

    def shard(self, *parts: nn.Module) -> None:
        """Shard the parts of the model, one by one, where the strategy is FSDP2."""
        if self.device_mesh is None:
            return
        for part in parts:
            if not isinstance(part, FSDPModule):  # Lightning may call its hook again
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images).float(), labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images).float()
        values = {
            "val/loss": F.cross_entropy(logits, labels),
            "val/accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(labels))
