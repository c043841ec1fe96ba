"""Every file in `configs/` is read, merged as its comment says, and run where it can be."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_root import ROOT, ROOTCLI, recipes
from tests.integration.models import weights
from tests.sources import write_sources

ROOT_FOLDER = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT_FOLDER))
    for path in ROOT_FOLDER.glob("configs/**/*.yaml")
    if "\naxes:" not in path.read_text()  # of no run, but of a sweep
)
ELSEWHERE = ("configs/vision/", "configs/llm/")  # run in tests/examples/
QUICKSTART = [config for config in CONFIGS if not config.startswith(ELSEWHERE)]
SMALL = [
    *("--model.depth=1", "--model.width=24", "--model.heads=2", "--model.context=16"),
    *("--data.batch_size=2", "--data.validation_windows=4", "--data.validation_fraction=0.5"),
]
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]


def command(config):
    """The options of the command that the file's own comment shows."""
    text = (ROOT_FOLDER / config).read_text()
    line = re.search(r"#   python -m lightning_root fit (--config .*)", text)
    assert line is not None, f"{config} does not show its command"
    return line[1].split()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Some text, and the project's root as working directory, as the commands want it."""
    monkeypatch.chdir(ROOT_FOLDER)
    folder = write_sources(tmp_path / "text")
    return [f"--data.root={folder}", f"--trainer.default_root_dir={tmp_path}"]


def cli(arguments, run=True):
    sys.argv = ["lightning_root", *arguments]
    return ROOTCLI(run=run, save_config_callback=None)


def test_there_are_configs_for_each_kind_of_machine():
    names = {Path(config).stem for config in CONFIGS}
    assert {"quickstart", "cpu", "gpu", "root", "muon", "adamw"} <= names
    assert {"ddp", "fsdp2", "hsdp"} <= names
    assert {"ascend", "ascend_ddp", "ascend_fsdp2"} <= names


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_has_a_comment(config):
    """A reader sees what each value may be; keys that only open a section need none."""
    for line in (ROOT_FOLDER / config).read_text().splitlines():
        value = re.match(r"\s*(- )?\w+: (?!lightning)(.+)$", line)
        if value is not None and "class_path" not in line:
            assert "# " in line, line


@pytest.mark.parametrize("config", QUICKSTART)
def test_every_config_trains_on_one_cpu(config, corpus):
    """Everything but the devices is as in the file."""
    if "soap" in config:
        pytest.importorskip("pytorch_optimizer")
    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_nodes=1"]
    made = cli(
        ["fit", *command(config), *corpus, *SMALL, *ON_CPU, *one, "--trainer.fast_dev_run=2"]
    )
    assert made.trainer.global_step == 2
    assert made.trainer.callback_metrics["val/loss"] < 7


def on_ranks(rank, ranks, arguments):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = cli(["fit", *arguments])
    return made.trainer.global_step, type(made.trainer.strategy).__name__, weights(made.model)


@pytest.mark.parametrize(
    ("config", "strategy", "smaller"),
    [
        ("ddp", "DDPStrategy", "--trainer.strategy=ddp"),
        ("fsdp2", "ModelParallelStrategy", "--trainer.strategy.init_args.data_parallel_size=2"),
        ("hsdp", "HSDPStrategy", "--trainer.num_nodes=1"),
    ],
)
def test_the_configs_for_many_devices_train_on_two_cpu_processes(
    gloo_pool, corpus, config, strategy, smaller
):
    options = [*command(f"configs/{config}.yaml"), *corpus, *SMALL, *ON_CPU, "--trainer.devices=2"]
    options.append(smaller)
    results = gloo_pool.run(on_ranks, [*options, "--trainer.fast_dev_run=2"])
    assert [result[:2] for result in results] == [(2, strategy)] * 2
    first, second = (result[2] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("root", ROOT, {"coefficients": "adaptive", "outlier_quantile": 0.9}),
        ("root_auto", ROOT, {"coefficients": "adaptive", "outlier_quantile": "auto"}),
        ("muon", ROOT, recipes.MUON),
        ("paper", ROOT, recipes.PAPER),
        ("normuon", ROOT, recipes.NORMUON),
        ("pmuon", ROOT, recipes.PMUON),
        ("soap_muon", ROOT, recipes.SOAP_MUON),
        ("best", ROOT, recipes.BEST),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.95)}),
    ],
)
def test_the_optimizer_overlays_change_the_optimizer(name, kind, options, corpus):
    arguments = [*command(f"configs/optimizer/{name}.yaml"), *corpus, *SMALL, *ON_CPU]
    made = cli(["fit", *arguments, "--trainer.fast_dev_run=1"])
    (optimizer,) = made.trainer.optimizers
    assert type(optimizer) is kind
    for key, value in options.items():
        assert optimizer.defaults[key] == value
    if kind is ROOT:  # and nothing else but the learning rate
        plain = {**ROOT(nn.Linear(2, 2).parameters()).defaults, **options}
        assert {**optimizer.defaults, "lr": 0.0} == {**plain, "lr": 0.0}
