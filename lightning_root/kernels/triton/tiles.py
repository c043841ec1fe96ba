"""How products are cut into tiles, and which kernels a kind of device is to use: plain data."""

import math
from dataclasses import dataclass
from typing import Final

import torch

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
