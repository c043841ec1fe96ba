"""A sweep's file: the runs that it stands for, what is wrong with it, and those shipped."""

import re
import sys
from pathlib import Path

import pytest

from examples.sweeps.file import read_sweep
from examples.sweeps.plan import folder_name, in_short
from lightning_root import ROOTCLI
from tests.examples.test_sweep import PROJECT, write_sweep

SHIPPED = sorted(
    path for path in PROJECT.glob("configs/sweeps/*.yaml") if "\naxes:" in path.read_text()
)


def test_a_file_stands_for_its_combinations(tmp_path):
    """In the order of the file, `only` obeyed; words of YAML keep their meaning as labels."""
    axes = {
        "threshold": {False: None, True: [{"t": None}, str(tmp_path / "base.yaml")]},
        "rate": {0: {"r": 0.0}, 0.5: {"r": [1, 2]}, 1: {"r": "x"}},
    }
    only = {"threshold": {False: {"rate": [0]}}}
    path = write_sweep(tmp_path / "s.yaml", axes=axes, only=only, seeded=["seed_everything", "d.s"])
    sweep = read_sweep(path, options=["trainer.max_steps=7"])
    labels = [tuple(found.values()) for found in sweep.combinations()]
    assert labels == [("off", "0"), ("on", "0"), ("on", "0.5"), ("on", "1")]
    run = sweep.run(sweep.combinations()[2], 5, Path("out"))
    base = f"--config={tmp_path / 'base.yaml'}"
    options = ["--trainer.max_steps=7", "--t=null", base, "--r=[1, 2]"]
    assert list(run.arguments[:8]) == [
        *("fit", base, *options, "--seed_everything=5", "--d.s=5"),
    ]
    assert run.folder == Path("out", "threshold=on,rate=0.5", "seed_5")
    assert in_short(run.labels | {"c": "muon"}) == "threshold on, rate 0.5, muon"
    assert folder_name({"a b": "torch's/Muon"}) == "a_b=torch_s_Muon"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, r"has unknown keys \['axis'\]"),
        ({"axes": {}}, "`axes` must be a mapping with at least one entry, got {}"),
        ({"axes": {"lr": {0.1: 3}}}, "must be config files or options, got 3"),
        ({"seeds": []}, r"`seeds` must be different seeds, at least one, got \[\]"),
        ({"seeds": ["a"]}, "`seeds` must be a list of integers"),
        ({"tune": "rate"}, r"'rate' must be an axis; there are \['optimizer', 'lr'\]"),
        ({"baseline": {"optimizer": "C"}}, r"'C' must be a value of 'optimizer'; there are"),
        ({"tune": "lr", "baseline": {"lr": 0.1}}, "`baseline` must not name 'lr'"),
        ({"base": ["nowhere.yaml"]}, "`nowhere.yaml` must be a config file"),
        ({"mode": "less"}, "`mode` must be min or max, got 'less'"),
        ({"only": {"lr": {0.1: {"lr": [0.2]}, 0.2: {"lr": [0.1]}}}}, "leave at least one"),
        ({"axes": {"a": {"x y": None, "x_y": None}}}, "labels that differ in letters"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(write_sweep(tmp_path / "s.yaml", **changes))


def test_a_part_of_a_sweep_has_the_runs_of_the_whole(tmp_path):
    """So that a later call of all of it goes on from there."""
    path = write_sweep(tmp_path / "s.yaml", baseline={"optimizer": "A"})
    whole = read_sweep(path)
    part = read_sweep(path, keep=["lr=0.2", "optimizer=B"])
    assert [tuple(labels.values()) for labels in part.combinations()] == [("B", "0.2")]
    (run,) = part.runs(part.combinations(), [0], tmp_path)
    assert run in whole.runs(whole.combinations(), [0], tmp_path)
    for keep, message in (
        ("lr=0.3", r"'0.3' must be a value of 'lr'; there are \['0.1', '0.2'\]"),
        ("rate=1", "'rate' must be an axis"),
        ("lr", "`--only` must be AXIS=VALUE, got 'lr'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sweep(path, keep=[keep])


class Parsed(ROOTCLI):
    """The command line, without building what it names."""

    def instantiate_classes(self):
        pass


@pytest.fixture(scope="module")
def parser():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--model=examples.gpt.GPT", "--seed_everything=0"])
        return Parsed(run=False).parser


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_of_runs_that_the_command_line_takes(path, parser, monkeypatch):
    """Every value of every axis; of values that differ in a number alone, one."""
    monkeypatch.chdir(PROJECT)
    sweep = read_sweep(path)
    assert len(sweep.seeds) >= (3 if path.stem.endswith("_long") else 5)
    assert not set(sweep.seeds) & set(sweep.tune_seeds)
    seen = set()
    for run in sweep.runs(sweep.combinations(), sweep.seeds[:1], Path("out")):
        chosen = [a for axis, label in run.labels.items() for a in sweep.axes[axis][label]]
        kinds = {re.sub(r"=[-+.\de]+$", "=#", argument) for argument in chosen}
        if kinds <= seen:
            continue
        seen |= kinds
        parsed = parser.parse_args(run.arguments[1:])
        assert parsed.trainer.logger.init_args.version == "seed_0"
        assert parsed.seed_everything == 0
    text = path.read_text()
    assert f"python -m examples.sweep {path.relative_to(PROJECT)}\n" in text
