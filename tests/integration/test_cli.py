"""The command line: our own and a plain LightningCLI, names, help, schedules."""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch.optim.lr_scheduler import ChainedScheduler

import lightning_root
from lightning_root import ROOT, ROOTCLI, ROOTMixin, WarmupDecayLR
from lightning_root.optim.schedule import warmups_in
from tests.integration.models import EXPECTED_SPLIT, LazyNet, PlainNet, split, weights

PROJECT = Path(lightning_root.__file__).parents[1]
QUIET = [
    "--trainer.max_steps=8",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
]


class MixedNet(ROOTMixin, PlainNet):
    root_options = {"lr": 0.5}


def run(cli, model, *arguments):
    """`fit` with these arguments; the finished command line object."""
    sys.argv = ["lightning_root", "fit", *QUIET, *arguments]
    return cli(model, save_config_callback=None)


def process(*arguments, cwd=PROJECT):
    """A command in a process of its own, as a person types it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("net", [PlainNet, LazyNet])
def test_rootcli_binds_by_name_and_trains_everything(net):
    before = weights(PlainNet())
    made = run(ROOTCLI, net, "--optimizer=ROOT", "--optimizer.lr=0.01")
    assert split(made.trainer.optimizers[0]) == EXPECTED_SPLIT
    after = weights(made.model)
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*will be overridden")
@pytest.mark.parametrize("name", ["ROOT", "lightning_root.ROOT"])
def test_the_mixin_survives_a_plain_lightningcli_whose_options_win(name):
    made = run(LightningCLI, MixedNet, f"--optimizer={name}", "--optimizer.outlier_quantile=0.8")
    (optimizer,) = made.trainer.optimizers
    assert split(optimizer) == EXPECTED_SPLIT
    assert optimizer.defaults["outlier_quantile"] == 0.8
    assert optimizer.defaults["lr"] == 1e-3


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*will be overridden")
def test_the_options_of_the_command_line_reach_processes_that_are_spawned():
    """They get the model pickled; a copy within the process keeps what it had."""
    sys.argv = ["lightning_root", *QUIET, "--optimizer=ROOT", "--optimizer.lr=0.25"]
    made = LightningCLI(MixedNet, save_config_callback=None, run=False)
    sent = pickle.loads(pickle.dumps(made.model))
    assert sent.configure_optimizers.__self__ is sent
    optimizer = sent.configure_optimizers()
    assert optimizer.defaults["lr"] == 0.25
    owned = {id(p) for p in sent.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == owned
    sent.train_dataloader = made.model.train_dataloader
    made.trainer.fit(sent)
    assert split(made.trainer.optimizers[0]) == EXPECTED_SPLIT
    twin = copy.deepcopy(made.model)
    assert twin.configure_optimizers.__self__ is twin
    assert twin.configure_optimizers() is made.model.configure_optimizers()


def test_without_an_optimizer_the_mixin_brings_its_own():
    made = run(ROOTCLI, MixedNet)
    assert made.trainer.optimizers[0].defaults["lr"] == 0.5


def test_the_schedule_steps_per_step_over_the_whole_run():
    made = run(ROOTCLI, PlainNet, "--optimizer=ROOT", "--lr_scheduler=WarmupDecayLR")
    (config,) = made.trainer.lr_scheduler_configs
    assert config.interval == "step"
    assert config.scheduler.max_steps == 8
    assert config.scheduler.last_epoch == 8
    assert made.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*will be overridden")
def test_the_mixin_has_the_schedule_of_a_plain_lightningcli_step_per_step():
    """LightningCLI alone would step it per epoch, that is never in this run."""
    made = run(LightningCLI, MixedNet, "--optimizer=ROOT", "--lr_scheduler=WarmupDecayLR")
    (config,) = made.trainer.lr_scheduler_configs
    assert (config.interval, config.scheduler.max_steps) == ("step", 8)
    assert config.scheduler.last_epoch == 8


@pytest.mark.parametrize(("interval", "count"), [("step", 8), ("epoch", 0), (None, 0)])
def test_torchs_schedulers_step_as_asked(interval, count):
    """`max_steps` ends within the first epoch, so an epoch's step never comes."""
    options = [] if interval is None else [f"--lr_scheduler_interval={interval}"]
    scheduler = ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=100"]
    made = run(ROOTCLI, PlainNet, "--optimizer=ROOT", *scheduler, *options)
    assert made.trainer.lr_scheduler_configs[0].scheduler.last_epoch == count


class AdamNet(PlainNet):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("net", [MixedNet, AdamNet])
def test_a_scheduler_without_an_optimizer_to_schedule_is_refused_with_the_line_to_write(net):
    line = "`--optimizer lightning_root.ROOT --lr_scheduler torch.optim.lr_scheduler.StepLR`"
    scheduler = ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    with pytest.raises(ValueError, match=f"^`lr_scheduler` needs `--optimizer`.*{line}"):
        run(ROOTCLI, net, *scheduler)


class NestedNet(PlainNet):
    def configure_optimizers(self):
        optimizer = ROOT(self.parameters())
        return [optimizer], [ChainedScheduler([WarmupDecayLR(optimizer)])]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    ("net", "options"),
    [
        (PlainNet, ["--optimizer=ROOT", "--lr_scheduler=WarmupDecayLR"]),
        (MixedNet, []),
        (NestedNet, []),
    ],
)
def test_warm_up_and_decay_count_steps_whatever_interval_is_asked_for(net, options, interval):
    made = run(ROOTCLI, net, *options, f"--lr_scheduler_interval={interval}")
    (config,) = made.trainer.lr_scheduler_configs
    (warmup,) = warmups_in(config.scheduler)
    assert (config.interval, warmup.last_epoch, warmup.max_steps) == ("step", 8, 8)


