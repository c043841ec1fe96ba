"""What sweeps say about seeds, against scipy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from examples.sweeps.pictures import _dots_of_rows, _panels
from examples.sweeps.statistics import best_of, compare, describe, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_students_quantile_is_scipys(freedom, share):
    expected = stats.t.ppf((1 + share) / 2, freedom)
    assert student_quantile(freedom, share) == pytest.approx(expected, rel=1e-5, abs=0)


def test_paired_intervals_are_scipys():
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 6))
    found = compare(dict(enumerate(ours)), dict(enumerate(theirs)) | {99: 1.0})
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.count == 6
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.interval == pytest.approx(tuple(expected), rel=1e-6)
    assert describe(list(ours)).deviation == pytest.approx(stats.tstd(ours))
    assert compare({0: 1.0}, {1: 1.0}) is None
    assert compare({0: 1.0}, {0: 3.0}).interval is None


def test_best_is_by_the_mean():
    values = {"a": [1.0, 9.0], "b": [4.0, 4.5], "c": [float("nan"), 0.0]}
    assert best_of(values, "min") == "b"
    assert best_of(values, "max") == "a"


def test_what_was_not_tried_is_not_drawn():
    """Only no outliers at all stand in every panel of sizes: of them there is no size."""
    rows = [
        SimpleNamespace(labels={"rate": rate, "size": size}, values={"0": 1.0})
        for rate, size in [("0", "3"), ("0.01", "3"), ("0.001", "10"), ("0.001", "3")]
    ]
    plot = SimpleNamespace(over="rate", lines=None, panels="size")
    dots = _dots_of_rows(rows, plot)
    drawn = {(entry.panel, entry.label) for entry in dots}
    tried = {("size 3", "0"), ("size 3", "0.01"), ("size 3", "0.001"), ("size 10", "0.001")}
    assert drawn == {*tried, ("size 10", "0")}
    assert _panels(dots[::-1]) == ["size 3", "size 10"]
