"""What is left of a run, beside what should be."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

IGNORED: Final = ("ModelCheckpoint",)
"""Callbacks whose state names files by their paths, which differ from folder to folder."""


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, without running anything that is in it."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def unfinished(folder: Path) -> str:
    """Names of checkpoints that are left unfinished; empty if there are none."""
    return ", ".join(sorted(path.name for path in folder.glob(".*")))


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The first place where two checkpoints are not bitwise the same; empty if there is none."""
    return next(_differences(_comparable(expected), _comparable(found), ""), "")


def _comparable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    callbacks = checkpoint.get("callbacks", {})
    kept = {name: state for name, state in callbacks.items() if not name.startswith(IGNORED)}
    return {**checkpoint, "callbacks": kept}


def _differences(expected: Any, found: Any, where: str) -> Generator[str]:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if expected.keys() != found.keys():
            yield f"{where}: {sorted(map(str, expected.keys() ^ found.keys()))}"
        for key in expected.keys() & found.keys():
            yield from _differences(expected[key], found[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield f"{where}: {len(expected)} and {len(found)} entries"
        for number, pair in enumerate(zip(expected, found, strict=False)):
            yield from _differences(*pair, f"{where}/{number}")
    elif isinstance(expected, Tensor) and isinstance(found, Tensor):
        if expected.dtype != found.dtype or not torch.equal(bits(expected), bits(found)):
            yield f"{where}: {expected} and {found}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{where}: {expected!r} and {found!r}"


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: a NaN is then equal to itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
