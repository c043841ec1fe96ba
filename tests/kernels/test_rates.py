"""The cheapest form by operation counts, and rates that are measured once."""

import json

import pytest
import torch

from lightning_root import lookup
from lightning_root.kernels import rates as rates_module
from lightning_root.kernels.orthogonalize import cheapest_form, costs
from lightning_root.kernels.rates import DEFAULT_RATES, SIZES, Rates, rates, rates_file

IDEAL = Rates(eigh=(9.0,) * len(SIZES), symmetric=(0.5,) * len(SIZES), fused=(1.0,) * len(SIZES))


def flat(eigh, symmetric=1.0, fused=1.0):
    return Rates(*((value,) * len(SIZES) for value in (eigh, symmetric, fused)))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, in memory and on disk."""
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path))
    monkeypatch.setattr(rates_module, "known", {})
    return tmp_path


@pytest.mark.parametrize(("m", "n"), [(64, 64), (100, 400), (512, 2048)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_costs_are_those_counted_by_hand(m, n, steps):
    """In products of two m x m matrices; symmetric ones at half cost (standard form: 3 m^2 n + m^3
    operations a step, two of them a multiply-add)."""
    triples = ((2.0, -1.5, 0.5),) * steps  # slopes so small that one Gram matrix is enough
    found = costs((m, n), triples, torch.float32, IDEAL)
    assert found["standard"] == pytest.approx(steps * (3 * m**2 * n + m**3) / (2 * m**3))
    ends = 3 * m**2 * n
    squares, inner, whole = steps, 2 * (steps - 1), steps - 1
    gram = ends + (squares + inner) * m**3 + whole * 2 * m**3
    assert found["gram"] == pytest.approx(gram / (2 * m**3))
    assert found["eigh"] == pytest.approx((ends + m**3) / (2 * m**3) + 9.0)


def test_wide_matrices_leave_the_standard_form():
    """The break-even without symmetric products lies at n = 1.5 m, the wider the clearer."""
    triples = lookup((512, 512)).triples
    forms = [cheapest_form((512, n), triples, torch.float32, flat(eigh=1e9)) for n in (512, 4096)]
    assert forms == ["standard", "gram"]


def test_a_fast_decomposition_is_used():
    triples = lookup((768, 3072)).triples
    assert cheapest_form((768, 3072), triples, torch.float32, flat(eigh=7.0)) == "eigh"
    assert cheapest_form((768, 3072), triples, torch.float32, flat(eigh=70.0)) == "gram"


def test_low_precision_and_accelerators_take_what_has_been_tried():
    triples = lookup((64, 512)).triples
    assert cheapest_form((64, 512), triples, torch.bfloat16, IDEAL) == "standard"
    assert cheapest_form((64, 512), triples, torch.float32, None) == "standard"


def test_rates_between_sizes_lie_between(fresh):
    low, high = DEFAULT_RATES.at(256)[0], DEFAULT_RATES.at(384)[0]
    assert min(low, high) < DEFAULT_RATES.at(300)[0] < max(low, high)
    assert DEFAULT_RATES.at(8) == DEFAULT_RATES.at(64)
    assert DEFAULT_RATES.at(9000) == DEFAULT_RATES.at(1024)


def test_rates_are_measured_once_and_kept(fresh, monkeypatch):
    calls = []
    monkeypatch.setattr(rates_module, "measure", lambda: calls.append(1) or flat(eigh=12.0))
    assert rates(1) == flat(eigh=12.0)
    rates_module.known.clear()  # as in the next process
    assert rates(1) == flat(eigh=12.0)
    assert calls == [1]
    (file,) = (fresh / "rates-3").iterdir()
    assert json.loads(file.read_text())["eigh"] == [12.0] * len(SIZES)


def test_what_another_process_kept_meanwhile_counts(fresh, monkeypatch):
    """Two that start together end with the same rates, and so with the same forms."""

    def measure():
        (fresh / "rates-3").mkdir(exist_ok=True)
        other = {"eigh": [5.0], "symmetric": [1.0], "fused": [1.0]}
        values = {key: value * len(SIZES) for key, value in other.items()}
        rates_file(1).write_text(json.dumps(values))
        return flat(eigh=12.0)

    monkeypatch.setattr(rates_module, "measure", measure)
    assert rates(1) == flat(eigh=5.0)


@pytest.mark.parametrize("damage", ["", "{", '{"eigh": [1]}', '{"eigh": "x", "symmetric": []}'])
def test_a_damaged_file_is_made_anew(fresh, monkeypatch, damage):
    monkeypatch.setattr(rates_module, "measure", lambda: flat(eigh=12.0))
    rates(1)
    (file,) = (fresh / "rates-3").iterdir()
    file.write_text(damage)
    rates_module.known.clear()
    assert rates(1) == flat(eigh=12.0)
    assert json.loads(file.read_text())["eigh"] == [12.0] * len(SIZES)


def test_where_nothing_can_be_kept_nothing_is_measured(fresh, monkeypatch):
    """Or results would depend on what else the machine was doing."""
    (fresh / "a_file").touch()
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(fresh / "a_file" / "below"))
    monkeypatch.setattr(rates_module, "measure", lambda: pytest.fail("measured for nothing"))
    assert rates(1) == DEFAULT_RATES


def test_a_measurement_gives_sound_numbers(fresh, monkeypatch):
    monkeypatch.setattr(rates_module, "SIZES", (16, 32))
    found = rates_module.measure()
    assert len(found.eigh) == 2
    assert all(value > 0 for value in (*found.eigh, *found.symmetric, *found.fused))


def test_a_machine_that_is_slow_for_a_while_has_the_same_rates(monkeypatch):
    """A clock by which all is three times as slow in the first round and a half."""
    now, runs = [0.0], [0]

    def taking(seconds):
        def run(x):
            runs[0] += 1
            now[0] += seconds * (3.0 if runs[0] <= 6 else 1.0)

        return run

    names = {"product": 1.0, "eigh": 10.0, "symmetric": 0.5, "fused": 1.25}
    monkeypatch.setattr(rates_module.time, "thread_time", lambda: now[0])
    found = rates_module._seconds({name: taking(t) for name, t in names.items()}, torch.empty(0))
    assert found == pytest.approx(names)
