"""A training that is killed ends where it would have ended, and what finds a loss does find it."""

import copy
import json
import shutil
import signal
import sys

import pytest
import torch

from examples.benchmarks import kills
from examples.benchmarks.killing import attempts, training, trials
from examples.benchmarks.killing.compare import difference
from examples.benchmarks.killing.training import Kill
from lightning_root.kernels.rates import rates_file

PLACES = [
    (Kill(file=2, place="bytes", share=0.5), None),
    (None, attempts.Moment(step=5, delay=0.0)),
    (Kill(file=1, place="before the rename", share=0.0), None),
]


class Held(training.Steps):
    """Waits at the fifth step for a kill from outside, however late that comes."""

    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        if trainer.global_step == 5:
            signal.pause()


def train_held(attempt, numbers):
    training.Steps = Held
    training.train_here(attempt, numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="without SIGKILL")
def test_three_kills_later_the_end_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    """Half of `last.ckpt` is written; in a step; before a checkpoint is renamed."""
    known = rates_file(1).parent
    for folder in ("whole", "killed"):  # the rates that the session has, so that nobody measures
        shutil.copytree(known, tmp_path / folder / "cache" / known.name)
    whole = trials.uninterrupted(attempts.Run(1, 8, 0, tmp_path / "whole"))
    run = attempts.Run(1, 8, 0, tmp_path / "killed")
    monkeypatch.setattr(attempts, "PATIENCE", 3600.0)
    for kill, moment in PLACES:
        with monkeypatch.context() as patch:
            if moment is not None:
                patch.setattr(attempts, "train_here", train_held)
            ended = attempts.attempt(run, kill, moment, 0)
        assert ended.codes == [-9]
        assert ended.watch.saving or kill is None
        assert run.last.exists() == (kill != PLACES[0][0])
    assert attempts.attempt(run, None, None, 0).codes == [0]
    assert difference(whole, trials.read(run.last)) == ""
    assert whole["global_step"] == 8
    assert whole["callbacks"]["ROOTRefit"]["captures"] == 2
    assert not list(run.folder.glob(".*"))
    assert len(list((run.folder / "cache" / "coefficients-2").iterdir())) == 2


CHECKPOINT = {
    "state_dict": {"w": torch.tensor([1.0, float("nan")])},
    "callbacks": {"ROOTMonitor": {"points": 3}, "ModelCheckpoint{}": {"path": "a"}},
    "loops": [{"done": 1}],
}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda c: c["state_dict"].update(w=torch.tensor([1.0 + 2**-23, float("nan")])), "/w"),
        (lambda c: c["state_dict"].update(w=torch.tensor([1.0, float("nan")]).double()), "/w"),
        (lambda c: c["state_dict"].update(v=1), "/state_dict: ['v']"),
        (lambda c: c["callbacks"]["ROOTMonitor"].update(points=4), "/points: 3 and 4"),
        (lambda c: c["loops"].append({}), "/loops: 1 and 2 entries"),
        (lambda c: c["loops"][0].update(done=True), "/done: 1 and True"),
    ],
)
def test_every_difference_is_found_and_named(change, where):
    other = copy.deepcopy(CHECKPOINT)
    other["callbacks"]["ModelCheckpoint{}"]["path"] = "b"
    assert difference(CHECKPOINT, other) == ""
    change(other)
    assert where in difference(CHECKPOINT, other)


def test_the_page_and_the_status_tell_of_losses(tmp_path, monkeypatch, capsys):
    def pretended(count, ranks, steps, seed, folder):
        for number in range(count):
            record = trials.Record(
                *(1 + number // 2, ranks, 0, "bytes" if number % 2 else trials.ANY_MOMENT, 0.5),
                *(1.0, 9, True, 3, 8, 8, "ended with an error" if ranks > 1 else ""),
            )
            yield record
            record.outcome = "/state_dict/w" if (ranks, number) == (2, 1) else trials.EXACT

    monkeypatch.setattr(kills, "trials", pretended)
    assert kills.main(["--kills", "5", "--output", str(tmp_path)]) == 1
    assert "5 kills, 1 losses" in capsys.readouterr().out
    page = (tmp_path / "kills.md").read_text()
    assert "**5 kills in 3 runs, 1 losses.**" in page
    assert "| part of the bytes written | 1 | 1 | 1 |" in page
    assert "the other ended with an error (2)" in page
    found = json.loads((tmp_path / "kills.json").read_text())
    assert [kill["processes"] for kill in found["kills"]] == [1, 1, 1, 2, 2]
    assert kills.main(["--kills", "2", "--processes", "1", "--output", str(tmp_path)]) == 0
