"""The benchmark of sharing, tried on two processes: its page says what its numbers say."""

import json

import numpy as np
import pytest

from examples.benchmarks import sharing


@pytest.mark.filterwarnings("ignore")  # of the processes it starts
def test_the_page_shows_the_numbers_of_the_json(tmp_path):
    sharing.main(["--quick", "--rounds", "3", "--output", str(tmp_path)])
    numbers = json.loads((tmp_path / "sharing.json").read_text())
    text = (tmp_path / "sharing.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sharing.json", "sharing.md"]
    assert numbers["ranks"] == 2
    assert {way: len(times) for way, times in numbers["times"].items()} == {
        "replicated": 3,
        "shared": 3,
    }
    shared, replicated = (np.array(numbers["times"][way]) for way in ("shared", "replicated"))
    assert numbers["ratios"] == pytest.approx(shared / replicated)
    assert f"of the same round: {np.median(shared / replicated):.3f}" in text
    assert 0.5 <= numbers["plan"]["share"] <= 0.6
