"""Triton's kernels: beside torch, in Triton's interpreter, and who decides where they are used."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lightning_root import ROOT
from lightning_root.kernels import orthogonalize
from lightning_root.kernels.products import PLAIN, products_for
from lightning_root.kernels.triton import language, measurement, tuning
from lightning_root.kernels.triton.tuning import EVERYWHERE, NOWHERE, SIZES, TILES, TORCH, Tuning
from tests.kernels.interpreted import CASES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
KERNELS = Path(tuning.__file__).parent


@pytest.fixture(scope="module")
def errors():
    """Of all cases, from one process: Triton is told to interpret before it is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_gives_what_torch_gives(errors, case):
    allowed, _ = CASES[case]
    assert isinstance(errors[case], float), errors[case]
    assert errors[case] <= allowed


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if there were one, with nothing measured yet."""
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_installed", lambda: True)
    monkeypatch.setattr(tuning, "_name", lambda device, dtype: f"a device {dtype}")
    return tmp_path


def test_what_was_measured_is_kept(gpu, monkeypatch):
    found = Tuning((TORCH, 0, 1, 2, 3), passes=True)
    calls = []
    monkeypatch.setattr(measurement, "measure", lambda *about: calls.append(about) or found)
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == found
    tuning._known.clear()  # as in the next process
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == found
    assert calls == [(GPU, torch.bfloat16)]
    assert tuning.tuning_for("torch", GPU, torch.bfloat16) is None
    assert tuning.tuning_for("triton", GPU, torch.bfloat16) == EVERYWHERE
    assert tuning.tuning_for("auto", GPU, torch.float64) is None


@pytest.mark.parametrize("damage", ["{", '{"tiles": [0], "passes": true}', '{"tiles": "x"}'])
def test_a_damaged_file_is_measured_anew(gpu, monkeypatch, damage):
    found = Tuning((0,) * len(SIZES), passes=False)
    monkeypatch.setattr(measurement, "measure", lambda *about: found)
    assert tuning.tuned(GPU, torch.bfloat16) == found
    (file,) = (gpu / "rates-2").iterdir()
    file.write_text(damage)
    tuning._known.clear()
    assert tuning.tuned(GPU, torch.bfloat16) == found


def test_where_nothing_can_be_kept_no_kernel_is_used(gpu, monkeypatch):
    """Or results would depend on what else the machine was doing."""
    (gpu / "a_file").touch()
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(gpu / "a_file" / "below"))
    monkeypatch.setattr(measurement, "measure", lambda *about: pytest.fail("for nothing"))
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) is None


def test_ranks_can_choose_alike(gpu):
    tuning.adopt_tunings({"a device torch.bfloat16": EVERYWHERE})
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == EVERYWHERE
    assert tuning.tunings_in_use() == {"a device torch.bfloat16": EVERYWHERE}


def test_the_nearest_size_decides():
    found = Tuning((TORCH, 0, 1, 2, 3), passes=True)
    tiles = {m: found.tile(m) for m in (8, 256, 362, 363, 700, 2048, 99999)}
    assert tiles == {
        8: None,
        256: None,
        362: None,
        363: TILES[0],
        700: TILES[0],
        2048: TILES[2],
        99999: TILES[3],
    }
    x = torch.ones(300, 400)
    assert products_for(found, x) is PLAIN
    assert products_for(None, x) is PLAIN
    assert products_for(EVERYWHERE, x) is not PLAIN


class Clock:
    """Times by what runs: torch's product, then each tile's."""

    def __init__(self, monkeypatch, times, product):
        self.times = iter(times)
        monkeypatch.setattr(measurement, "milliseconds", lambda run: next(self.times))
        monkeypatch.setattr(measurement, "ELEMENTS", 1)
        monkeypatch.setattr(measurement.products, "symmetric_product", product)
        monkeypatch.setattr(measurement.products, "quadratic", quadratic)

    def fastest(self, dtype=torch.bfloat16):
        return measurement.fastest_tile(32, CPU, dtype)


def right(a, b, tile):
    return a @ b


def quadratic(r, b, c, tile):
    return torch.baddbmm(r, r, r, beta=b, alpha=c)


def test_the_fastest_tile_is_taken_if_it_is_faster_than_torch(monkeypatch):
    assert Clock(monkeypatch, [1.0, 0.9, 0.7, 0.5, 0.6], right).fastest() == 2
    assert Clock(monkeypatch, [1.0, 0.98, 1.1, 2.0, 3.0], right).fastest() == TORCH
    assert Clock(monkeypatch, [1.0, 0.5], right).fastest(torch.float32) == 0


def test_a_wrong_or_failing_kernel_is_not_taken(monkeypatch, caplog):
    def faulty(a, b, tile):
        if tile is TILES[0]:
            return 1.1 * (a @ b)
        if tile is TILES[1]:
            raise RuntimeError("out of resources")
        return a @ b

    assert Clock(monkeypatch, [1.0, 0.8, 0.9], faulty).fastest() == 2
    assert "does not run here and is not used: out of resources" in caplog.text


def test_a_measurement_has_a_tile_for_every_size_and_says_whether_passes_pay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(measurement, "fastest_tile", lambda m, *_: SIZES.index(m))
    monkeypatch.setattr(measurement, "passes_are_faster", lambda *_: True)
    assert measurement.measure(GPU, torch.bfloat16) == Tuning((0, 1, 2, 3, 4), passes=True)


def test_the_time_of_a_run_is_the_shortest_mean_over_enough_runs(monkeypatch):
    """By a clock of a quarter of a millisecond a run, disturbed in the second round."""
    done = []

    class Event:
        def record(self):
            self.at = 0.25 * len(done) + 0.5 * (len(done) > 20)

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, end):
            assert end.waited
            return end.at - self.at

    monkeypatch.setattr(measurement, "_event", Event)
    assert measurement.milliseconds(lambda: done.append(None), rounds=2, least=2.0) == 0.25
    # One run to compile; 1, 2 and 4 are too short a time; 8 take 2 ms, in two rounds.
    assert len(done) == 1 + 1 + 2 + 4 + 8 + 8


def test_kernels_by_force_need_a_gpu():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = ROOT([{"role": "root", "params": [weight]}], kernels="triton")
    weight.grad = torch.ones(3, 4)
    with pytest.raises(RuntimeError, match=r'`kernels="triton"` needs .* are on \'cpu\'; leave'):
        optimizer.step()
    with pytest.raises(ValueError, match=r"`kernels` must be one of .*got 'fast'"):
        ROOT([{"role": "root", "params": [weight]}], kernels="fast")


def test_on_a_cpu_nothing_is_looked_for(monkeypatch):
    monkeypatch.setattr(tuning, "_installed", lambda: pytest.fail("looked for Triton"))
    assert tuning.tuning_for("auto", CPU, torch.float32) is None


@pytest.mark.parametrize("name", ["products", "passes", "threshold", "measurement"])
def test_without_triton_all_modules_can_be_imported(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "triton", None)
    bare = load(KERNELS / "language.py", "bare_language")
    assert bare.tl is None
    assert bare.jit(len) is len
    assert not bare.interpreted()
    monkeypatch.setitem(sys.modules, language.__name__, bare)
    load(KERNELS / f"{name}.py", f"bare_{name}")


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_triton_gpus_use_torch(monkeypatch, gpu):
    monkeypatch.setattr(tuning, "_installed", lambda: False)
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) is None
    with pytest.raises(RuntimeError, match="needs the package `triton`"):
        tuning.tuning_for("triton", GPU, torch.bfloat16)


def test_a_choice_of_torch_changes_nothing():
    matrix, triples = torch.randn(20, 40), ((1.5, -0.5, 0.0),) * 3
    plain = orthogonalize(matrix, triples, form="standard")
    assert torch.equal(orthogonalize(matrix, triples, form="standard", tuning=NOWHERE), plain)
