"""Sweeps: resuming, failures, tuning, comparisons, what is written."""

import json
import os
import re
import shlex
import signal
from pathlib import Path

import lightning as L
import pytest
import yaml

from examples import sweep as command
from examples.sweeps.file import read_sweep
from examples.sweeps.page import notes, table
from examples.sweeps.pictures import Dots, draw_all, draw_over
from examples.sweeps.results import Row, collect, steps_ratio
from lightning_root._files import write_json
from lightning_root.cli import main as lightning_root
from lightning_root.diagnostics.report import read_run

PROJECT = Path(__file__).parents[2]
TEXT = str(PROJECT / "lightning_root" / "functional")
ABOUT = {
    "cpu": "a CPU",
    "cores": 1,
    "capability": "none",
    "threads": 1,
    "torch": "2",
    "python": "3",
}
ABOUT |= {"date": "2026-01-01", "commit": "abc", "command": "python -m examples.sweep x.yaml"}


class KilledOnce(L.Callback):
    """Ends its process by force after the third step, the first time."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def write_sweep(path, **changes):
    """A sweep's file of four combinations, of which only the labels matter."""
    base = path.parent / "base.yaml"
    base.write_text("trainer:\n  max_steps: 4\n")
    values = {
        "base": [str(base)],
        "axes": {
            "optimizer": {"A": {"optimizer.name": "a"}, "B": {"optimizer.name": "b"}},
            "lr": {0.1: {"optimizer.lr": 0.1}, 0.2: {"optimizer.lr": 0.2}},
        },
        "seeds": [0, 1],
        "metric": "val/loss",
    }
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes a second."""
    monkeypatch.setattr(command, "draw_all", lambda results, output: [])


def pretend(loss, **further):
    """A `run_all` that writes results, `loss(labels, seed)`, and keeps a list of what it ran.

    Each of `further` is a function of the same arguments, for another entry of the results.
    """
    ran = []

    def run_all(runs, about, jobs, threads):
        for run in runs:
            ran.append((*run.labels.values(), run.seed))
            value = loss(run.labels, run.seed)
            if value is not None:
                run.folder.mkdir(parents=True, exist_ok=True)
                entry = {
                    **{"final": value, "best": value, "seconds": 1.0, "about": dict(about)},
                    **{"labels": dict(run.labels), "fingerprint": run.fingerprint},
                    **{"steps": [1, 2], "values": [2 * value, value]},
                    **{name: entry(run.labels, run.seed) for name, entry in further.items()},
                }
                write_json(run.result, entry)
            yield run, 0 if value is not None else 1

    return run_all, ran


@pytest.fixture
def toy(tmp_path):
    """A sweep of three real runs: one is calm, one is killed once, one cannot be built."""
    small = {
        "model": {"init_args": {"depth": 1, "width": 24, "heads": 2, "context": 16}},
        "data": {"init_args": {"root": TEXT, "batch_size": 2, "validation_windows": 4}},
        "trainer": {
            **{"accelerator": "cpu", "max_steps": 4, "val_check_interval": 1},
            **{"enable_progress_bar": False, "enable_model_summary": False},
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"monitor": "val/loss", "save_last": True},
                }
            ],
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    killed = {"class_path": f"{__name__}.KilledOnce", "init_args": {"marker": f"{tmp_path}/once"}}
    axes = {
        "run": {
            "calm": None,
            "killed": {"trainer.callbacks+": killed},
            "wrong": {"optimizer.lr": -1.0},
        }
    }
    base = [str(PROJECT / "configs" / "quickstart.yaml"), str(tmp_path / "small.yaml")]
    return write_sweep(
        tmp_path / "toy.yaml", base=base, axes=axes, seeds=[3], baseline={"run": "calm"}
    )


def test_a_sweep_resumes_reports_failures_and_ends_with_all_else_done(toy, tmp_path, capsys):
    """The killed run goes on from its checkpoint and ends where the calm one does, to the bit."""
    output = tmp_path / "out"
    arguments = [str(toy), "--output", str(output)]
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert "running: 3 runs, 0 of them done" in printed.out
    assert "2 failed; the same command tries again" in printed.err
    assert "`lr` must be" in printed.err  # the last lines of the run that cannot be built
    assert "ended by signal 9" in printed.err
    calm = output / "run=calm" / "seed_3" / "result.json"
    before = calm.stat().st_mtime_ns

    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert "running: 3 runs, 1 of them done" in printed.out
    assert "1 failed" in printed.err
    assert calm.stat().st_mtime_ns == before
    first = json.loads(calm.read_text())
    second = json.loads((output / "run=killed" / "seed_3" / "result.json").read_text())
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert first["cpu_seconds"] > 0
    assert first["steps"] == second["steps"] == [0, 1, 2, 3]
    assert first["values"] == second["values"]
    assert first["final"] == first["values"][-1]

    called = re.search(r"python -m lightning_root (compare .*)", printed.out)[1]
    assert lightning_root(shlex.split(called)) == 0
    assert (output / "comparison" / "comparison.html").is_file()


@pytest.mark.usefixtures("no_pictures")
def test_the_best_is_chosen_by_the_tuning_seeds_alone(tmp_path, monkeypatch, capsys):
    """0.2 is better with the tuning seed, 0.1 with the others: the choice must not see those."""

    def loss(labels, seed):
        good = {"A": "0.2", "B": "0.1"}[labels["optimizer"]]
        return float((labels["lr"] == good) != (seed == 9)) + 0.1 * seed

    run_all, ran = pretend(loss)
    monkeypatch.setattr(command, "run_all", run_all)
    path = write_sweep(tmp_path / "s.yaml", tune="lr", tune_seeds=[9], baseline={"optimizer": "A"})
    arguments = [str(path), "--output", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert ran[:4] == [("A", "0.1", 9), ("A", "0.2", 9), ("B", "0.1", 9), ("B", "0.2", 9)]
    assert ran[4:] == [("A", "0.2", 0), ("B", "0.1", 0), ("A", "0.2", 1), ("B", "0.1", 1)]
    out = capsys.readouterr().out
    assert re.search(r"^A +0\.2 +greatest +1\.0500 ± 0\.0707 +2 ", out, re.MULTILINE)
    assert "optimizer A: 0.2 is the greatest that was tried." in out
    assert command.main(arguments) == 0
    assert len(ran) == 8  # nothing is left to run
    page = (tmp_path / "out" / "table.md").read_text()
    assert "Chosen by: mean val/loss at each lr, of seeds 9." in page
    assert "| optimizer | 0.1 | 0.2 |\n|---|---:|---:|\n| A | 1.9000 | 0.9000 |" in page


def test_it_is_said_whether_the_best_lies_inside_of_what_was_tried(tmp_path):
    """Each optimizer has a grid of its own, in the file in any order."""
    best = {"A": 0.2, "B": 0.3, "C": 0.2, "D": 0.2, "E": 0.2}

    def loss(labels, seed):
        return abs(float(labels["lr"]) - best[labels["optimizer"]]) + seed

    axes = {
        "optimizer": {name: {"optimizer.name": name} for name in best},
        "lr": {lr: {"optimizer.lr": lr} for lr in (0.3, 0.1, 0.2, 0.4)},
    }
    only = {"optimizer": {"B": {"lr": [0.1, 0.2, 0.3]}, "C": {"lr": [0.2, 0.4]}}}
    only["optimizer"]["D"] = {"lr": [0.2]}
    baseline = {"optimizer": "A"}
    path = write_sweep(tmp_path / "s.yaml", axes=axes, only=only, tune="lr", baseline=baseline)
    sweep = read_sweep(path)
    run_all, _ = pretend(loss)
    list(run_all(sweep.runs(sweep.combinations(), sweep.seeds, tmp_path), ABOUT, 1, 1))
    results = collect(sweep, tmp_path, {})
    found = [(row.tuned, row.place) for row in results.rows]
    assert found == [
        *[("0.2", "inside"), ("0.3", "greatest"), ("0.2", "least")],
        *[("0.2", None), ("0.2", "inside")],
    ]
    assert results.rows[1].difference.mean == pytest.approx(0.0)
    header, body = table(results)
    assert header[:3] == ["optimizer", "best lr", "in the grid"]
    assert [cells[2] for cells in body] == ["inside", "greatest", "least", "-", "inside"]
    assert [text.split(":")[0] for text in notes(results)[:-1]] == ["optimizer B", "optimizer C"]


def curves(steps, *values):
    """Results of one seed each."""
    return {
        seed: {"steps": steps, "values": list(one), "final": one[-1]}
        for seed, one in enumerate(values)
    }


def test_steps_to_the_baselines_end_are_of_the_mean_curves():
    """Step 99 is the hundredth; the seeds cross at different steps, or never."""
    baseline = Row({}, None, None, curves([99, 199], [5.0, 3.0], [4.0, 2.0], [0.0, 0.0]))
    row = Row({}, None, None, curves([49, 99, 149], [5.0, 4.0, 2.9], [4.0, 2.0, 0.1]))
    assert steps_ratio(row, baseline, "min") == pytest.approx((100 + 50 / 3) / 200)
    assert steps_ratio(baseline, baseline, "min") == 1.0
    worse = Row({}, None, None, curves([99, 199], [5.0, 3.1], [4.0, float("nan")]))
    assert steps_ratio(worse, baseline, "min") is None
    longer = Row({}, None, None, curves([99, 199, 299], [5.0, 4.0, 2.0]))
    assert steps_ratio(longer, baseline, "min") == pytest.approx(250 / 200)
    assert steps_ratio(longer, baseline, "max") == pytest.approx(100 / 200)
    other = Row({}, None, None, {7: {"steps": [0], "values": [0.0]}})
    assert steps_ratio(other, baseline, "min") is None


def test_an_axis_may_set_the_number_of_steps(toy, tmp_path):
    """The schedule follows, and a last value from before the end of training is told."""
    values = yaml.safe_load(toy.read_text())
    values["base"].append(str(PROJECT / "configs" / "sweeps" / "quiet.yaml"))
    values["axes"] = {
        "length": {
            "1": None,
            "1.5": {"trainer.max_steps": 6},
            "early": {"trainer.max_steps": 5, "trainer.val_check_interval": 3},
        }
    }
    toy.write_text(yaml.safe_dump({**values, "baseline": {"length": "1"}}, sort_keys=False))
    output = tmp_path / "out"
    sets = ["--set", "trainer.log_every_n_steps=1", "optimizer.lr=0.02"]
    assert command.main([str(toy), "--output", str(output), *sets]) == 0
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [row["labels"]["length"] for row in rows] == ["1", "1.5", "early"]
    rates = {}
    for length, steps in (("1", 4), ("1.5", 6), ("early", 5)):
        folder = output / f"length={length}" / "seed_3"
        result = json.loads((folder / "result.json").read_text())
        assert result["trained"] == steps
        rate, *_ = [v for k, v in read_run(folder).scalars.items() if k.startswith("lr-")]
        assert len(rate.values) == steps
        rates[length] = rate.values / 0.02
    assert rates["1"][-1] > rates["1.5"][-1] > 0.1  # it ends a step after the last
    assert rates["1.5"][3] > rates["1"][3]
    page = (output / "table.md").read_text()
    assert "length early: the last value is of step 3 of 5 or more" in page
    assert "length 1.5: the last" not in page
    assert "| steps ratio | CPU s | CPU ratio |" in page


@pytest.mark.usefixtures("no_pictures")
def test_more_seeds_later_run_only_what_is_new(tmp_path, monkeypatch):
    run_all, ran = pretend(lambda labels, seed: 1.0 + seed)
    monkeypatch.setattr(command, "run_all", run_all)
    path = write_sweep(tmp_path / "s.yaml")
    command.main([str(path), "--output", str(tmp_path / "out"), "--seeds", "0"])
    ran.clear()
    command.main([str(path), "--output", str(tmp_path / "out")])
    assert {seed for *_, seed in ran} == {1}


@pytest.mark.usefixtures("no_pictures")
def test_results_of_another_configuration_are_not_mixed_in(tmp_path, monkeypatch, capsys):
    """A comment in a config file changes nothing; a value does."""
    run_all, ran = pretend(lambda labels, seed: 1.0)
    monkeypatch.setattr(command, "run_all", run_all)
    path = write_sweep(tmp_path / "s.yaml")
    arguments = [str(path), "--output", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    count = len(ran)
    (tmp_path / "base.yaml").write_text("# as before\ntrainer: {max_steps: 4}\n")
    assert command.main(arguments) == 0
    (tmp_path / "base.yaml").write_text("trainer:\n  max_steps: 5\n")
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "of another configuration" in capsys.readouterr().err
    assert len(ran) == count


def test_ctrl_c_ends_what_is_under_way_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    closed = []

    def run_all(runs, *_):
        try:
            yield runs[0], 1
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    monkeypatch.setattr(command, "run_all", run_all)
    path = write_sweep(tmp_path / "s.yaml")
    assert command.main([str(path), "--output", str(tmp_path / "out")]) == 130
    assert closed == [True]
    assert "the same command goes on" in capsys.readouterr().err


def test_two_sweeps_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    def run_all(runs, *_):
        yield runs[0], 1
        with pytest.raises(SystemExit):
            command.main(arguments)

    monkeypatch.setattr(command, "run_all", run_all)
    arguments = [str(write_sweep(tmp_path / "s.yaml")), "--output", str(tmp_path / "out")]
    command.main(arguments)
    assert "that no other sweep is working in" in capsys.readouterr().err


def test_differences_are_to_the_baseline_with_all_other_axes_alike(tmp_path):
    def loss(labels, seed):
        return {"A": 1.0, "B": 1.5}[labels["optimizer"]] + 10 * float(labels["lr"]) + seed**2

    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", baseline={"optimizer": "A"}))
    run_all, _ = pretend(loss)
    list(run_all(sweep.runs(sweep.combinations(), sweep.seeds, tmp_path), ABOUT, 1, 1))
    rows = collect(sweep, tmp_path, {}).rows
    found = {tuple(row.labels.values()): row.difference for row in rows}
    assert found["A", "0.1"] is found["A", "0.2"] is None
    for lr in ("0.1", "0.2"):
        assert found["B", lr].mean == pytest.approx(0.5)
        assert found["B", lr].interval == pytest.approx((0.5, 0.5))


def test_cpu_time_is_compared_where_it_is_known(tmp_path, monkeypatch):
    """Not that of a run that went on after an interruption: it is of the last part alone."""
    run_all, _ = pretend(
        lambda labels, seed: 1.0,
        cpu_seconds=lambda labels, seed: {"A": 10.0, "B": 12.0}[labels["optimizer"]] + seed,
        resumed=lambda labels, seed: labels["optimizer"] == "B" and seed == 1,
    )
    monkeypatch.setattr(command, "run_all", run_all)
    monkeypatch.setattr(command, "draw_all", lambda results, output: [])
    axes = {"optimizer": {"A": None, "B": {"optimizer.name": "b"}}}
    path = write_sweep(tmp_path / "s.yaml", axes=axes, baseline={"optimizer": "A"})
    assert command.main([str(path), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "table.md").read_text()
    assert "| CPU s | CPU ratio |" in page
    assert re.search(r"\| A \|.*\| 10\.5 \| - \|\n\| B \|.*\| 12\.0 \| 1\.20 \|\n", page)
    assert "CPU ratio: those as a multiple of the baseline's." in page
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert rows[1]["cpu_seconds"] == {"0": 12.0}
    assert rows[1]["cpu_ratio"] == pytest.approx(1.2)


def test_page_numbers_and_pictures_are_written(tmp_path, monkeypatch):
    run_all, _ = pretend(lambda labels, seed: None if labels["lr"] == "none" else 1.0 + seed)
    monkeypatch.setattr(command, "run_all", run_all)
    axes = {
        "lr": {"none": None, 0: {"x": 0}, 0.1: {"x": 0.1}, 10: {"x": 10}},
        "kind": {"a$b": {"y": 1}, "c": {"y": 2}},
    }
    plot = {"over": "lr", "lines": "kind", "panels": "kind"}
    path = write_sweep(tmp_path / "my_sweep.yaml", axes=axes, plot=plot)
    assert command.main([str(path), "--output", str(tmp_path / "out")]) == 1
    out = tmp_path / "out"
    page = (out / "table.md").read_text()
    assert page.startswith("# My sweep\n")
    assert "| 0.1 | a$b | 1.5000 ± 0.7071 | 2 |" in page
    assert "4 failed" in page
    assert "CPU" not in page  # of results from before it was recorded there is none
    numbers = json.loads((out / "results.json").read_text())
    assert [row["mean"] for row in numbers["rows"]] == [1.5] * 6
    for name in ("results.png", "curves.png", "over_lr.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_diverged_is_a_result_and_never_the_best(tmp_path):
    def loss(labels, seed):
        return float("nan") if labels["lr"] == "0.1" else 5.0

    sweep = read_sweep(write_sweep(tmp_path / "s.yaml", tune="lr"))
    run_all, _ = pretend(loss)
    list(run_all(sweep.runs(sweep.combinations(), sweep.seeds, tmp_path), ABOUT, 1, 1))
    results = collect(sweep, tmp_path, {})
    assert [row.tuned for row in results.rows] == ["0.2", "0.2"]
    assert (tmp_path / "tuning.png") in draw_all(results, tmp_path)


def test_levels_of_one_height_have_one_line_and_one_text():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    dots = [Dots("", "", label, [value]) for label, value in (("none", 1.0), ("auto", 1.0))]
    draw_over(figure, [*dots, Dots("", "", "far", [2.0]), Dots("", "", "0.9", [1.5])], "p", "loss")
    assert [text.get_text() for text in figure.axes[0].texts] == ["none, auto", "far"]
