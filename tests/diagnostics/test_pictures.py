"""Heat maps, as pixels, and the bounded memory that they are drawn from."""

import sys

import numpy as np
import pytest
import torch

from lightning_root.diagnostics import history
from lightning_root.diagnostics.board import CELL, heat_map, plain_heat_map
from lightning_root.diagnostics.history import History


def test_each_column_is_the_mean_of_its_points(monkeypatch):
    """Eight columns at most: after 27 points, six of four points each and one of three."""
    monkeypatch.setattr(history, "MAX_COLUMNS", 8)
    points = torch.rand(27, 2, 3)
    kept = History(2)
    for number, point in enumerate(points):
        kept.add(10 * number, {f"layer {i}": point[:, i] for i in range(3)})
        assert kept.values().shape[2] <= 8
    expected = [points[start : start + 4].mean(dim=0) for start in range(0, 27, 4)]
    torch.testing.assert_close(kept.values(), torch.stack(expected, dim=2))
    assert kept.column_steps() == [30, 70, 110, 150, 190, 230, 260]


def test_labels_that_come_late_or_pause_have_gaps(monkeypatch):
    monkeypatch.setattr(history, "MAX_COLUMNS", 4)
    kept = History(1)
    for step in range(6):
        layers = {"always": torch.tensor([1.0])}
        if step in (3, 5):
            layers["late"] = torch.tensor([float(step)])
        kept.add(step, layers)
    assert kept.labels == ["always", "late"]
    expected = torch.tensor([[1.0, 1.0, 1.0], [torch.nan, 3.0, 5.0]])
    torch.testing.assert_close(kept.values()[0], expected, equal_nan=True)


def test_what_is_not_finite_counts_as_missing():
    kept = History(1)
    kept.width = 2
    for value in (torch.inf, 4.0, torch.nan, -torch.inf):
        kept.add(0, {"layer": torch.tensor([value])})
    expected = torch.tensor([[[4.0, torch.nan]]])
    torch.testing.assert_close(kept.values(), expected, equal_nan=True)


def test_a_restored_history_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(history, "MAX_COLUMNS", 4)
    whole, half = History(2), History(2)
    points = torch.rand(13, 2)
    for step, point in enumerate(points):
        whole.add(step, {"layer": point})
        if step < 7:
            half.add(step, {"layer": point})
    restored = History(2)
    restored.load_state_dict(half.state_dict())
    for step, point in enumerate(points[7:], start=7):
        restored.add(step, {"layer": point})
    assert torch.equal(restored.values(), whole.values())
    assert restored.column_steps() == whole.column_steps()
    assert restored.points == whole.points == 13


@pytest.mark.parametrize("points", [2, 5])
def test_a_history_from_before_a_statistic_was_added_goes_on_without_it(monkeypatch, points):
    monkeypatch.setattr(history, "MAX_COLUMNS", 4)
    earlier, later = History(1), History(2)
    for step in range(points):
        earlier.add(step, {"layer": torch.tensor([float(step)])})
    later.load_state_dict(earlier.state_dict())
    expected = earlier.values()[0]
    torch.testing.assert_close(later.values()[0], expected)
    assert later.values()[1].isnan().all()
    later.add(points, {"layer": torch.tensor([7.0, 3.0])})
    assert later.values()[1, 0, -1] == 3.0


def test_a_history_of_nothing_is_empty_and_can_be_restored():
    empty = History(3)
    empty.load_state_dict(History(3).state_dict())
    assert empty.values().shape == (3, 0, 0)


def test_plain_pictures_are_matplotlibs_colours():
    """The five anchors of "viridis" are where the values are, one square each; grey is missing."""
    from matplotlib import colormaps

    values = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, np.nan]])
    pixels = plain_heat_map(values)
    assert pixels.shape == (2 * CELL, 3 * CELL, 3)
    centres = pixels[CELL // 2 :: CELL, CELL // 2 :: CELL].reshape(-1, 3).astype(int)
    expected = colormaps["viridis"](np.linspace(0, 1, 5))[:, :3] * 255
    assert np.abs(centres[:5] - expected).max() <= 2
    assert centres[5].tolist() == [200, 200, 200]


@pytest.mark.parametrize("values", [torch.full((2, 3), torch.nan), torch.ones(2, 3)])
def test_pictures_of_one_value_or_none_are_drawn_without_a_warning(values):
    for drawn in (plain_heat_map(values.numpy()), heat_map(values, ["a", "b"], [1, 2, 3], "title")):
        assert drawn.dtype == np.uint8


def test_without_matplotlib_pictures_are_plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    values = torch.rand(3, 4)
    drawn = heat_map(values, ["a", "b", "c"], [1, 2, 3, 4], "title")
    assert np.array_equal(drawn, plain_heat_map(values.double().numpy()))


def test_matplotlib_draws_every_value_where_it_belongs():
    """One bright value, low on the right, in an otherwise dark picture."""
    values = torch.zeros(10, 20)
    values[7, 15] = 1.0
    names = [f"layer {number}" for number in range(10)]
    pixels = heat_map(values, names, list(range(20)), "title")
    yellow = (pixels.astype(int) - np.array([253, 231, 37])).__abs__().max(axis=2) < 8
    dark = (pixels.astype(int) - np.array([68, 1, 84])).__abs__().max(axis=2) < 8
    rows, columns = np.nonzero(dark)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    # The colour bar beside it is dark below and yellow above; leave it out.
    inside = yellow[top : bottom + 1, left : int(left + 0.9 * (right - left))]
    y, x = np.argwhere(inside).mean(axis=0)
    assert y / (bottom - top) == pytest.approx(0.75, abs=0.05)
    assert 0.65 < x / (right - left) < 0.8


def test_a_model_of_many_layers_has_a_picture_of_bounded_size():
    names = [f"blocks.{number}.a.rather.long.name.of.a.parameter.weight" for number in range(700)]
    pixels = heat_map(torch.rand(700, 30), names, list(range(30)), "title")
    assert pixels.shape[0] < 1200
    assert pixels.shape[1] == 800
