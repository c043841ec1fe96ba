"""Versions that are not supported are named where something fails, and only there."""

import importlib
import inspect
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import lightning_root
from lightning_root.cli import main
from lightning_root.cli.doctor import OPTIONAL
from lightning_root.versions import REQUIRED, Version, explain

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
"""The table of that name."""


def ranges(requirements):
    parsed = map(Requirement, requirements)
    return {entry.name.replace("-", "_"): entry.specifier for entry in parsed}


def test_the_supported_ranges_are_those_that_pip_is_told():
    named = {name.replace("-", "_"): SpecifierSet(text) for name, text in REQUIRED.items()}
    assert named == ranges(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    for name, (supported, _, extra) in OPTIONAL.items():
        told = ranges(extras[extra or "dev"])
        assert told[name.replace("-", "_")] == SpecifierSet(supported), name


@pytest.fixture
def versions(monkeypatch):
    """Make pip's own records say that a package is of another version, None for not there."""

    def pretend(**found):
        real = metadata.version

        def version(name):
            if found.get(name, name) is None:
                raise metadata.PackageNotFoundError(name)
            return found.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def notes(error):
    explain(error)
    return getattr(error, "__notes__", [])


@pytest.mark.parametrize(
    ("package", "found", "line"),
    [
        (
            "jsonargparse",
            "5.0.0",
            "jsonargparse 5.0.0 is outside the supported range >=4.39,<5: "
            "pip install 'jsonargparse>=4.39,<5'",
        ),
        (
            "lightning",
            "2.7.0",
            "lightning 2.7.0 is outside the supported range >=2.6.4,<2.7: "
            "pip install 'lightning>=2.6.4,<2.7'",
        ),
        (
            "torch",
            "2.16.0.dev20261201+cu130",
            "torch 2.16.0.dev20261201+cu130 is outside the supported range >=2.11,<2.16: "
            "pip install 'torch>=2.11,<2.16'",
        ),
        (
            "torchmetrics",
            None,
            "torchmetrics is not installed: pip install 'torchmetrics>=1.6'",
        ),
    ],
)
def test_one_line_names_package_version_range_and_command(versions, package, found, line):
    versions(**{package: found})
    assert notes(AttributeError("no such thing")) == [line]


def test_versions_inside_are_not_spoken_of(versions):
    versions(**{name: text.split(",")[0].removeprefix(">=") for name, text in REQUIRED.items()})
    assert notes(AttributeError("no such thing")) == []


def test_a_build_of_ones_own_counts_as_its_release():
    assert Version("torch", "2.13.0+cpu", ">=2.11,<2.16").fits
    assert Version("torch", "2.15.0.dev20261101", ">=2.11,<2.16").fits


def test_a_torch_that_cannot_load_torch_npu_is_explained():
    """The words are torch's own, from `torch._import_device_backends`."""
    source = inspect.getsource(torch._import_device_backends)
    assert "Failed to load the backend extension: {backend_extension.name}" in source
    (note,) = notes(RuntimeError("Failed to load the backend extension: torch_npu. You can ..."))
    assert "set_env.sh" in note
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in note


def test_an_import_that_fails_says_so(versions, monkeypatch):
    versions(lightning="2.9.0")
    monkeypatch.setitem(sys.modules, "lightning_root.module", None)
    try:
        with pytest.raises(ImportError) as failed:
            importlib.reload(lightning_root)
    finally:
        monkeypatch.undo()
        importlib.reload(lightning_root)
    assert "lightning 2.9.0 is outside" in failed.value.__notes__[0]


def test_a_command_that_fails_says_so(versions, monkeypatch):
    versions(jsonargparse="5.1")

    def removed(*args, **options):
        raise AttributeError("'ArgumentParser' object has no attribute 'add_subcommands'")

    monkeypatch.setattr("lightning_root.cli.lightning.MainParser.add_subcommands", removed)
    with pytest.raises(AttributeError) as failed:
        main(["fit"])
    assert "jsonargparse 5.1 is outside" in failed.value.__notes__[0]
