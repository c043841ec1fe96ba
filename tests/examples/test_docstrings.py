"""The examples in docstrings of `examples` run; pytest itself collects those of the package."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SHOWN = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in PROJECT.glob("examples/**/*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("module", SHOWN)
def test_an_example_prints_what_its_docstring_shows(module):
    if module == "examples.language.export":
        pytest.importorskip("transformers", reason="the export needs transformers")
    found = doctest.testmod(import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
