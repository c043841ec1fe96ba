"""Triton's kernels: beside torch, in Triton's interpreter, and who decides where they are used."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lightning_root import ROOT
from lightning_root.kernels import orthogonalize
from lightning_root.kernels.forms import PLAIN, products_for
from lightning_root.kernels.triton import language, measurement, tuning
from lightning_root.kernels.triton.tiles import ALL_KERNELS, NO_KERNELS, SIZES, TILES, TORCH, Tuning
from lightning_root.optim.blocks import BlockStep
from lightning_root.optim.stages import momentum
from lightning_root.optim.step import are_readable, have_kernels
from tests.kernels.interpreted import CASES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
KERNELS = Path(tuning.__file__).parent


def reported_by(program, *arguments, **environment):
    """What a program of this folder writes: Triton is told what it is to do before it starts."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.{program}", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    """Of all cases, from one process."""
    return reported_by("interpreted", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory):
    """What an H100 or H200 would run, of every kernel."""
    return reported_by("compiled", "90", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_gives_what_torch_gives(errors, case):
    allowed, _ = CASES[case]
    assert isinstance(errors[case], float), errors[case]
    assert errors[case] <= allowed


def test_every_kernel_compiles_for_hopper_and_keeps_its_numbers_in_registers(machine_code):
    names = {name.split()[0] for name in machine_code}
    source = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    launched = set(re.findall(r"^    (_\w+)\[\(", source, flags=re.MULTILINE))
    assert names == launched
    assert {name: kernel["spilled"] for name, kernel in machine_code.items()} == dict.fromkeys(
        machine_code, 0
    )
    assert max(kernel["shared"] for kernel in machine_code.values()) <= 227 << 10


def test_products_run_on_tensor_cores_and_load_while_they_multiply(machine_code):
    products = {k: v for k, v in machine_code.items() if k.startswith("_lower_tiles")}
    assert all(kernel["loads_ahead"] for kernel in products.values())
    on_tensor_cores = {name for name, kernel in products.items() if kernel["tensor_cores"]}
    assert on_tensor_cores == {name for name in products if "bfloat16" in name}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if there were one, with nothing measured yet."""
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "known", {})
    monkeypatch.setattr(tuning, "_installed", lambda: True)
    monkeypatch.setattr(tuning, "_name", lambda device, dtype: f"a device {dtype}")
    return tmp_path


def test_what_was_measured_is_kept(gpu, monkeypatch):
    found = Tuning((TORCH, 0, 0, 1, 2, 3), passes=True, rounds=False)
    calls = []
    monkeypatch.setattr(measurement, "measure", lambda *about: calls.append(about) or found)
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == found
    tuning.known.clear()  # as in the next process
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == found
    assert calls == [(GPU, torch.bfloat16)]
    assert tuning.tuning_for("torch", GPU, torch.bfloat16) is None
    assert tuning.tuning_for("triton", GPU, torch.bfloat16) == ALL_KERNELS
    assert tuning.tuning_for("auto", GPU, torch.float64) is None


@pytest.mark.parametrize(
    "damage", ["{", '{"tiles": [0], "passes": true, "rounds": true}', '{"tiles": "x"}']
)
def test_a_damaged_file_is_measured_anew(gpu, monkeypatch, damage):
    found = Tuning((0,) * len(SIZES), passes=False, rounds=False)
    monkeypatch.setattr(measurement, "measure", lambda *about: found)
    assert tuning.tuned(GPU, torch.bfloat16) == found
    (file,) = (gpu / "rates-3").iterdir()
    file.write_text(damage)
    tuning.known.clear()
    assert tuning.tuned(GPU, torch.bfloat16) == found


def test_where_nothing_can_be_kept_no_kernel_is_used(gpu, monkeypatch):
    """Or results would depend on what else the machine was doing."""
    (gpu / "a_file").touch()
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(gpu / "a_file" / "below"))
    monkeypatch.setattr(measurement, "measure", lambda *about: pytest.fail("for nothing"))
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) is None


def test_ranks_can_choose_alike(gpu):
    tuning.known.update({"a device torch.bfloat16": ALL_KERNELS})
    assert tuning.tuning_for("auto", GPU, torch.bfloat16) == ALL_KERNELS


def test_the_nearest_size_decides():
    found = Tuning((TORCH, 0, 1, 2, 3, 3), passes=True, rounds=True)
    tiles = {m: found.tile(m, 4096) for m in (16, 128, 176, 192, 352, 368, 704, 2048, 99984)}
    assert tiles == {
        16: None,
        128: None,
        176: None,
        192: TILES[0],
        352: TILES[0],
        368: TILES[1],
        704: TILES[1],
        2048: TILES[3],
        99984: TILES[3],
    }


def test_sizes_at_which_kernels_cannot_be_faster_are_torchs():
    """A single tile has no half to save; rows that begin anywhere are loaded entry by entry."""
    found = Tuning((0,) * len(SIZES), passes=True, rounds=True)
    assert found.tile(64, 256) is None
    assert found.tile(80, 256) == TILES[0]
    assert found.tile(300, 400) is None
    assert found.tile(304, 403) is None
    assert ALL_KERNELS.tile(20, 50) == TILES[0]


def test_products_are_plain_without_a_tile():
    found = Tuning((TORCH, *(0,) * (len(SIZES) - 1)), passes=True, rounds=True)
    assert products_for(found, torch.ones(96, 400)) is PLAIN
    assert products_for(found, torch.ones(2, 304, 400)) is not PLAIN
    assert products_for(found, torch.ones(304, 401)) is PLAIN
    assert products_for(None, torch.ones(304, 400)) is PLAIN
    assert products_for(ALL_KERNELS, torch.ones(300, 401)) is not PLAIN


def test_what_is_fused_depends_on_what_was_measured():
    """Momentum in 16 bits where kernels round it rightly, and N that is there already."""
    tiles, group = (TORCH,) * len(SIZES), {"ns_form": "auto"}
    rounding, single = Tuning(tiles, True, rounds=True), Tuning(tiles, True, rounds=False)
    weight = torch.ones(4, 8)

    def fused(tuning, gradient, momentum, **options):
        steps = [BlockStep(None, gradient, momentum, weight, None, {})]
        return have_kernels(momentum, {**group, **options}, tuning) and are_readable(steps)

    half = weight.bfloat16()
    assert fused(single, weight, weight)
    assert not fused(single, weight, half)
    assert fused(rounding, weight, half)
    assert fused(single, None, torch.ones(8, 4).mT)
    assert not fused(single, torch.ones(8, 4).mT, weight)
    assert not fused(single, weight, weight, ns_form="gram")
    assert not fused(NO_KERNELS, weight, weight)


def test_momentum_in_8_bits_is_torchs_where_kernels_round_it_wrongly(monkeypatch):
    """No kernel runs on this CPU: one that is launched fails."""
    wrong = Tuning((TORCH,) * len(SIZES), passes=True, rounds=False)
    monkeypatch.setattr(momentum, "tuning_for", lambda *about: wrong)
    weight = torch.nn.Parameter(torch.ones(4, 8))
    weight.grad = torch.ones(4, 8)
    group = {"role": "root", "params": [weight]}
    ROOT([group], momentum_dtype="float8").step()
    assert (weight < 1.0).any()


class Clock:
    """Times by what runs: torch's product, then each tile's."""

    def __init__(self, monkeypatch, times, product):
        self.times = iter(times)
        monkeypatch.setattr(measurement, "milliseconds", lambda run: next(self.times))
        monkeypatch.setattr(measurement, "STACK_ELEMENTS", 1)
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
    tiles = (0, 1, 2, 3, 4, 5)
    for right in (True, False):
        monkeypatch.setattr(measurement, "rounding_is_correct", lambda _, right=right: right)
        assert measurement.measure(GPU, torch.bfloat16) == Tuning(tiles, True, rounds=right)
    monkeypatch.setattr(measurement, "rounding_is_correct", lambda _: True)
    monkeypatch.setattr(measurement, "passes_are_faster", lambda *_: False)
    assert measurement.measure(GPU, torch.bfloat16) == Tuning(tiles, False, rounds=False)


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
    assert measurement.milliseconds(lambda: done.append(None), rounds=2, min_time=2.0) == 0.25
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


@pytest.mark.parametrize("name", ["products", "passes", "rounding", "measurement"])
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
    assert torch.equal(orthogonalize(matrix, triples, form="standard", tuning=NO_KERNELS), plain)