class Saves(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4:
            trainer.save_checkpoint("half.ckpt")


WITH_SCHEDULE = ["--lr_scheduler=WarmupDecayLR"]
ONE_CYCLE = [
    *("--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=0.01", "--lr_scheduler.total_steps=8"),
    "--lr_scheduler_interval=step",
]


PLATEAU = [
    *("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=loss"),
    *("--lr_scheduler.patience=0", "--lr_scheduler.threshold=1.0", "--lr_scheduler_interval=step"),
]  # no loss is good enough for it, so that it lowers the rate at once


@pytest.mark.parametrize("schedule", [[], WITH_SCHEDULE, ONE_CYCLE, PLATEAU])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([], None),
        (["--optimizer.weight_decay=0.3"], "`weight_decay` 0.1 (given: 0.3)"),
        (
            ["--optimizer.nesterov=false", "--optimizer.coefficients=muon"],
            "`coefficients` adaptive (given: muon), `nesterov` True (given: False)",
        ),
        (["--optimizer.lr=0.5"], "`lr` 0.001 (given: 0.5)"),
    ],
)
def test_options_that_lose_to_the_checkpoint_are_named_once_with_both_values(
    schedule, changed, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sys.argv = ["lightning_root", "fit", *QUIET, "--optimizer=ROOT", *schedule]
    defaults = {"callbacks": [Saves()]}
    ROOTCLI(PlainNet, save_config_callback=None, trainer_defaults=defaults)
    sys.argv += ["--ckpt_path=half.ckpt", *changed]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ROOTCLI(PlainNet, save_config_callback=None)
    lost = [str(w.message) for w in caught if "goes on with the checkpoint's" in str(w.message)]
    if said is None or (schedule in (ONE_CYCLE, PLATEAU) and "lr" in said):  # the rate is theirs
        assert lost == []
    else:
        (text,) = lost
        assert said in text


def test_other_optimizers_are_as_easy():
    made = run(ROOTCLI, PlainNet, "--optimizer=AdamW", "--lr_scheduler=WarmupDecayLR")
    assert type(made.trainer.optimizers[0]) is torch.optim.AdamW
    assert made.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 8


def test_explicit_coefficients_and_rules_from_the_command_line():
    made = run(
        ROOTCLI,
        PlainNet,
        "--optimizer=ROOT",
        "--optimizer.coefficients=[[2.0,-1.5,0.5],[1.5,-0.5,0.0]]",
        "--optimizer.ns_steps=2",
        '--optimizer.rules={"head.weight": "root"}',
    )
    (optimizer,) = made.trainer.optimizers
    assert optimizer.defaults["coefficients"] == ((2.0, -1.5, 0.5), (1.5, -0.5, 0.0))
    assert "head.weight" in split(optimizer)["root"]


def test_there_is_one_class_of_the_short_name():
    """Two would make `--optimizer ROOT` ambiguous."""
    stack, found = [torch.optim.Optimizer], []
    while stack:
        subclasses = stack.pop().__subclasses__()
        stack += subclasses
        found += [kind for kind in subclasses if kind.__name__ == "ROOT"]
    assert found == [ROOT]


def test_help_explains_every_option():
    result = process("-m", "lightning_root", "fit", "--optimizer.help", "ROOT")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for option, words in {
        "lr": "Learning rate of both rules",
        "outlier_quantile": "None switches the threshold off",
        "coefficients": "one triple per shape",
        "rules": "first match wins",
        "ns_dtype": "bfloat16 on CUDA devices",
    }.items():
        assert f"--optimizer.{option}" in text or f"--optimizer.init_args.{option}" in text
        assert words in text


def test_a_plain_script_needs_no_import_for_the_full_class_path(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "LightningCLI(BoringModel, save_config_callback=None)\n"
    )
    options = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=2"]
    result = process(str(script), "fit", "--optimizer=lightning_root.ROOT", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_console_script_sees_the_working_directory_and_the_config_is_reproducible(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lightning.pytorch.demos.boring_classes import BoringModel\n"
        "class Mine(BoringModel):\n    pass\n"
    )
    start = ["-c", "from lightning_root.cli import main; main()", "fit"]
    options = ["--model=mine.Mine", "--optimizer=ROOT", "--trainer.fast_dev_run=2"]
    printed = process(*start, *options, "--print_config", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    config = yaml.safe_load(printed.stdout)
    assert config["optimizer"]["class_path"] == "lightning_root.ROOT"
    assert config["optimizer"]["init_args"]["ns_steps"] == 5
    (tmp_path / "config.yaml").write_text(printed.stdout)
    again = process(*start, "--config=config.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_the_split_is_shown_without_training_for_a_run_meant_for_another_machine():
    """With the rules of the configured optimizer, and on a machine without the GPU it asks for."""
    configs = ["--config=configs/quickstart.yaml", "--config=configs/gpu.yaml"]
    rule = '--optimizer.rules={"head.weight": "root"}'
    result = process("-m", "lightning_root", "partition", *configs, rule)
    assert result.returncode == 0, result.stderr
    (head,) = [line for line in result.stdout.splitlines() if line.startswith("head.weight")]
    assert "ROOT" in head
    assert "rule 'head.weight'" in head
    assert "AdamW:" in result.stdout


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--optimizer.momentun=0.9", "momentun"),
        ("--optimizer.ns_steps=five", "ns_steps"),
        ("--optimizer.momentum=2", "`momentum` must be in"),
    ],
)
def test_wrong_options_are_named(option, word):
    model = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    result = process("-m", "lightning_root", "fit", model, "--optimizer=ROOT", option)
    assert result.returncode != 0
    assert word in result.stderr
