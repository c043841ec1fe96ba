"""Momentum in 16 and in 8 bits that loses nothing on average: stochastic rounding.

What decides is a hash, not a random generator: the result is the same on every rank, however
matrices are cut, and in a resumed run.

bfloat16: a value goes up or down with the probabilities that make its mean exact, so that
increments far below the spacing (0.4 %) add up, where nearest rounding would drop them all. The
hash is of the value's own bits; what repeats to the last bit is rounded in the same way.

8 bits: a sign, 3 bits of exponent, 4 of mantissa (e3m4). 128 consecutive entries share one more
byte, the exponent of the largest of them, so that any scale fits. Entries of at least 2^-5 of the
power of two below the largest have four binary places (neighbours are 3 to 6 % apart), those below
have a spacing of 2^-9 of it. With e4m3, one more bit of exponent in the place of one of mantissa,
eight small fits of a full batch ended 3 % above float32, with this 1 %: rounding is noise in the
small directions, which orthogonalization enlarges. The hash is of the value's bits, of its place in
the block and of the number of the step. By its bits alone an entry without a gradient could keep
its momentum for ever: where mu M is rounded to M once, it would be each time.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from lightning_root.distributed.collectives import local_part
from lightning_root.kernels import rounding

CACHED_ELEMENTS: Final = 1 << 17
"""So many stay in a CPU core's cache from one pass over them to the next."""

_OTHERS_AT_ONCE: Final = 1 << 24
"""Entries that accelerators work on at a time."""


def write_rounded_(kept: Tensor, value: Tensor) -> None:
    """Write finite values into state of the same or of lower precision, at random to bfloat16."""
    kept, value = local_part(kept), local_part(value)
    kept.copy_(_rounded_to_bfloat16(value) if kept.dtype == torch.bfloat16 else value)


def _rounded_to_bfloat16(value: Tensor) -> Tensor:
    """Keep the upper 16 bits after a number below 2^16 has been added."""
    bits = value.clamp(-rounding.BFLOAT16_LARGEST, rounding.BFLOAT16_LARGEST).view(torch.int32)
    # 2^32 / golden ratio, odd: all low bits reach the upper sixteen
    noise = bits * rounding.MIXERS[0]
    noise >>= 16
    noise &= 0xFFFF
    return noise.add_(bits).bitwise_and_(-65536).view(torch.float32)


def is_float8(buffer: Tensor) -> bool:
    """Return whether momentum is kept in 8 bits."""
    return buffer.dtype == torch.uint8


def float8_zeros(like: Tensor) -> Tensor:
    """Return momentum of zero: codes in the order of a tensor's entries, then exponents."""
    return like.new_zeros(like.numel() + -(-like.numel() // rounding.BLOCK), dtype=torch.uint8)


def float8_size(buffer: Tensor) -> int:
    """Return how many entries a buffer holds."""
    return buffer.numel() - -(-buffer.numel() // (rounding.BLOCK + 1))


def float8_decoded(buffer: Tensor) -> Tensor:
    """Return the entries, flat, in bfloat16, which holds them exactly."""
    out = buffer.new_empty(float8_size(buffer), dtype=torch.bfloat16)
    for start, stop, codes, exponents in float8_chunks(buffer):
        out[start:stop] = float8_read(codes, exponents).view(-1)
    return out


def float8_encoded(value: Tensor) -> Tensor:
    """Return a buffer of a tensor's finite entries; exact for what `float8_decoded` returned."""
    buffer, flat = float8_zeros(value), value.reshape(-1)
    step = torch.zeros((), device=value.device)
    for start, stop, codes, exponents in float8_chunks(buffer):
        part = flat[start:stop].to(torch.float32).view(codes.shape)
        float8_write(part, codes, exponents, step)
    return buffer


def float8_chunks(buffer: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield first entry, end, codes (k, size), exponents (k,); whole blocks first."""
    entries = float8_size(buffer)
    codes, exponents = buffer[:entries], buffer[entries:]
    whole = entries - entries % rounding.BLOCK
    at_once = CACHED_ELEMENTS if buffer.device.type == "cpu" else _OTHERS_AT_ONCE
    for start in range(0, whole, at_once):
        stop = min(start + at_once, whole)
        of_blocks = exponents[start // rounding.BLOCK : stop // rounding.BLOCK]
        yield start, stop, codes[start:stop].view(-1, rounding.BLOCK), of_blocks
    if whole < entries:
        yield whole, entries, codes[whole:].view(1, -1), exponents[-1:]


def float8_read(codes: Tensor, exponents: Tensor) -> Tensor:  # (k, size), (k,) -> (k, size) float32
    """Decode by way of float16, of which a code is sign, last bits of exponent, and mantissa."""
    bits = codes.to(torch.int16)
    signs = bits << 8
    signs &= -32768
    bits &= 0x7F
    bits <<= 6
    bits |= signs
    value = bits.view(torch.float16).to(torch.float32).mul_(rounding.FROM_HALF)
    return value.mul_((exponents.to(torch.int32) << 23).view(torch.float32)[:, None])


def float8_write(value: Tensor, codes: Tensor, exponents: Tensor, step: Tensor) -> None:
    """Encode with the exponent of the largest entry; 0 111 0000 is what it may be rounded up to."""
    # So it can grow by increments far below its spacing; and what has been read is written back
    # without a change, whichever of the two codes that a power of two has it gets. Subnormal
    # numbers of float32 would do the same with fewer operations, and stall many CPUs.
    scaled = value.abs()
    largest = scaled.amax(dim=1)
    exponent = ((largest.view(torch.int32) - 1) >> 23).clamp_(0, 253)
    exponents.copy_(exponent)
    scaled *= ((254 - exponent) << 23).view(torch.float32)[:, None]
    bits = scaled.view(torch.int32)
    below = bits - rounding.MIN_NORMAL
    below >>= 31  # all bits, where the even spacing begins, and none elsewhere
    scaled += (below & rounding.MIN_NORMAL).view(torch.float32)
    bits += _noise(value, step)
    bits >>= 19
    bits -= rounding.MIN_NORMAL >> 19
    below += 1
    below <<= 4
    bits += below  # 16 codes more where there are no subnormal ones
    signs = value.view(torch.int32) >> 24
    signs &= 0x80
    codes.copy_(bits.clamp_(max=127).bitwise_or_(signs))


def _noise(value: Tensor, step: Tensor) -> Tensor:  # (k, size) -> below 2^19
    salts = torch.arange(value.shape[1], dtype=torch.int32, device=value.device)
    salts *= rounding.PER_PLACE
    salts += step.to(torch.int32) * rounding.PER_STEP
    for mixer in rounding.MIXERS:
        salts ^= salts >> 15
        salts *= mixer
    noise = value.view(torch.int32) ^ salts
    noise *= rounding.MIXERS[0]
    noise >>= 13
    noise &= 0x7FFFF
    return noise
