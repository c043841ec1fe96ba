"""One of two DDP processes is killed while checkpoints are written: the last one is whole."""

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from lightning_root import AtomicCheckpointIO, ROOTMixin
from tests.distributed.pool import GlooPool
from tests.integration.models import PlainNet, trainer, weights

KILLED_AT = 4


class Net(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 8}


def every_step(folder):
    return ModelCheckpoint(
        folder, every_n_train_steps=1, save_last=True, save_top_k=1, filename="{step}"
    )


def kill_in_the_middle_of(function, call):
    """Write half of what the call would write, then end the process."""
    calls = 0

    def interrupted(content, target, *rest, **options):
        nonlocal calls
        calls += 1
        function(content, target, *rest, **options)
        if calls == call:
            os.truncate(target, os.path.getsize(target) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return interrupted


def train_until_killed(rank, ranks, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if rank == 0:  # two files a step: of the step and `last.ckpt`, which is there already
        torch.save = kill_in_the_middle_of(torch.save, 2 * KILLED_AT + 2)
    fit = trainer(
        strategy=DDPStrategy(process_group_backend="gloo"),
        devices=ranks,
        callbacks=[every_step(folder)],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )
    fit.fit(Net())


@pytest.fixture
def pool():
    """Processes of this test's own, for it ends them."""
    pool = GlooPool(grace=1.0)
    yield pool
    pool.close()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_the_last_checkpoint_goes_on_exactly(pool, tmp_path):
    """Rank 0 is killed when half of the next `last.ckpt` is written."""
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code -9"):
        pool.run(train_until_killed, str(tmp_path))
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == KILLED_AT
    whole, resumed = Net(), Net()
    trainer().fit(whole)
    trainer().fit(resumed, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=1e-5, atol=1e-6)


def test_a_failed_write_leaves_the_file_before_and_nothing_else(tmp_path, monkeypatch):
    plugin, path = AtomicCheckpointIO(), tmp_path / "folder" / "last.ckpt"
    plugin.save_checkpoint({"step": 1}, path)

    def interrupted(content, target):
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(OSError, match="no space left"):
        plugin.save_checkpoint({"step": 2}, path)
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 1}
    assert os.listdir(path.parent) == ["last.ckpt"]
