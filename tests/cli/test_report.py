"""`report` and `compare`: files, terminal, errors of one line."""

import sys

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lightning_root.cli import main


def write_run(folder, name, losses):
    """A run with a validation loss every 100 steps."""
    with SummaryWriter(str(folder)) as writer:
        for place, loss in enumerate(losses, start=1):
            writer.add_scalar("val/loss", loss, 100 * place)
            writer.add_scalar("val/accuracy", 1 / loss, 100 * place)
    optimizer = {"class_path": f"torch.optim.{name}", "init_args": {"lr": 0.001}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": optimizer}))
    return folder


@pytest.fixture
def fast(tmp_path):
    return write_run(tmp_path / "logs" / "fast" / "version_0", "Muon", [4.0, 2.0, 1.0])


@pytest.fixture
def slow(tmp_path):
    return write_run(tmp_path / "logs" / "slow" / "version_0", "AdamW", [4.0, 3.0, 2.0])


@pytest.fixture
def command(capsys):
    """What a call ends with and prints: status, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            sys.exit(main(list(map(str, arguments))))
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


def test_report_says_where_the_page_is_and_what_was_reached(command, fast):
    """Given the folder above the run, it finds the run; the page lies with the logs."""
    status, out, err = command("report", fast.parent)
    assert (status, err) == (0, "")
    page = fast / "report" / "report.html"
    assert f"{page} (2 figures, " in out
    assert out.startswith("Muon, lr 0.001\n")
    assert "  Best val/loss  1 at step 300\n" in out
    assert sorted(path.name for path in page.parent.iterdir()) == [
        *("others.png", "report.html", "training.png")
    ]


def test_report_writes_where_it_is_told(command, fast, tmp_path):
    status, _, _ = command("report", fast, "--output", tmp_path / "a" / "b", "--smooth", "0")
    assert status == 0
    assert (tmp_path / "a" / "b" / "report.html").is_file()
    assert not (fast / "report").exists()


def test_report_tells_of_damaged_logs(command, fast):
    (log,) = fast.glob("events*")
    log.write_bytes(log.read_bytes()[:-5])
    status, out, _ = command("report", fast)
    assert status == 0
    assert "cut off" in out


def test_compare_prints_the_speed_up(command, fast, slow, tmp_path, monkeypatch):
    """The slow run ends at 2.0 after 300 steps; the fast one was there after 200."""
    monkeypatch.chdir(tmp_path)
    status, out, err = command("compare", "logs/fast", "logs/slow", "--steps-only")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["Muon,", "lr", "0.001", "1", "1", "300", "200", "1.50x"] in rows
    assert ["AdamW,", "lr", "0.001", "2", "2", "300", "300", "1.00x"] in rows
    assert "comparison/comparison.html (2 figures, " in out
    assert (tmp_path / "comparison" / "metric.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_compare_takes_labels_and_a_metric(command, fast, slow, tmp_path):
    options = ["--label", "one", "two", "--metric", "val/accuracy", "--output", tmp_path / "out"]
    status, out, _ = command("compare", fast, slow, *options)
    assert status == 0
    rows = [line.split()[:6] for line in out.splitlines()]
    assert ["one", "1", "1", "300", "200", "1.50x"] in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "`RUN_DIR` must be a folder, got 'nowhere'"),
        (["report", "logs"], "`RUN_DIR` must hold one run, found 2 below 'logs'; give one of logs"),
        (["report", "logs/fast", "--smooth", "1"], "must be in [0, 1), got '1'"),
        (["report", "logs/fast", "--output", "file"], "`--output` must be a folder, got the file"),
        (["compare", "logs/fast"], "at least two runs, got 1"),
        (
            ["compare", "logs/fast", "logs/slow", "--metric", "x"],
            "has ['val/accuracy', 'val/loss']",
        ),
        (["compare", "logs/fast", "logs/slow", "--label", "x"], "each of the 2 runs, got 1"),
    ],
)
def test_what_is_wrong_is_one_line(command, fast, slow, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["report", "compare"])
def test_without_matplotlib_the_extra_is_named_before_the_work(command, fast, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = command(name, fast, *([fast] if name == "compare" else []))
    assert status == 2
    assert "pip install 'lightning-root[plot]'" in err
    assert not (fast / "report").exists()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_help_shows_how_to_call_it(command, name):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert f"python -m lightning_root {name} " in out
    assert command(name)[:2] == (2, "")


def test_the_main_help_lists_both(command):
    _, out, _ = command("--help")
    assert "\n    report  " in out
    assert "\n    compare  " in out
