"""The benchmark of the monitor's cost: its statistics, its clock, and what `--quick` writes."""

import json
import time

import numpy as np
import pytest

from examples.benchmarks import monitor_overhead
from examples.benchmarks.monitoring.blocks import Block, compare
from examples.benchmarks.monitoring.parts import Clock
from tests.sources import write_sources


def blocks_of(pairs, cost, noise=0.0):
    """Off, on, on, off, with a drift that is the same for neighbours."""
    random = np.random.default_rng(0)
    blocks = []
    for number in range(2 * pairs):
        on = number % 4 in (1, 2)
        drift = 1 + 0.3 * (number // 2)
        cpu = drift * (1 + cost * on) * (1 + noise * random.standard_normal())
        blocks.append(Block(on, cpu, 2 * cpu))
    return blocks


def test_the_cost_is_found_whatever_the_drift():
    found = compare(blocks_of(20, cost=0.03), "cpu")
    ratios = found["with_and_without"]
    assert ratios["pairs"] == 20
    assert ratios["median"] == pytest.approx(1.03)
    assert [*ratios["quartiles"], *ratios["median_interval"]] == pytest.approx([1.03] * 4)
    assert found["share"] == pytest.approx(0.03)
    assert found["share_interval"] == pytest.approx([0.03, 0.03])


def test_neighbours_that_are_both_without_it_are_compared_with_each_other():
    """Blocks 3 and 4, 7 and 8, 11 and 12; with a drift, one ratio is above 1 and the next below."""
    blocks = [Block(on, 1.0 + number, 1.0) for number, on in enumerate([0, 1, 1, 0] * 4)]
    found = compare([Block(bool(b.monitored), b.cpu, b.wall) for b in blocks], "cpu")
    expected = [5 / 4, 8 / 9, 13 / 12]
    assert found["without_and_without"]["pairs"] == 3
    assert found["without_and_without"]["median"] == pytest.approx(np.median(expected))


def test_intervals_hold_the_truth_and_are_narrower_with_more_pairs():
    few, many = (compare(blocks_of(n, 0.02, noise=0.01), "wall") for n in (8, 200))
    for found in (few, many):
        low, high = found["share_interval"]
        assert low < 0.02 < high
        low, high = found["with_and_without"]["median_interval"]
        assert low < 1.02 < high
    widths = [np.diff(found["with_and_without"]["median_interval"])[0] for found in (few, many)]
    assert widths[1] < widths[0] / 2


def test_a_part_within_another_counts_for_itself_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    clock = Clock()

    def work(seconds):
        now[0] += seconds

    inner = clock.timed("inner", work)

    def outer():
        work(1.0)
        inner(10.0)
        work(2.0)
        raise KeyError

    with pytest.raises(KeyError):
        clock.timed("outer", outer)()
    now[0] += 100.0
    inner(20.0)
    assert clock.seconds == {"outer": 3.0, "inner": 30.0}


def test_quick_writes_a_page_and_all_numbers(tmp_path, capsys):
    write_sources(tmp_path)
    options = ["--quick", f"--output={tmp_path}", f"--data.root={tmp_path}"]
    monitor_overhead.main([*options, "--trainer.accelerator=cpu"])
    numbers = json.loads((tmp_path / "monitor_overhead.json").read_text())
    assert [block["monitored"] for block in numbers["every_block"]] == [
        False,
        True,
        True,
        False,
    ] * 2
    assert all(block["cpu"] > 0 and block["wall"] > 0 for block in numbers["every_block"])
    assert {"measuring", "histograms", "heat maps at the end"} <= set(numbers["run"]["parts"])
    assert sum(numbers["run"]["parts"].values()) == pytest.approx(numbers["run"]["monitor"])
    assert numbers["run"]["monitor"] < numbers["run"]["cpu"]
    page = (tmp_path / "monitor_overhead.md").read_text()
    assert "--quick" in page and "| measuring |" in page
    share = f"{100 * numbers['blocks']['cpu']['share']:.2f} %"
    assert f"a step takes {share} more CPU time" in page
    assert share in capsys.readouterr().out


def test_too_few_pairs_are_refused(capsys):
    with pytest.raises(SystemExit):
        monitor_overhead.main(["--pairs", "3"])
    assert "`--pairs` must be at least 4, got 3" in capsys.readouterr().err
