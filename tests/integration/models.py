"""Small LightningModules and their data, for one process and for many."""

import lightning.pytorch as L
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.helpers import names_by_role as split

__all__ = ["split"]

EXPECTED_SPLIT = {
    "root": ["body.0.weight", "body.1.weight"],
    "adamw": [
        "embedding.weight",
        "body.0.bias",
        "body.1.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ],
}


class Batches:
    """Batch `i` depends on `i` alone; the position is in checkpoints, so that resuming goes on."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return 100

    def __iter__(self):
        for _ in range(len(self)):
            self.next += 1
            generator = torch.Generator().manual_seed(self.next)
            tokens = torch.randint(16, (8, 4), generator=generator)
            yield tokens, tokens.amax(-1) // 4

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class PlainNet(L.LightningModule):
    """A LightningModule as people have it: no optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.build()

    def build(self):
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(16, 10)
        self.body = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 10))
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 5)
        torch.random.set_rng_state(generator_state)

    def training_step(self, batch, _):
        tokens, target = batch
        hidden = self.embedding(tokens).mean(1)
        for layer in self.body:
            hidden = torch.tanh(layer(hidden))
        loss = nn.functional.cross_entropy(self.head(self.norm(hidden)), target)
        self.log("loss", loss)
        return loss

    def train_dataloader(self):
        return Batches()


class AdamWNet(PlainNet):
    """With the optimizer that it was trained with so far."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=4e-3)


class LazyNet(PlainNet):
    """Builds its layers in `configure_model`, when strategies want them."""

    def build(self):
        pass

    def configure_model(self):
        if not hasattr(self, "head"):
            PlainNet.build(self)


class ShardedNet(LazyNet):
    """FSDP2: after `fully_shard` every Parameter is another object, a DTensor."""

    def configure_model(self):
        if not hasattr(self, "head"):
            PlainNet.build(self)
            for layer in (self.embedding, *self.body, self.norm, self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def trainer(max_steps=8, **options):
    """A quiet Trainer on the CPU."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_steps": max_steps,
        "max_epochs": -1,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**defaults, **options})


def weights(module):
    """Whole parameters by name, on the host."""
    from lightning_root.distributed import gather

    return {name: gather(p.detach()).clone() for name, p in module.named_parameters()}
