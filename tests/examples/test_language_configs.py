"""Every file in `configs/llm/` trains on local text, through the code that loads the real one."""

import json
from pathlib import Path

import pytest
import torch

from examples.language.model import Llama
from lightning_root import ROOTCLI
from tests.examples.test_language_data import make_tokenizer_folder
from tests.helpers import params_by_role
from tests.test_configs import CONFIGS, ON_CPU, ROOT_FOLDER, cli, command, on_ranks

LANGUAGE = [config for config in CONFIGS if config.startswith("configs/llm/")]
FINEWEB = "configs/llm/fineweb_edu_1b.yaml"
SMALL = [
    *("--model.dimension=24", "--model.layers=1", "--model.heads=4", "--model.key_value_heads=1"),
    *("--model.head_dimension=6", "--model.mlp_dimension=32", "--model.context=16"),
    *("--data.batch_size=2", "--data.held_out_documents=6", "--data.validation_windows=4"),
    *("--data.shuffle_windows=8", "--trainer.accumulate_grad_batches=1"),
    *("--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"),
    "--trainer.enable_model_summary=false",
]
ONE_DEVICE = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_nodes=1"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """FineWeb-Edu in small: two parquet files with its columns, text files, and a tokenizer."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("texts")
    documents = [f"Document {i}: " + "water flows downhill. " * (1 + i % 5) for i in range(60)]
    for part in range(2):
        rows = [
            {"text": text, "id": str(i), "dump": "CC-MAIN-2024-10", "int_score": 3}
            for i, text in enumerate(documents[part::2])
        ]
        Dataset.from_list(rows).to_parquet(folder / f"{part:03d}.parquet")
    for i, text in enumerate(documents):
        (folder / f"{i}.txt").write_text(text + "\nSecond line.\n")
    make_tokenizer_folder(folder / "tokenizer", documents)
    return folder


@pytest.fixture
def local(texts, tmp_path, monkeypatch):
    """The options that put local text in the place of what a config reads."""
    monkeypatch.chdir(ROOT_FOLDER)

    def options(config: str) -> list[str]:
        folder = f"--trainer.default_root_dir={tmp_path}"
        if "configs/llm/text_3m.yaml" in command(config):
            return [f"--data.data_files={texts}/*.txt", folder]
        files = json.dumps([f"{texts}/*.parquet"])
        source = ["--data.dataset=parquet", "--data.name=null", f"--data.data_files={files}"]
        return [*source, f"--data.tokenizer={texts}/tokenizer", "--model.vocabulary=320", folder]

    return options


def test_there_are_configs_for_the_family_its_lengths_machines_and_optimizers():
    names = {config.removeprefix("configs/llm/").removesuffix(".yaml") for config in LANGUAGE}
    assert {"fineweb_edu_1b", "fineweb_edu_124m", "fineweb_edu_30m", "text_3m"} <= names
    assert {"tokens_10b", "tokens_100b", "fsdp2_1b", "ascend_1b"} <= names
    assert {"optimizer/muon", "optimizer/adamw"} <= names


@pytest.mark.parametrize("config", LANGUAGE)
def test_every_language_config_trains_on_local_text(config, local):
    """Everything but the sizes, the devices and the place of the text is as in the file."""
    made = cli(["fit", *command(config), *local(config), *SMALL, *ON_CPU, *ONE_DEVICE])
    assert made.trainer.global_step == 2
    assert made.trainer.callback_metrics["val/loss"] < 7
    (optimizer,) = made.trainer.optimizers
    matrices, rest = params_by_role(optimizer).values()
    if "adamw" in config:
        assert not matrices
        assert len(rest) == len(list(made.model.parameters()))
    else:
        assert len(matrices) == 7
        (group,) = optimizer.param_groups
        assert group["coefficients"] == ("muon" if "muon" in config else "adaptive")


@pytest.mark.parametrize("config", [FINEWEB, "configs/llm/tokens_100b.yaml"])
def test_the_papers_run_has_the_papers_settings(config, monkeypatch):
    monkeypatch.chdir(ROOT_FOLDER)
    monkeypatch.setattr(ROOTCLI, "instantiate_classes", lambda self: None)  # files alone
    lengths = {FINEWEB: 10e9, "configs/llm/tokens_100b.yaml": 100e9}
    parsed = cli(command(config), run=False).config
    model, data, trainer = parsed.model.init_args, parsed.data.init_args, parsed.trainer
    sizes = (model.dimension, model.layers, model.heads, model.key_value_heads)
    assert sizes == (2048, 16, 32, 8)
    assert (model.head_dimension, model.mlp_dimension, model.vocabulary) == (64, 8192, 128256)
    assert (model.tied, model.rope_theta) == (True, 500_000.0)
    schedule = parsed.lr_scheduler.init_args
    assert (schedule.warmup_steps, schedule.schedule, schedule.min_lr_ratio) == (
        2000,
        "cosine",
        0.1,
    )
    assert parsed.optimizer.init_args.adjust_lr_fn == "match_rms_adamw"
    batch = data.batch_size * model.context * trainer.devices * trainer.accumulate_grad_batches
    assert batch == 2**19
    assert batch * trainer.max_steps == pytest.approx(lengths[config], rel=1e-4)


@pytest.mark.parametrize(
    ("config", "millions"), [("text_3m", 3), ("fineweb_edu_30m", 30), ("fineweb_edu_124m", 124)]
)
def test_each_member_has_the_size_of_its_name(config, millions, monkeypatch):
    from lightning_root.cli.lightning import read_model

    monkeypatch.chdir(ROOT_FOLDER)
    model, _ = read_model([f"--config=configs/llm/{config}.yaml"])
    assert isinstance(model, Llama)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(millions * 1e6, rel=0.03)


def test_the_sharded_run_trains_on_two_processes(gloo_pool, local):
    config = "configs/llm/fsdp2_1b.yaml"
    options = [*command(config), *local(config), *SMALL, *ON_CPU, "--trainer.devices=2"]
    options.append("--trainer.strategy.init_args.data_parallel_size=2")
    results = gloo_pool.run(on_ranks, options)
    assert [result[:2] for result in results] == [(2, "ModelParallelStrategy")] * 2
    first, second = (result[2] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.dtype == torch.float32 for value in first.values())  # gathered in bfloat16
