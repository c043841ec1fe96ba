"""What is public is documented, and what the documents point to is there."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import lightning_root

PROJECT = Path(lightning_root.__file__).parents[1]
PUBLIC = [
    "lightning_root",
    "lightning_root.coefficients",
    "lightning_root.diagnostics",
    "lightning_root.diagnostics.metrics",
    "lightning_root.functional",
    "lightning_root.kernels",
    "lightning_root.npu",
    "lightning_root.optim",
    "lightning_root.partition",
]
"""The packages that others import from: `make docs` makes a page of each."""

DOCUMENTS = sorted(
    str(path.relative_to(PROJECT))
    for path in [*PROJECT.glob("*.md"), *PROJECT.glob("examples/**/*.md")]
)
ACTIONS = ("Add", "Fit", "Give", "Make", "Move", "Read", "Run", "Split", "Write")
"""First words of sentences that say what is done and not what comes of it."""


def public_names():
    for package in PUBLIC:
        for name in importlib.import_module(package).__all__:
            yield pytest.param(package, name, id=f"{package}.{name}")


@cache
def parsed(module):
    return ast.parse(inspect.getsource(sys.modules[module]))


@cache
def documented_constants():
    """Names that a module assigns and explains in the string below."""
    found = set()
    for module in [name for name in sys.modules if name.startswith("lightning_root.")]:
        if sys.modules[module] is None:
            continue
        body = parsed(module).body
        for statement, after in pairwise(body):
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if explained and isinstance(statement, ast.Assign | ast.AnnAssign):
                target = getattr(statement, "target", None) or statement.targets[0]
                found.add(target.id)
    return found


def constructor(value):
    """What is called with the arguments that the docstring has to explain; None if inherited."""
    if not inspect.isclass(value):
        return value
    return vars(value).get("__init__")


def raised(function):
    """The names of the exceptions that the function itself raises."""
    if inspect.unwrap(function).__code__.co_filename == "<string>":  # a dataclass's constructor
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {call.func.id for call in calls if isinstance(call, ast.Call)}


@pytest.mark.parametrize(("package", "name"), [*public_names()])
def test_what_is_public_is_explained(package, name):
    value = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        assert name in documented_constants(), "a constant needs a string below it"
        return
    text = value.__doc__ or ""
    assert text.strip()
    function = constructor(value)
    if function is None:
        return
    signature = inspect.signature(function)
    arguments = text.partition("Args:")[2]
    for parameter in signature.parameters.values():
        if parameter.name != "self" and not parameter.name.startswith("_"):
            assert re.search(rf"(?m)^\s+\**{parameter.name}:", arguments), parameter.name
    if inspect.isfunction(value) and signature.return_annotation not in (None, "None"):
        says = "Returns:" in text or "Yields:" in text or text.split()[0] not in ACTIONS
        assert says, "what it returns"
    for exception in raised(function) if function.__module__.startswith("lightning_root") else ():
        assert exception in text or exception == "AssertionError", exception


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = re.sub(r"(?s)```.*?```", "", (PROJECT / document).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (PROJECT / document).parent / file if file else PROJECT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("document", [*DOCUMENTS, "configs", "lightning_root"])
def test_files_and_names_that_are_spoken_of_exist(document):
    """In documents, in comments of configurations, in docstrings."""
    path = PROJECT / document
    files = [path] if path.is_file() else [*path.rglob("*.yaml"), *path.rglob("*.py")]
    for file in files:
        text = file.read_text()
        for name in set(re.findall(r"\b(?:configs|examples)/[\w/]+\.(?:yaml|py|md|png)", text)):
            assert (PROJECT / name).exists(), f"{file.name}: {name}"
        for name in set(re.findall(r"(?<![\w/.])lightning_root(?:\.[A-Za-z]\w*)+", text)):
            assert resolves(name), f"{file.name}: {name}"


@cache
def resolves(name):
    """Whether it is a module, or an attribute of one."""
    module, _, rest = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        if not module:
            return False
        parent = resolved(module)
        return parent is not None and hasattr(parent, rest)
    return True


def resolved(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        module, _, rest = name.rpartition(".")
        parent = resolved(module) if module else None
        return getattr(parent, rest, None)
