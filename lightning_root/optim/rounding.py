"""Momentum in bfloat16 that loses nothing on average: stochastic rounding without a generator."""

import torch
from torch import Tensor

from lightning_root.distributed import local_part
from lightning_root.kernels.rounding import BFLOAT16_LARGEST, MIXERS


def keep_(kept: Tensor, value: Tensor) -> None:
    """Write a value into state of the same or of lower precision.

    Rounded to bfloat16 a value goes up or down with the probabilities that make its mean exact:
    increments far below the spacing of bfloat16 (0.4 %) add up, where nearest rounding would drop
    them all. What decides is a hash of the value's own bits, not a random generator: the result is
    the same on every rank, however matrices are cut, and in a resumed run. A sequence of values
    that repeats to the last bit is rounded in the same way each time.

    Args:
        kept: Where it goes; float32, float64 or bfloat16.
        value: Finite, float32 where `kept` is bfloat16.
    """
    kept, value = local_part(kept), local_part(value)
    kept.copy_(_rounded(value) if kept.dtype == torch.bfloat16 else value)


def _rounded(value: Tensor) -> Tensor:
    """The upper 16 bits after a number below 2^16 has been added: what bfloat16 can hold."""
    bits = value.clamp(-BFLOAT16_LARGEST, BFLOAT16_LARGEST).view(torch.int32)
    noise = bits * MIXERS[0]  # 2^32 / golden ratio, odd: all low bits reach the upper sixteen
    noise >>= 16
    noise &= 0xFFFF
    return noise.add_(bits).bitwise_and_(-65536).view(torch.float32)
