"""Errors of a configuration, in one line that names the key."""

import re
import textwrap
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]

NOT_TEXT: Final = (
    "`--config` must be a YAML file, got one that is no text; a checkpoint is given as "
    "`--ckpt_path`"
)

_KEY = re.compile(r"""^(?:-\s*)?(?:Parser key|Group key) ["']([^"']+)["']:?\s*(.*)""")
_REASON = re.compile(
    r"(Option '.*' is not accepted|Expected .*Got value.*|Key .*not.*|.*is required.*)"
)
_GIVEN = re.compile(r"Given value:\s*(.*)")
_CLASS = re.compile(r"^(?:- )?Problem with given class_path")
_EXPECTED_PATH = "- Expected a dot import path string:"
_BASE = re.compile(r"given class_path 'torch\.optim\.(?:Optimizer|lr_scheduler\.LRScheduler)'")
"""The class that an option is taken to be of where none was named."""
_NO_MAPPING = "Unexpected config:"
_TRIED = ("- Expected", "- Does not validate", "- Not a valid", "- Problem", "- a ")
"""Beginnings of lines about the types that a value was tried as, not about what is wrong."""


def check_yaml(arguments: Sequence[str]) -> None:
    """Raise ValueError, with the place, which jsonargparse leaves out, if a file is no YAML."""
    for word, following in pairwise([*arguments, ""]):
        option, joined, value = word.partition("=")
        if option not in ("-c", "--config"):
            continue
        path = Path(value if joined else following)
        try:
            list(yaml.compose_all(path.read_text(encoding="utf-8"), yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark, problem = error.problem_mark, " ".join(str(error.problem).split())
            place = f"line {mark.line + 1}, column {mark.column + 1}"
            raise ValueError(
                f"`--config` must be a YAML file, but in '{path}' at {place}: {problem}"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue


def one_line(message: str) -> str:
    """Shorten jsonargparse's report on all types that a value was tried as to the nearest one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if message.startswith(_NO_MAPPING):
        content = " ".join(lines).removeprefix(_NO_MAPPING).strip()
        found = f"a file that begins with {content[:40]!r}" if content else "an empty file"
        return f"`--config` must be a YAML file of keys with values, got {found}"
    if len(lines) < 2:
        return message.strip()
    keys: list[str] = []
    if _BASE.search(message) and (first := _KEY.match(lines[0])):
        return f"{first[1]}: name the class before its options: `--{first[1]} package.Class`"
    for line in lines:
        if match := _KEY.match(line):
            keys.append(match[1])
            line = match[2]
        if match := _REASON.search(line):
            reason = _in_yaml_terms(match[1])
            return f"{'.'.join(keys)}: {reason}" if keys else reason
    key = f"{'.'.join(keys)}: " if keys else ""
    given = [match[1] for line in lines if (match := _GIVEN.match(line))]
    if raised := _raised(lines):
        got = f". Got value: {given[0]}" if given and raised.startswith("Import path") else ""
        return f"{key}{raised}{got}"
    expected = [
        _in_yaml_terms(line).removeprefix("expected ")
        for line in lines
        if line.startswith("- Expected")
        and not line.startswith((_EXPECTED_PATH, "- Expected a path but"))
    ]
    classes = [
        x.removeprefix(_EXPECTED_PATH).strip() for x in lines if x.startswith(_EXPECTED_PATH)
    ]
    if any(classes) and expected in ([], ["null"]):
        return f"{key}no class is known by the name {classes[0]}; give its path: package.Class"
    reason = f"expected {' or '.join(dict.fromkeys(expected))}" if expected else " ".join(lines[1:])
    reason = f"{reason}. Got value: {given[0] or repr('')}" if given else reason
    return f"{key}{reason}" if keys else f"{lines[0]} {reason}"


def loading_error(error: BaseException) -> str | None:
    """Return in one line why a checkpoint cannot be resumed from; None for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    places = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in frames]
    # A fault of the user's own code keeps its traceback.
    known = places[-1][0].partition(".")[0] in ("lightning", "lightning_root", "torch")
    if not known or not any(
        name.endswith(".checkpoint_connector") and ("restore" in function or "resume" in function)
        for name, function in places
    ):
        return None
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"`ckpt_path`: {textwrap.shorten(text, 600, placeholder=' ...')}"


def _raised(lines: list[str]) -> str | None:
    """Return what the import of a class, or the class itself, has raised."""
    pairs = list(pairwise([*lines, ""]))
    known = any(_CLASS.match(line) and _KEY.match(after) for line, after in pairs)
    for line, after in pairs:
        if known and line.startswith("- Import path"):
            continue  # of another kind that was tried: the class fits, a value of it does not
        if _CLASS.match(line) and not after.startswith("- ") and not _KEY.match(after):
            return f"{line.removeprefix('- ')} {after}"
        if line.startswith("- ") and not line.startswith(_TRIED):
            return line.removeprefix("- ")
    return None


def _in_yaml_terms(text: str) -> str:
    """Replace Python's names of types by YAML's."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text.removeprefix("- "))
    text = text.replace("typing.Literal", "one of ").replace("NoneType", "null")
    return re.sub(r"^Expected (an? )?", "expected ", text)
