"""Numbers by which torch and kernels round momentum alike; `optim.low_precision` says how."""

from typing import Final

import torch

BFLOAT16_LARGEST: Final = torch.finfo(torch.bfloat16).max
BLOCK: Final = 128  # consecutive entries in 8 bits that share an exponent
# 2^-5 in float32: the least with four binary places, where [1, 2) has the 3-bit exponent 6.
MIN_NORMAL: Final = (127 - 5) << 23
FROM_HALF: Final = 2.0**9  # makes [1, 2) of what has the exponent 6 in float16
# Odd numbers of 32 bits: steps and places spread evenly, all bits of a sum reach the upper ones.
PER_STEP: Final = -1640531527
PER_PLACE: Final = -2048144789
MIXERS: Final = (-1640531535, -2048144777)
