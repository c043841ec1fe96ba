"""Where Triton's kernels are used: where they were measured to be faster, once per GPU.

What is kept and read again is which tile is the fastest at each size, so that the same kernels are
chosen from run to run and results stay the same bit for bit. A kernel that fails to compile, or
whose result is not as close to the exact one as torch's, is not used.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeAlias, get_args

import torch

from lightning_root.kernels.kept import kept, machine_file

KernelOption: TypeAlias = Literal["auto", "torch", "triton"]
"""What `kernels` takes."""

KERNEL_OPTIONS: Final[tuple[str, ...]] = get_args(KernelOption)
"""All of `KernelOption`."""

SIZES: Final = (128, 256, 512, 1024, 2048, 4096)
"""Rows of the matrices that are tried; in between and beyond, the nearest decides."""

ALIGNED: Final = 16
"""Rows and columns of other sizes are loaded entry by entry, which was not measured."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is cut.

    Args:
        block: Rows and columns of a tile of the result.
        depth: Columns of the first factor that are taken at a time.
        warps: Of a program.
        stages: Loads that are under way at a time.
    """

    block: int
    depth: int
    warps: int
    stages: int


TILES: Final = (
    Tile(64, 64, 4, 3),
    Tile(128, 32, 4, 4),
    Tile(128, 64, 4, 3),
    Tile(128, 64, 8, 3),
)
"""What is tried; the fastest of them is kept for each size."""


TORCH: Final = -1
"""In place of the number of a tile: torch's own product."""

DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)
"""Of the iteration, for which there are kernels."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which kernels are used on one kind of device, for one dtype of the iteration.

    Args:
        tiles: For each of `SIZES` the number of its tile in `TILES`, or `TORCH`.
        passes: Whether momentum, threshold, clamp, norm and weights are taken by kernels.
        rounds: Whether those that round momentum to 16 and 8 bits do so rightly.
        forced: Whether kernels are also used for sizes at which they cannot be faster.
    """

    tiles: tuple[int, ...]
    passes: bool
    rounds: bool
    forced: bool = False

    def tile(self, m: int, n: int) -> Tile | None:
        """The tile for m rows of n entries, None for torch's own product.

        Half of the operations are saved of many tiles, none of a single one.
        """
        nearest = min(range(len(SIZES)), key=lambda i: abs(math.log(SIZES[i] / m)))
        number = self.tiles[nearest]
        if number == TORCH:
            return None
        tile = TILES[number]
        pays = m > tile.block and m % ALIGNED == n % ALIGNED == 0
        return tile if pays or self.forced else None


EVERYWHERE: Final = Tuning((0, 0, 0, 3, 3, 3), passes=True, rounds=True, forced=True)
"""What `kernels="triton"` stands for."""

EVERYWHERE_SINGLE: Final = Tuning((0,) * len(SIZES), passes=True, rounds=True, forced=True)
"""The same for float32, of which large tiles do not fit into registers."""

NOWHERE: Final = Tuning((TORCH,) * len(SIZES), passes=False, rounds=False)

_known: dict[str, Tuning] = {}


def tuning_for(option: KernelOption, device: torch.device, dtype: torch.dtype) -> Tuning | None:
    """The kernels to use, None for none.

    Args:
        option: `"torch"` for none, `"triton"` for all, `"auto"` for the faster ones.
        device: Where the matrices are.
        dtype: Of the iteration.

    Raises:
        RuntimeError: If `option` is "triton" and they cannot run here.
    """
    if option == "torch" or dtype not in DTYPES:
        return None
    if option == "triton":
        if not can_run(device):
            raise RuntimeError(
                '`kernels="triton"` needs the package `triton` and a CUDA device, and the '
                f'parameters are on {str(device)!r}; leave `kernels` at "auto"'
            )
        return EVERYWHERE_SINGLE if dtype == torch.float32 else EVERYWHERE
    if device.type != "cuda" or not can_run(device):
        return None
    found = tuned(device, dtype)
    return None if found == NOWHERE else found


def can_run(device: torch.device) -> bool:
    """Whether Triton is installed and has something to do with such a device."""
    if not _installed():
        return False
    if device.type == "cuda":
        return True
    from lightning_root.kernels.triton.language import interpreted

    return device.type == "cpu" and interpreted()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _name(device: torch.device, dtype: torch.dtype) -> str:
    return f"{torch.cuda.get_device_name(device)} {str(dtype).removeprefix('torch.')}"


def tuned(device: torch.device, dtype: torch.dtype) -> Tuning:
    """What was measured on this kind of device, measured now if it never was."""
    name = _name(device, dtype)
    if name not in _known:
        from lightning_root.kernels.triton.measurement import measure

        file = machine_file(f"{name} torch {torch.__version__}")
        _known[name] = kept(file, lambda: measure(device, dtype), _read) or NOWHERE
    return _known[name]


def tunings_in_use() -> dict[str, Tuning]:
    """What this process has chosen, by device and dtype."""
    return dict(_known)


def adopt_tunings(others: Mapping[str, Tuning]) -> None:
    """Choose by these from now on."""
    _known.update(others)


def _read(values: Mapping[str, Any]) -> Tuning | None:
    tiles = tuple(map(int, values["tiles"]))
    sound = len(tiles) == len(SIZES) and all(TORCH <= tile < len(TILES) for tile in tiles)
    return Tuning(tiles, bool(values["passes"]), bool(values["rounds"])) if sound else None
