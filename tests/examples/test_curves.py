import sys

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from examples.curves import main, read_curve

CONFIG = {
    "optimizer": {
        "class_path": "lightning_root.ROOT",
        "init_args": {"lr": 0.004, "coefficients": "muon"},
    }
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "logs" / "version_0"
    with SummaryWriter(str(folder)) as writer:
        for step, minute, loss in [(10, 0, 3.5), (20, 1, 2.5), (30, 2, 2.0)]:
            writer.add_scalar("val/loss", loss, step, walltime=1_000_000 + 60 * minute)
            writer.add_scalar("train/loss", loss + 1, step, walltime=1_000_000 + 60 * minute)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def test_reads_what_was_written(run):
    curve = read_curve(run, "val/loss")
    assert curve.steps == [10, 20, 30]
    assert curve.values == [3.5, 2.5, 2.0]
    later = [minute - curve.minutes[0] for minute in curve.minutes]
    assert later == pytest.approx([0, 1, 2])


def test_names_optimizer_and_learning_rate(run):
    assert read_curve(run, "val/loss").label == "ROOT (muon), lr 0.004"
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    (run / "config.yaml").write_text(yaml.safe_dump({"optimizer": adamw}))
    assert read_curve(run, "val/loss").label == "AdamW, lr 0.001"
    (run / "config.yaml").unlink()
    assert read_curve(run, "val/loss").label == "logs/version_0"


def test_writes_a_picture(run, tmp_path, capsys):
    output = tmp_path / "curves.png"
    main([str(run), str(run), "--output", str(output), "--tag", "train/loss"])
    data = output.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1500  # ten inches at 150 dots per inch
    assert "2 runs drawn to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tag", "val/missing"], "it has ['train/loss', 'val/loss']"),
        (["nowhere"], "found none in nowhere"),
    ],
)
def test_says_what_is_missing(run, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main([str(run), *arguments])
    assert message in capsys.readouterr().err


def test_names_the_extra_without_matplotlib(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        main([str(run), "--output", str(tmp_path / "curves.png")])
    assert 'pip install "lightning-root[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()
