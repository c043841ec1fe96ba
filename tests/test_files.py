"""A file is old or new, whole; the cache lies where the system keeps caches."""

import stat
import sys

import pytest

from lightning_root._files import atomic_write, cache_folder, remove_unfinished, write_json


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_ROOT_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lightning_root"
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", None, ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", None, "AppData/Local"),
        ("win32", "LOCALAPPDATA", "local"),
    ],
)
def test_every_system_has_its_own_place_for_caches(
    system, variable, expected, monkeypatch, tmp_path
):
    for name in ("LIGHTNING_ROOT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "local"))
    monkeypatch.setattr(sys, "platform", system)
    assert cache_folder() == tmp_path / expected / "lightning_root"


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "sets.json"
    write_json(path, {"x": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    path, other = tmp_path / "a[1].json", tmp_path / "b.json"
    with atomic_write(other) as draft:
        with atomic_write(path) as left:
            copy = left.with_name(left.name + "-of-a-killed-one")
            copy.write_text("half")
        remove_unfinished(path)
        assert sorted(tmp_path.iterdir()) == sorted([draft, path])


@pytest.mark.skipif(sys.platform == "win32", reason="without permissions of this kind")
def test_files_may_be_read_by_all_and_written_by_their_owner(tmp_path):
    write_json(tmp_path / "x.json", {})
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o644
