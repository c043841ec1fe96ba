"""Triton's kernels are used where they were right and faster, measured once per GPU and saved."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, TypeAlias, get_args

import torch

from lightning_root.kernels.rates import load_or_measure, machine_file
from lightning_root.kernels.triton import tiles
from lightning_root.kernels.triton.tiles import NO_KERNELS, Tuning

KernelOption: TypeAlias = Literal["auto", "torch", "triton"]
"""Names that `kernels` takes."""

KERNEL_OPTIONS: Final[tuple[str, ...]] = get_args(KernelOption)
"""All of `KernelOption`."""

known: dict[str, Tuning] = {}  # what this process goes by, by device and dtype


def tuning_for(option: KernelOption, device: torch.device, dtype: torch.dtype) -> Tuning | None:
    """Return the kernels to use, None for none.

    Args:
        option: `"torch"` for none, `"triton"` for all, `"auto"` for the faster ones.
        device: Where the matrices are.
        dtype: Of the iteration.

    Raises:
        RuntimeError: If `option` is "triton" and they cannot run here.
    """
    if option == "torch" or dtype not in tiles.DTYPES:
        return None
    if option == "triton":
        if not can_run(device):
            raise RuntimeError(
                '`kernels="triton"` needs the package `triton` and a CUDA device, and the '
                f'parameters are on {str(device)!r}; leave `kernels` at "auto"'
            )
        return tiles.ALL_KERNELS_FLOAT32 if dtype == torch.float32 else tiles.ALL_KERNELS
    if device.type != "cuda" or not can_run(device):
        return None
    found = tuned(device, dtype)
    return None if found == NO_KERNELS else found


def can_run(device: torch.device) -> bool:
    """Return whether Triton is installed and runs on such a device."""
    if not _installed():
        return False
    if device.type == "cuda":
        return True
    from lightning_root.kernels.triton.language import interpreted

    return device.type == "cpu" and interpreted()


@cache
def _installed() -> bool:
    """Return whether the package `triton` is there."""
    return importlib.util.find_spec("triton") is not None


@cache
def _name(device: torch.device, dtype: torch.dtype) -> str:
    """Return a key for a kind of device and a dtype."""
    return f"{torch.cuda.get_device_name(device)} {str(dtype).removeprefix('torch.')}"


def tuned(device: torch.device, dtype: torch.dtype) -> Tuning:
    """Return what was measured on this kind of device, measured now if it never was."""
    name = _name(device, dtype)
    if name not in known:
        from lightning_root.kernels.triton.measurement import measure  # which imports Triton

        file = machine_file(f"{name} torch {torch.__version__}")
        found = load_or_measure(file, lambda: measure(device, dtype), _parse)
        known[name] = found or NO_KERNELS
    return known[name]


def _parse(values: Mapping[str, Any]) -> Tuning | None:
    """Read what was saved; None if it is damaged."""
    chosen = tuple(map(int, values["tiles"]))
    numbers = range(tiles.TORCH, len(tiles.TILES))
    sound = len(chosen) == len(tiles.SIZES) and all(tile in numbers for tile in chosen)
    return Tuning(chosen, bool(values["passes"]), bool(values["rounds"])) if sound else None
