"""jsonargparse's account of what is wrong with a configuration, in one line that names the key."""

import re
from typing import Final

NO_TEXT: Final = (
    "`--config` must be a YAML file, got one that is no text; a checkpoint is given as "
    "`--ckpt_path`"
)

_KEY = re.compile(r"""^(?:-\s*)?(?:Parser key|Group key) ["']([^"']+)["']:?\s*(.*)""")
_REASON = re.compile(
    r"(Option '.*' is not accepted|Expected .*Got value.*|Key .*not.*|.*is required.*)"
)
_GIVEN = re.compile(r"Given value:\s*(.*)")
_CLASS = re.compile(r"^(?:- )?Problem with given class_path")
_NAME = "- Expected a dot import path string:"
_BASE = re.compile(r"given class_path 'torch\.optim\.(?:Optimizer|lr_scheduler\.LRScheduler)'")
"""Of which class an option was taken to be where none was named."""
_NO_OPTIONS = "Unexpected config:"
_TRIED = ("- Expected", "- Does not validate", "- Not a valid", "- Problem", "- a ")
"""How lines begin that tell of types a value was tried as, not of what is wrong with it."""


def one_line(message: str) -> str:
    r"""Shorten a report on all types that a value was tried as to the one that came nearest.

    Args:
        message: Of jsonargparse; of several lines where a value may be of several types.

    Returns:
        The key and what is wrong with its value; a message of one line as it is.

    Example:
        >>> print(
        ...     one_line(
        ...         "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: x"
        ...     )
        ... )
        trainer.max_steps: expected int. Got value: x
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if message.startswith(_NO_OPTIONS):
        return _no_options(lines)
    if len(lines) < 2:
        return message.strip()
    keys: list[str] = []
    if _BASE.search(message) and (first := _KEY.match(lines[0])):
        return f"{first[1]}: name the class before its options: `--{first[1]} package.Class`"
    for line in lines:
        found = _KEY.match(line)
        if found:
            keys.append(found[1])
            line = found[2]
        if reason := _REASON.search(line):
            told = _plain(reason[1])
            return f"{'.'.join(keys)}: {told}" if keys else told
    key = f"{'.'.join(keys)}: " if keys else ""
    given = [found[1] for line in lines if (found := _GIVEN.match(line))]
    if raised := _raised(lines):
        got = f". Got value: {given[0]}" if given and raised.startswith("Import path") else ""
        return f"{key}{raised}{got}"
    expected = [
        _plain(line)
        for line in lines
        if line.startswith("- Expected") and not line.startswith((_NAME, "- Expected a path but"))
    ]
    named = [line.removeprefix(_NAME).strip() for line in lines if line.startswith(_NAME)]
    if any(named) and expected in ([], ["expected null"]):
        return f"{key}no class is known by the name {named[0]}; give its path: package.Class"
    kinds = list(dict.fromkeys(words.removeprefix("expected ") for words in expected))
    told = f"expected {' or '.join(kinds)}" if kinds else " ".join(lines[1:])
    told = f"{told}. Got value: {given[0] or repr('')}" if given else told
    return f"{key}{told}" if keys else f"{lines[0]} {told}"


def _no_options(lines: list[str]) -> str:
    """A file that is text, but not keys with values."""
    content = " ".join(lines).removeprefix(_NO_OPTIONS).strip()
    held = f"a file that begins with {content[:40]!r}" if content else "an empty file"
    return f"`--config` must be a YAML file of keys with values, got {held}"


def _raised(lines: list[str]) -> str | None:
    """What the import of a class, or the class itself, has raised."""
    pairs = list(zip(lines, [*lines[1:], ""], strict=True))
    known = any(_CLASS.match(line) and _KEY.match(after) for line, after in pairs)
    for line, after in pairs:
        if known and line.startswith("- Import path"):
            continue  # of another kind that was tried: the class fits, a value of it does not
        if _CLASS.match(line) and not after.startswith("- ") and not _KEY.match(after):
            return f"{line.removeprefix('- ')} {after}"
        if line.startswith("- ") and not line.startswith(_TRIED):
            return line.removeprefix("- ")
    return None


def _plain(words: str) -> str:
    """Types as YAML has them."""
    words = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", words.removeprefix("- "))
    words = words.replace("typing.Literal", "one of ").replace("NoneType", "null")
    return re.sub(r"^Expected (an? )?", "expected ", words)
