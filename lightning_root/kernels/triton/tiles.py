"""Tiles of products, and which kernels a kind of device is to use: plain data."""

import math
from dataclasses import dataclass
from typing import Final

import torch

# Rows of the matrices that are tried; in between and beyond, the nearest decides.
SIZES: Final = (128, 256, 512, 1024, 2048, 4096)
ALIGNED: Final = 16  # other rows and columns are loaded entry by entry, which was not measured
DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)  # of the iteration
TORCH: Final = -1  # in place of the number of a tile: torch's own product


@dataclass(frozen=True, slots=True)
class Tile:
    """Tile of the result that each program of a product computes."""

    block: int  # rows and columns of the result
    depth: int  # columns of the first factor that are taken at a time
    warps: int
    stages: int  # loads that are under way at a time


# Those that are tried; the fastest of them is used at each size.
TILES: Final = (Tile(64, 64, 4, 3), Tile(128, 32, 4, 4), Tile(128, 64, 4, 3), Tile(128, 64, 8, 3))


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which kernels are used on one kind of device, for one dtype of the iteration."""

    tiles: tuple[int, ...]  # for each of `SIZES` the number of its tile in `TILES`, or `TORCH`
    passes: bool  # for momentum, threshold, clamp, norm and weights
    rounds: bool  # for momentum in 16 and 8 bits, which they round rightly
    forced: bool = False  # also for sizes at which they cannot be faster

    def tile(self, m: int, n: int) -> Tile | None:
        """Return the tile for m rows of n entries, None for torch's own product."""
        nearest = min(range(len(SIZES)), key=lambda i: abs(math.log(SIZES[i] / m)))
        number = self.tiles[nearest]
        if number == TORCH:
            return None
        tile = TILES[number]
        # Of many tiles half of the operations are saved, of a single one none.
        pays = m > tile.block and m % ALIGNED == n % ALIGNED == 0
        return tile if pays or self.forced else None


# What `kernels="triton"` stands for; in float32 large tiles do not fit into registers.
ALL_KERNELS: Final = Tuning((0, 0, 0, 3, 3, 3), passes=True, rounds=True, forced=True)
ALL_KERNELS_FLOAT32: Final = Tuning((0,) * len(SIZES), passes=True, rounds=True, forced=True)
NO_KERNELS: Final = Tuning((TORCH,) * len(SIZES), passes=False, rounds=False)
