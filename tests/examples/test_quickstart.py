from pathlib import Path

import pytest
import torch

from lightning_root import ROOT
from lightning_root.cli import ROOTCLI
from tests.sources import write_sources

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "--trainer.accelerator=cpu",
    "--model.depth=1",
    "--model.width=32",
    "--model.heads=2",
    "--model.context=16",
    "--data.batch_size=2",
    "--data.validation_windows=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Text to train on, and an empty folder to run in."""
    write_sources(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


def run(folder, *overlays, **options):
    files = [CONFIGS / "quickstart.yaml", *(CONFIGS / "optimizer" / name for name in overlays)]
    arguments = [f"--config={file}" for file in files] + TINY + [f"--data.root={folder}"]
    arguments += [f"--trainer.{name}={value}" for name, value in options.items()]
    return ROOTCLI(args=["fit", *arguments])


def test_trains_validates_and_writes_what_it_says(folder):
    cli = run(folder, max_steps=4, val_check_interval=2, log_every_n_steps=1)
    assert cli.trainer.global_step == 4
    version = Path("logs/quickstart/version_0")
    assert (version / "config.yaml").is_file()
    assert list(version.glob("events.out.tfevents.*"))
    names = {path.name for path in (version / "checkpoints").iterdir()}
    loss = cli.trainer.checkpoint_callback.best_model_score
    step = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == 4 and "last.ckpt" in names
    assert names & {f"step2-loss{loss:.3f}.ckpt", f"step4-loss{loss:.3f}.ckpt"}


@pytest.mark.parametrize("name", ["root", "muon", "adamw"])
def test_an_overlay_changes_the_optimizer_and_the_folder_alone(folder, name):
    cli = run(folder, f"{name}.yaml", max_steps=2, val_check_interval=2, log_every_n_steps=1)
    optimizer = cli.trainer.optimizers[0]
    group = optimizer.param_groups[0]
    if name == "adamw":
        assert type(optimizer) is torch.optim.AdamW
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.95), 0.1)
        assert len(group["params"]) == len(list(cli.model.parameters()))
    else:
        assert isinstance(optimizer, ROOT)
        expected = {"root": ("adaptive", 0.9), "muon": ("muon", None)}[name]
        assert (group["coefficients"], group["outlier_quantile"]) == expected
    assert Path(f"logs/{name}/version_0/config.yaml").is_file()
    # The schedule ran in steps, to the end of the run: a tenth of the full rate.
    full = cli.config["fit"]["optimizer"]["init_args"]["lr"]
    assert group["lr"] == pytest.approx(0.1 * full)
