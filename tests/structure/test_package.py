"""The size of the package, and what its files import of each other. These numbers may only fall."""

import ast
from collections import defaultdict
from pathlib import Path

import lightning_root

PACKAGE = Path(lightning_root.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}

MAX_LINES = 21_160
MAX_FILES = 150

KNOWN = ()
"""Circles of imports, be it within functions or for types alone; they may only become fewer."""

RIDDLES = ("What ", "How ", "Of which ", "The same")
"""Beginnings of docstrings that say neither what is done nor what something is."""

MAX_RIDDLES = 0


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """Yield what a file imports, wherever in it the import stands."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in MODULES else base


def circles(edges):
    """Return the strongly connected components of more than one module (Tarjan's algorithm)."""
    order, low, waiting, found = {}, {}, [], []

    def visit(module):
        order[module] = low[module] = len(order)
        waiting.append(module)
        for other in edges[module]:
            if other not in order:
                visit(other)
            if other in waiting:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            at = waiting.index(module)
            found.append(set(waiting[at:]))
            del waiting[at:]

    for module in edges:
        if module not in order:
            visit(module)
    return [component for component in found if len(component) > 1]


def public_names():
    """Return what every `__all__` of the package has."""
    return {
        element.value
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
        for element in ast.walk(node.value)
        if isinstance(element, ast.Constant) and isinstance(element.value, str)
    }


def internal_docstrings(tree):
    """Yield (line, text) of every docstring but those of public names and their public methods."""
    public = public_names()
    owners = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

    def inside(node, is_public):
        for child in ast.iter_child_nodes(node):
            own = False
            if isinstance(child, owners):
                at_top = isinstance(node, ast.Module)
                own = child.name in public if at_top else is_public and child.name[0] != "_"
                if not own and (text := ast.get_docstring(child)):
                    yield child.lineno, text
            elif is_text(child) and not isinstance(node, owners) and child is not node.body[0]:
                yield child.lineno, child.value.value  # below a constant
            yield from inside(child, own)

    if text := ast.get_docstring(tree):
        yield 1, text
    yield from inside(tree, True)


def is_text(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_the_package_does_not_grow():
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in FILES)
    assert lines <= MAX_LINES
    assert len(FILES) <= MAX_FILES


def test_no_other_files_import_each_other():
    edges = {
        module: sorted({other for other in imported(path) if other in MODULES} - {module})
        for module, path in MODULES.items()
    }
    found = [{name.partition(".")[2] for name in circle} for circle in circles(edges)]
    new = [circle for circle in found if not any(circle <= known for known in KNOWN)]
    assert not new, "circles of imports:\n" + "\n".join(
        f"{module} imports {other}"
        for circle in new
        for module in sorted(circle)
        for other in edges[f"lightning_root.{module}"]
        if other.partition(".")[2] in circle
    )
    gone = [known for known in KNOWN if not any(circle <= known for circle in found)]
    assert not gone, f"no circles any more, take them out of KNOWN: {gone}"


def test_internal_docstrings_begin_with_what_is_done():
    riddles = defaultdict(list)
    for path, tree in TREES.items():
        for line, text in internal_docstrings(tree):
            if text.strip().startswith(RIDDLES):
                riddles[str(path.relative_to(PACKAGE))].append((line, text.strip()[:50]))
    count = sum(map(len, riddles.values()))
    assert count <= MAX_RIDDLES, f"{count} of them: " + "\n".join(
        f"{file}:{line} {text}" for file, found in riddles.items() for line, text in found
    )
