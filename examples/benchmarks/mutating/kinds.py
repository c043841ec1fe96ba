"""What a mutant changes: which expression, into what, and of which kind that is."""

import ast
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

WORDING: Final = "wording"
"""The kind of what only a reader of messages would notice; such mutants are not tried."""

OPERATORS: Final = {ast.cmpop: "comparison", ast.boolop: "and, or", ast.operator: "arithmetic"}


class Change(NamedTuple):
    """One mutant.

    Args:
        kind: Of mutation.
        old: The lines that it changes.
        new: What they become.
    """

    kind: str
    old: str
    new: str


def functions(mutated: Path) -> dict[str, ast.FunctionDef]:
    """The functions that mutmut wrote into one file, mutants and originals, by their names."""
    tree = ast.parse(mutated.read_text("utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {node.name: node for node in nodes if "__mutmut_" in node.name}


def change(name: str, written: Mapping[str, ast.FunctionDef]) -> Change:
    """What the mutant of that name changes.

    Args:
        name: As mutmut names it, without the module.
        written: The functions of its file.
    """
    original = written[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
    path = list(_difference(original, written[name]))
    old, new = (ast.unparse(node).splitlines() for node in (original, written[name]))
    lines = [line for line in difflib.ndiff(old[1:], new[1:]) if line[0] in "+-"]
    if not lines:  # a default of a parameter
        plain = original.name.rpartition("__mutmut_")[0].removeprefix("x_").rpartition("ǁ")[2]
        lines = [f"- {old[0]}", f"+ {new[0]}"]
        lines = [line.replace(name, plain).replace(original.name, plain) for line in lines]
    sides = (" ".join(line[2:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return Change(_kind(path), *sides)


def _difference(old: ast.AST, new: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The nodes around the one difference, from the function to where nothing is shared."""
    yield old, new
    if type(old) is not type(new):
        return
    pairs = []
    for field in old._fields:
        if field == "name" and isinstance(old, ast.FunctionDef):
            continue
        left, right = getattr(old, field, None), getattr(new, field, None)
        if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            pairs += list(zip(left, right, strict=True))
        else:
            pairs.append((left, right))
    differing = [(left, right) for left, right in pairs if _text(left) != _text(right)]
    left, right = differing[0]
    if len(differing) == 1 and isinstance(left, ast.AST) and isinstance(right, ast.AST):
        yield from _difference(left, right)


def _text(value: object) -> str:
    """What two equal parts have in common, and no two others."""
    if isinstance(value, list):
        return str([_text(part) for part in value])
    return ast.dump(value) if isinstance(value, ast.AST) else repr(value)


def _kind(path: list[tuple[ast.AST, ast.AST]]) -> str:
    old, new = path[-1]
    around = [node for node, _ in path[:-1]]
    if _only_words(old, around):
        return WORDING
    for base, name in OPERATORS.items():
        if isinstance(old, base):
            return name
    if isinstance(new, ast.Constant) and new.value is None:
        return "value becomes None" if isinstance(around[-1], ast.stmt) else "argument becomes None"
    if isinstance(old, ast.Constant) and isinstance(new, ast.Constant):
        names = {bool: "True, False", str: "text", int: "number", float: "number"}
        return names.get(type(old.value), "value becomes None")
    if isinstance(old, ast.Call) and isinstance(new, ast.Call):
        return "argument left out"
    if isinstance(new, ast.BoolOp):
        return "one branch only"
    return {ast.AugAssign: "assignment", ast.UnaryOp: "not"}.get(type(old), "other")


def _only_words(old: ast.AST, around: list[ast.AST]) -> bool:
    """Whether it is in an error or a warning, or a sentence."""
    if any(isinstance(node, ast.Raise) or _warns(node) for node in [*around, old]):
        return True
    parts = old.values if isinstance(old, ast.JoinedStr) else [old]
    words = [part.value for part in parts if isinstance(part, ast.Constant)]
    return any(isinstance(word, str) and " " in word.strip() for word in words)


def _warns(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("warn", "_Error"))
