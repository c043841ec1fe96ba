"""The command line on NPUs: every shipped file for Ascend, and the quick start from end to end."""

import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.examples.test_language_configs import SMALL as SMALL_LANGUAGE
from tests.npu.emulation.machine import PROJECT
from tests.sources import write_sources
from tests.test_configs import SMALL, command

CONFIGS = sorted(path.name for path in (PROJECT / "configs").glob("ascend*.yaml"))
TWO = {
    "ascend.yaml": [],
    "ascend_ddp.yaml": ["--trainer.devices=2"],
    "ascend_fsdp2.yaml": ["--trainer.devices=2"],
}


@pytest.fixture
def corpus(tmp_path):
    """Some text, and a place for what a run leaves behind."""
    folder = write_sources(tmp_path / "text")
    return [f"--data.root={folder}", f"--trainer.default_root_dir={tmp_path}"]


def test_there_is_a_file_for_each_strategy():
    assert set(CONFIGS) == set(TWO)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_file_for_ascend_trains_on_two_npus_at_most(machine, corpus, config):
    given = [*command(f"configs/{config}"), *corpus, *SMALL, *TWO[config]]
    printed = machine.run("-m", "lightning_root", "fit", *given, "--trainer.fast_dev_run=2")
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in printed
    assert re.search(r"optimizer steps +2\n", printed)
    loss = re.search(r"val/loss +([0-9.]+) ", printed)
    assert loss is not None
    assert 4.0 < float(loss[1]) < 5.6  # a uniform guess is 5.545


def test_the_papers_run_trains_on_two_npus(machine, tmp_path):
    """Its own files, but for the model's size and the text."""
    for number in range(40):
        text = f"document {number}: water flows down the hill\n" * 4
        (tmp_path / f"{number}.txt").write_text(text)
    printed = machine.run(
        *("-m", "lightning_root", "fit", *command("configs/llm/ascend_1b.yaml"), *SMALL_LANGUAGE),
        *("--data.dataset=text", "--data.name=null", f"--data.data_files={tmp_path}/*.txt"),
        *("--data.tokenizer=bytes", "--model.vocabulary=256", "--trainer.devices=2"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    assert re.search(r"optimizer steps +2\n", printed)
    loss = re.search(r"val/loss +([0-9.]+) ", printed)
    assert loss is not None
    assert float(loss[1]) < 7


def test_the_quick_start_runs_with_monitor_refit_and_resume(machine, corpus, tmp_path):
    run = [
        *("fit", "--config", "configs/quickstart.yaml", "--config", "configs/ascend.yaml"),
        *("--config", "configs/refit.yaml", *corpus, *SMALL),
        *("--trainer.logger.init_args.save_dir", str(tmp_path), "--trainer.log_every_n_steps=1"),
        *("--trainer.val_check_interval=2", "--trainer.callbacks.init_args.every_n_steps=2"),
    ]
    first, second = (tmp_path / "quickstart" / f"version_{number}" for number in (0, 1))
    last = first / "checkpoints" / "last.ckpt"
    machine.call(
        "command_lines",
        [*run, "--trainer.max_steps=4"],
        [*run, "--trainer.max_steps=6", f"--ckpt_path={last}"],
    )
    assert global_step(last) == 4
    assert global_step(second / "checkpoints" / "last.ckpt") == 6
    assert (second / "coefficients.json").is_file()
    curves = EventAccumulator(str(second)).Reload()
    for name in ("root/orth_error/mean", "root/outlier_fraction/mean", "val/loss"):
        assert curves.Scalars(name)[-1].step in (5, 6)


def global_step(checkpoint):
    """Where a run was; its tensors may lie on an NPU, which this process does not have."""
    return torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
