"""A distributed checkpoint's folder, brought together in one process.

By torch's own reader and planner, as `dcp_to_torch_save` does it, but for two places where these
would unpickle whatever a folder holds.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

LIGHTNINGS_FILE = "meta.pt"
"""Where Lightning puts what is neither weights nor optimizer."""

_CHECKPOINT: Final = "torch.distributed.checkpoint."

_HARMLESS: Final = frozenset(
    {
        *((f"{_CHECKPOINT}metadata", name) for name in ("Metadata", "MetadataIndex")),
        *((f"{_CHECKPOINT}metadata", name) for name in ("StorageMeta", "TensorProperties")),
        *((f"{_CHECKPOINT}metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes")),
        (f"{_CHECKPOINT}metadata", "ChunkStorageMetadata"),
        (f"{_CHECKPOINT}metadata", "_MEM_FORMAT_ENCODING"),
        (f"{_CHECKPOINT}filesystem", "_StorageInfo"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
    }
)
"""What the description of a checkpoint is made of."""

_DAMAGED: Final = (
    *(AttributeError, EOFError, ImportError, IndexError, KeyError, OSError, RuntimeError),
    *(TypeError, ValueError, pickle.UnpicklingError),
)
"""What torch's readers and pickle's raise of files that are missing, cut off or something else."""


def read_folder(path: Path) -> dict[str, Any]:
    """The whole checkpoint that several processes have written.

    Args:
        path: As `ModelParallelStrategy(save_distributed_checkpoint=True)` leaves it, or
            `torch.distributed.checkpoint.save`.

    Raises:
        ValueError: If it is not such a folder, is not complete, or could run code.
    """
    if not (path / ".metadata").is_file():
        raise ValueError(f"the folder '{path}' is no distributed checkpoint: it has no `.metadata`")
    try:
        found = _whole(path)
    except _DAMAGED as error:
        raise ValueError(f"'{path}' {_fault(error)}") from error
    numbered = [key for key in found if re.fullmatch(r"optimizer_\d+", key)]
    if numbered:
        found["optimizer_states"] = [
            _plain(found.pop(key)) for key in sorted(numbered, key=_number)
        ]
    return found


def _whole(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reader, planner = _Reader(path, _metadata(path)), _Planner()  # type: ignore[no-untyped-call]
    try:
        _load_state_dict(found, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:  # no `Exception`, and its text is a whole traceback
        raise next(iter(error.failures.values()))[0] from error
    extra = path / LIGHTNINGS_FILE
    if extra.is_file():
        found |= torch.load(extra, map_location="cpu", weights_only=True)
    return found


def _fault(error: Exception) -> str:
    text = str(error).strip()
    stranger = re.search(r"GLOBAL (\S+)", text)
    if stranger:
        return (
            f"holds an object of `{stranger[1]}`, and reading that could run code of the "
            "folder's; this command reads tensors and plain values alone"
        )
    words = (text.splitlines() or [type(error).__name__])[0]
    if "weights_only" in words:  # torch's advice to read it all the same
        words = "a file in it is not one of torch's"
    return f"is no distributed checkpoint, or is not complete: {words}"


def _number(key: str) -> int:
    return int(key.removeprefix("optimizer_"))


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state without parameters has lost its empty parts on the way."""
    return {"state": {}, "param_groups": [], **state}


class _Unpickler(pickle.Unpickler):
    """Knows the classes that describe a checkpoint, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # in the words of torch.load


def _metadata(path: Path) -> Metadata:
    with (path / ".metadata").open("rb") as file:
        metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError(f"{type(metadata).__name__} instead of metadata")
    return metadata


class _Reader(FileSystemReader):
    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        return self._metadata


class _Planner(_EmptyStateDictLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        safe = torch.load(value, weights_only=True)
        again = io.BytesIO()
        torch.save(safe, again)
        again.seek(0)
        super().load_bytes(read_item, again)
