"""Each guide runs as it is written, and shows what its text says."""

import warnings

import pytest

from examples.guides import (
    diagnose,
    from_adamw,
    from_bare_loop,
    from_torch_muon,
    from_two_optimizers,
    partition_rules,
)

UNIFORM = 2.303  # the loss of a guess among ten classes


def told(guide, *arguments):
    """What a guide returns, and what it warns of on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = guide(*arguments)
    return result, [str(warning.message) for warning in caught]


def test_from_adamw(capsys):
    losses, messages = told(from_adamw.main)
    kept = "lr=0.003, weight_decay=0.1, betas=(0.9, 0.999)"
    assert any("ROOTMixin trains with ROOT" in text and kept in text for text in messages)
    assert max(losses.values()) < UNIFORM
    assert losses["ROOT, AdamW's learning rate"] > losses["ROOT, four times that"]
    assert losses["AdamW, from step 60 on ROOT"] < losses["AdamW"]
    assert "exp_avg, as a sum" in capsys.readouterr().out


def test_from_torch_muon(capsys):
    losses = from_torch_muon.main()
    before, as_muon, root = losses.values()
    assert max(as_muon, root) < before < UNIFORM
    assert "momentum_buffer / (1 - 0.95)" in capsys.readouterr().out


def test_from_two_optimizers():
    losses = from_two_optimizers.main()
    assert losses["ROOT"] == pytest.approx(losses["two optimizers"], abs=0.1)
    assert losses["ROOT, two batches a step"] < UNIFORM / 2


def test_from_a_bare_loop(capsys):
    assert from_bare_loop.main() < UNIFORM / 4
    assert "output head: named 'head'" in capsys.readouterr().out


def test_from_hugging_faces_trainer():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    before, after = from_bare_loop.hugging_face()
    assert before > 2.5 > 0.5 > after


def test_partition_rules(capsys):
    without, rules = partition_rules.main()
    cut = {route.name: len(route.matrices) for route in rules.routes if route.role == "root"}
    assert cut["1.wqkv"] == 3 and cut["1.experts"] == 4
    assert "1.scores" in {route.name for route in without.routes if route.role == "root"}
    assert "1.scores" not in cut
    assert "'2.scores'" in capsys.readouterr().out.rpartition("a typo:")[2]


def test_diagnose(tmp_path):
    pytest.importorskip("matplotlib")
    seen, messages = told(diagnose.main, tmp_path)
    alerts = [message for message in messages if "beyond the outlier threshold" in message]
    assert alerts and "`layers.0.weight`" in alerts[0]
    losses = {name: run["held-out loss"] for name, run in seen.items()}
    assert losses["clean"] < losses["outliers"] < losses["outliers_no_threshold"]
    clean, noisy = seen["clean"], seen["outliers"]
    assert clean["kurtosis/mean"] < 10 < 50 < noisy["kurtosis/mean"]
    assert clean["outlier_energy/mean"] < 0.1 < 0.5 < noisy["outlier_energy/mean"]
    assert noisy["orth_error/mean"] < clean["orth_error/mean"]
    page = (tmp_path / "outliers" / "report" / "report.html").read_text("utf-8")
    assert "Kurtosis" in page or "kurtosis" in page
