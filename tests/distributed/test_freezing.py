"""FSDP2: what is frozen when a run is saved or resumed trains on exactly once it is thawed."""

import warnings

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_root import ROOTMixin
from tests.integration.models import ShardedNet, trainer, weights

THAWED = 4


class Net(ROOTMixin, ShardedNet):
    root_options = {"lr": 1e-2, "schedule": None}

    def configure_model(self):
        super().configure_model()
        self.body.requires_grad_(self.thawed)

    def __init__(self, thawed=False):
        self.thawed = thawed
        super().__init__()

    def on_train_batch_start(self, *_):
        if self.global_step >= THAWED:
            self.body.requires_grad_(True)


class Saves(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(f"{self.folder}/{trainer.global_step}.ckpt")


def run(rank, ranks, folder, distributed, step=None):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    strategy = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=distributed)
    callbacks = [Saves(folder)] if step is None else []
    fit = trainer(max_steps=8, strategy=strategy, devices=ranks, callbacks=callbacks)
    model = Net(thawed=step is not None and step > THAWED)
    fit.fit(model, ckpt_path=None if step is None else f"{folder}/{step}.ckpt")
    held = [name for group in fit.optimizers[0].param_groups for name in group["param_names"]]
    return weights(model), held


@pytest.mark.parametrize("distributed", [False, True], ids=["file", "folder"])
def test_a_run_that_thaws_is_resumed_before_and_after(distributed, gloo_pool, tmp_path):
    (whole, held), *_ = gloo_pool.run(run, str(tmp_path), distributed)
    assert "body.0.weight" in held
    for step in (2, 6):
        for found, names in gloo_pool.run(run, str(tmp_path), distributed, step):
            assert names == held
            assert all(torch.equal(found[name], whole[name]) for name in whole), step
