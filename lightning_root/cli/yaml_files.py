"""Configuration files, before jsonargparse reads them: it does not name those that are no YAML."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml  # type: ignore[import-untyped]


def check_yaml(arguments: Sequence[str]) -> None:
    """Refuse configuration files that are no YAML; what else may be wrong jsonargparse names.

    Args:
        arguments: Of the command line, where files are given as `--config`.

    Raises:
        ValueError: If one is no YAML, with the file, the place and the reason.
    """
    for path in _files(arguments):
        try:
            list(yaml.compose_all(path.read_text(encoding="utf-8"), yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark, told = error.problem_mark, " ".join(str(error.problem).split())
            place = f"line {mark.line + 1}, column {mark.column + 1}"
            raise ValueError(
                f"`--config` must be a YAML file, but in '{path}' at {place}: {told}"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue


def _files(arguments: Sequence[str]) -> Iterator[Path]:
    for word, following in pairwise([*arguments, ""]):
        option, joined, value = word.partition("=")
        if option in ("-c", "--config"):
            yield Path(value if joined else following)
