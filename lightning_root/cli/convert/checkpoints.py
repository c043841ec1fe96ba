"""Checkpoints as files and folders, read so that nothing in them can run, and written whole."""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lightning_root.cli.convert.naming import StateDict

LIGHTNING_KEY: Final = "pytorch-lightning_version"
LIGHTNING_FILE: Final = "meta.pt"  # what, in a folder, is neither weights nor optimizer

_DCP: Final = "torch.distributed.checkpoint."

_METADATA_CLASSES: Final = frozenset(
    {
        *((f"{_DCP}metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
        *((f"{_DCP}metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
        *((f"{_DCP}metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
        (f"{_DCP}filesystem", "_StorageInfo"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    }
)
"""All that the `.metadata` of a distributed checkpoint may be made of."""


class SavedRun(NamedTuple):
    """The contents of the given files: optimizer states in their order, the model's weights."""

    checkpoint: dict[str, Any] | None  # of Lightning, if there is one
    optimizers: list[StateDict]
    weights: Mapping[str, Tensor] | None


def read_run(paths: Sequence[Path]) -> SavedRun:
    """Read checkpoints, of Lightning or others, that are one run; ValueError if they are not."""
    contents = [read_content(path) for path in paths]
    checkpoints = [dict(content) for content in contents if LIGHTNING_KEY in content]
    if len(checkpoints) > 1:
        raise ValueError("give one Lightning checkpoint at a time")
    optimizers = [state for content in contents for state in _optimizers(content)]
    if not optimizers:
        names = " and ".join(f"`{path}`" for path in paths)
        raise ValueError(f"there is no optimizer state in {names}; it may hold weights alone")
    weights = [found for content in contents for found in _weights(content)]
    if len(weights) > 1:
        raise ValueError(f"the files hold {len(weights)} sets of weights; give those of one model")
    return SavedRun(next(iter(checkpoints), None), optimizers, next(iter(weights), None))


def _optimizers(content: Mapping[Any, Any]) -> list[StateDict]:
    """Return the optimizer states in a dict: itself, its values, or entries of these."""
    candidates: list[Any] = [content]
    for value in content.values():
        candidates += value if isinstance(value, list | tuple) else [value]
    dicts = [each for each in candidates if isinstance(each, Mapping)]
    return [dict(each) for each in dicts if {"state", "param_groups"} <= set(each)]


def _weights(content: Mapping[Any, Any]) -> list[Mapping[str, Tensor]]:
    """Return the model's weights, if any: the dict itself, or the first such value."""
    candidates = [each for each in (content, *content.values()) if isinstance(each, Mapping)]
    for each in candidates:
        if each and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in each.items()):
            return [each]
    return []


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError, before the work, if a file may not be written."""
    if path.is_dir():
        raise ValueError(f"`--output` must be a file, got the folder '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of `--output` does not exist: '{path.parent}'")
    if path.exists() and not overwrite:
        raise ValueError(
            f"'{path}' exists; give `--overwrite` to replace it, or another `--output`"
        )


def read_content(path: Path) -> Mapping[Any, Any]:
    """Read a file or the folder of a distributed checkpoint, if nothing in it can run."""
    folder = path.is_dir()
    if folder and not (path / ".metadata").is_file():
        raise ValueError(f"the folder '{path}' is no distributed checkpoint: it has no `.metadata`")
    if not folder and not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    try:
        content = _read_folder(path) if folder else _load(path)
    except (Exception, CheckpointException) as error:  # of bytes that are no checkpoint, any
        cause: BaseException = error
        if isinstance(error, CheckpointException):  # whose text is a whole traceback
            cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, MemoryError) or not isinstance(cause, Exception):
            raise cause from error
        raise ValueError(f"'{path}' {_fault(cause, folder=folder)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' must hold a dict, got {type(content).__name__}")
    return content


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _fault(error: BaseException, *, folder: bool) -> str:
    """Say what is wrong with a file or folder that could not be read."""
    text = str(error).strip()
    refused = re.search(r"GLOBAL (\S+)", text)
    if refused or (isinstance(error, pickle.UnpicklingError) and not folder):
        what = f"an object of `{refused[1]}`" if refused else "more than tensors and plain values"
        advice = (
            ". If you trust the file, load it by `torch.load(..., weights_only=False)`, take that "
            "out, and save the rest"
        )
        return (
            f"holds {what}, and reading that could run code of the {'folder' if folder else 'file'}"
            f"'s; this command reads tensors and plain values alone{'' if folder else advice}"
        )
    reason = (text.splitlines() or [type(error).__name__])[0]
    if "weights_only" in reason:  # torch's advice to read it all the same
        reason = "a file in it is not one of torch's"
    return f"is no {'distributed ' if folder else ''}checkpoint, or is not complete: {reason}"


def _read_folder(path: Path) -> dict[str, Any]:
    """Read in one process the whole checkpoint that several have written."""
    # By torch's own reader and planner, as `dcp_to_torch_save` does it, but for two places where
    # these would unpickle whatever a folder holds.
    content: dict[str, Any] = {}
    reader, planner = _Reader(path), _Planner()  # type: ignore[no-untyped-call]
    _load_state_dict(content, storage_reader=reader, planner=planner, no_dist=True)
    if (path / LIGHTNING_FILE).is_file():
        content |= _load(path / LIGHTNING_FILE)
    numbered = [key for key in content if re.fullmatch(r"optimizer_\d+", key)]
    if numbered:
        # A state without parameters has lost its empty parts on the way.
        content["optimizer_states"] = [
            {"state": {}, "param_groups": [], **content.pop(key)}
            for key in sorted(numbered, key=lambda key: int(key.removeprefix("optimizer_")))
        ]
    return content


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes that describe a checkpoint, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # worded as by torch.load


class _Reader(FileSystemReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with (path / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{type(metadata).__name__} instead of metadata")
        self.metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self.metadata


class _Planner(_EmptyStateDictLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        safe = torch.load(value, weights_only=True)
        again = io.BytesIO()
        torch.save(safe, again)
        again.seek(0)
        super().load_bytes(read_item, again)
