"""Fits are made once; a broken or read-only cache never stops anything."""

import json
import os
import stat
import sys

import pytest

from lightning_root import fit_coefficients, lookup
from lightning_root.coefficients import (
    Coefficients,
    load_coefficients,
    save_coefficients,
    store,
)
from lightning_root.coefficients.lookup import needs_fit

UNSEEN = (3, 77)  # too small for the shipped table


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and nothing remembered."""
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path / "cache"))
    before = dict(store.known)
    store.known.clear()
    yield tmp_path / "cache"
    store.known.clear()
    store.known.update(before)


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["adaptive", "paper"])
def test_an_unseen_shape_is_fitted_once_and_read_back_to_the_last_digit(cache, name, monkeypatch):
    first = lookup(UNSEEN, name)
    assert [path.name for path in files(cache)] == [f"{name}-3x77-5.json"]
    store.known.clear()
    monkeypatch.setattr(sys.modules[needs_fit.__module__], "fit_coefficients", None)
    assert lookup(UNSEEN[::-1], name) == first
    assert lookup(UNSEEN, name) is lookup(UNSEEN, name)


def test_shapes_of_the_table_touch_no_disk(cache):
    for shape in ((8, 8), (768, 3072), (16384, 53248)):
        assert not needs_fit(shape, "adaptive", 5)
        lookup(shape)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({"format": "lightning_root coefficients 1"})),
        lambda path: path.write_text(path.read_text().replace("77", "78")),
        lambda path: path.write_text(path.read_text().replace('"triples"', '"tripel"')),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_file_is_ignored_and_written_again(cache, damage):
    first = lookup(UNSEEN, "paper")
    (path,) = files(cache)
    damage(path)
    store.known.clear()
    assert lookup(UNSEEN, "paper") == first
    if path.is_file():
        assert load_coefficients(path) == [first]


def test_unbounded_numbers_in_the_cache_are_not_believed(cache):
    first = lookup(UNSEEN, "paper")
    (path,) = files(cache)
    values = json.loads(path.read_text())
    values["coefficients"][0]["triples"][0] = [9.0, 9.0, 9.0]
    path.write_text(json.dumps(values))
    store.known.clear()
    assert lookup(UNSEEN, "paper") == first


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_fit(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path / "file" / "below"))
    assert lookup(UNSEEN, "paper").steps == 5


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_costs_nothing_but_the_fit(cache):
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert lookup(UNSEEN, "paper").steps == 5
    cache.chmod(stat.S_IRWXU)
    assert files(cache) == []


def test_no_home_folder_costs_nothing_but_the_fit(monkeypatch):
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", "~nobody-of-that-name/cache")
    assert lookup(UNSEEN, "paper").steps == 5


def test_sets_come_back_from_a_file(tmp_path):
    sets = [
        fit_coefficients((16, 64), 3),
        lookup((768, 768), "muon"),
        lookup((3, 4), [(1.5, -0.5, 0)], 1),
    ]
    save_coefficients(tmp_path / "sets.json", sets)
    assert load_coefficients(tmp_path / "sets.json") == sets


def test_a_file_says_what_is_known_of_a_set(tmp_path):
    known = lookup((768, 768), "muon")
    save_coefficients(tmp_path / "sets.json", [known])
    text = (tmp_path / "sets.json").read_text()
    for name in ("source", "spectrum", "range", "stable_up_to", "bfloat16_error"):
        assert f'"{name}": ' in text


@pytest.mark.parametrize("entry", ["3", "{}", '{"triples": 1}', '{"triples": [[1, 2]]}'])
def test_a_malformed_entry_is_named_with_its_file(tmp_path, entry):
    path = tmp_path / "x.json"
    path.write_text(f'{{"format": "lightning_root coefficients 1", "coefficients": [{entry}]}}')
    with pytest.raises(ValueError, match=r"x\.json` has a malformed entry"):
        load_coefficients(path)


# Bounded on [0, 1], with 1.95 at 1; 2.15 at 1.02, where round-off may take a singular value.
FRAGILE = [(1.0, 0.0, 0.0)] * 4 + [(0.0, 0.0, 1.95)]


@pytest.mark.parametrize("triples", [FRAGILE, [(1.5, -0.5, 0.0)] * 4], ids=["fragile", "short"])
def test_other_sets_in_the_cache_are_not_believed(cache, triples):
    """Those that round-off could blow up, and those of another length."""
    first = lookup(UNSEEN, "paper")
    (path,) = files(cache)
    values = json.loads(path.read_text())
    values["coefficients"][0]["triples"] = triples
    path.write_text(json.dumps(values))
    store.known.clear()
    assert lookup(UNSEEN, "paper") == first


@pytest.mark.parametrize(
    ("shape", "coefficients", "steps", "expected"),
    [
        ((7, 9), "adaptive", 5, True),
        ((8, 9), "adaptive", 5, False),
        ((32768, 32768), "adaptive", 5, False),
        ((32769, 40000), "adaptive", 5, True),
        ((3072, 2048), "paper", 5, False),
        ((3072, 2048), "paper", 4, True),
        ((7, 9), "paper", 5, True),
        ((7, 9), "muon", 5, False),
        ((7, 9), (1.5, -0.5, 0.0), 5, False),
        ((9, 7), {"7x9": [(1.5, -0.5, 0.0)] * 5}, 5, False),
        ((9, 8), {"7x9": [(1.5, -0.5, 0.0)] * 5, "otherwise": "paper"}, 5, True),
        ((9, 8), {"7x9": [(1.5, -0.5, 0.0)] * 5}, 5, False),
        ((5, 7), {"7x9": [(1.5, -0.5, 0.0)] * 5}, 5, True),
    ],
)
def test_what_needs_a_fit_is_known_beforehand(shape, coefficients, steps, expected):
    assert needs_fit(shape, coefficients, steps) is expected


SOUND = {"triples": [[1.5, -0.5, 0.0]]}


@pytest.mark.parametrize(
    "values",
    [
        [],
        {"format": "lightning_root coefficients 1"},
        {"format": "lightning_root coefficients 1", "coefficients": []},
        {"format": "lightning_root coefficients 1", "coefficients": SOUND},
        {"format": "lightning_root coefficients 2", "coefficients": [SOUND]},
        {"coefficients": [SOUND]},
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, values):
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"x\.json` is not a file of coefficients"):
        load_coefficients(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(None, None), ([5, 1], (1, 5)), ([4, 4], (4, 4)), ([0, 4], ""), ([4], ""), ([1, 2, 3], "")],
)
def test_a_shape_in_a_file_is_two_sizes_in_either_order(shape, expected):
    if expected == "":
        with pytest.raises(ValueError, match="`shape` must be two sizes >= 1 or null"):
            Coefficients.from_dict({**SOUND, "shape": shape})
    else:
        assert Coefficients.from_dict({**SOUND, "shape": shape}).shape == expected
