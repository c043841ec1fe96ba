"""Checkpoints as files: what is in them, read so that nothing in them can run, written whole."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root._files import atomic_write
from lightning_root.cli.convert.folder import read_folder
from lightning_root.cli.convert.naming import StateDict

LIGHTNING: Final = "pytorch-lightning_version"


@dataclass(frozen=True)
class Source:
    """What was found in the given files.

    Args:
        checkpoint: The Lightning checkpoint among them, if there is one.
        optimizers: States in their order.
        weights: The model's, if there are any.
    """

    checkpoint: dict[str, Any] | None
    optimizers: list[StateDict]
    weights: Mapping[str, Tensor] | None


def read_source(paths: Sequence[Path]) -> Source:
    """Read checkpoints and state dicts, which together are one run.

    Args:
        paths: A Lightning checkpoint, a file or the folder of a distributed one; or files with a
            model's weights and optimizer states, each for itself or in one dict.

    Raises:
        ValueError: If a file cannot be read safely, or they hold no optimizer, or two models.
    """
    contents = [read_content(path) for path in paths]
    checkpoints = [each for each in contents if LIGHTNING in each]
    if len(checkpoints) > 1:
        raise ValueError("give one Lightning checkpoint at a time")
    optimizers = [state for each in contents for state in _optimizers(each)]
    if not optimizers:
        names = " and ".join(f"`{path}`" for path in paths)
        raise ValueError(f"there is no optimizer state in {names}; it may hold weights alone")
    weights = [found for each in contents for found in _weights(each)]
    if len(weights) > 1:
        raise ValueError(f"the files hold {len(weights)} sets of weights; give those of one model")
    checkpoint = dict(checkpoints[0]) if checkpoints else None
    return Source(checkpoint, optimizers, weights[0] if weights else None)


def write(path: Path, content: Any, *, overwrite: bool) -> None:
    """Write a checkpoint, as a whole or not at all.

    Raises:
        ValueError: If the file is there and is not to be overwritten.
    """
    check_output(path, overwrite=overwrite)
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Check, before the work, that a file may be written.

    Raises:
        ValueError: If not.
    """
    if path.is_dir():
        raise ValueError(f"`--output` must be a file, got the folder '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of `--output` does not exist: '{path.parent}'")
    if path.exists() and not overwrite:
        raise ValueError(
            f"'{path}' exists; give `--overwrite` to replace it, or another `--output`"
        )


def read_content(path: Path) -> Mapping[Any, Any]:
    """What a file holds, or the folder of a distributed checkpoint, if nothing in it can run.

    Raises:
        ValueError: If it cannot be read safely, is not complete, or holds something else.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"an object of `{found[1]}`" if found else "more than tensors and plain values"
        raise ValueError(
            f"'{path}' holds {what}, and reading that could run code of the file's; this command "
            "reads tensors and plain values alone. If you trust the file, load it by "
            "`torch.load(..., weights_only=False)`, take that out, and save the rest"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no checkpoint may raise anything: KeyError, "101"
        raise ValueError(f"'{path}' is no checkpoint, or is not complete: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' must hold a dict, got {type(content).__name__}")
    return content


def _optimizers(content: Any) -> list[StateDict]:
    """The optimizer states in a dict: itself, its values, or lists of them."""
    if isinstance(content, Mapping):
        if {"state", "param_groups"} <= set(content):
            return [dict(content)]
        return [state for value in content.values() for state in _shallow(value)]
    return []


def _shallow(value: Any) -> list[StateDict]:
    entries = value if isinstance(value, list | tuple) else [value]
    return [
        dict(entry)
        for entry in entries
        if isinstance(entry, Mapping) and {"state", "param_groups"} <= set(entry)
    ]


def _weights(content: Mapping[Any, Any]) -> list[Mapping[str, Tensor]]:
    """The model's weights: a dict of tensors with names, itself or among its values."""
    candidates = [content, *content.values()]
    return [each for each in candidates if isinstance(each, Mapping) and _all_tensors(each)][:1]


def _all_tensors(values: Mapping[Any, Any]) -> bool:
    """Whether these are weights, with whatever else modules may keep beside them."""
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    return bool(tensors) and len(tensors) == len(values) and all(isinstance(k, str) for k in values)
