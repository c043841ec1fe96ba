"""Momentum in 8 bits that loses nothing on average: a sign, 3 bits of exponent, 4 of mantissa.

128 consecutive entries share one more byte, the exponent of the largest of them, so that any scale
fits. Entries of at least 2^-5 of the power of two below the largest have four binary places
(neighbours are 3 to 6 % apart), those below have a spacing of 2^-9 of it. With e4m3, one more bit
of exponent in the place of one of mantissa, eight small fits of a full batch ended 3 % above
float32, with this 1 %: rounding is noise in the small directions, which orthogonalization enlarges.

Rounding is stochastic, as that of `rounding`, but what decides is a hash of the value's bits, of
its place in the block and of the number of the step. By its bits alone an entry without a gradient
could keep its momentum for ever: where mu M is rounded to M once, it would be each time.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root.kernels.rounding import (
    BLOCK,
    FROM_HALF,
    LEAST_NORMAL,
    MIXERS,
    PER_PLACE,
    PER_STEP,
)
from lightning_root.optim.elementwise import CACHED_ELEMENTS, look_ahead_

_OTHERS_AT_ONCE: Final = 1 << 24
"""Entries that accelerators work on at a time; CPUs as many as a core's cache holds."""


def is_float8(buffer: Tensor) -> bool:
    """Whether momentum is kept as this module keeps it."""
    return buffer.dtype == torch.uint8


def zeros(like: Tensor) -> Tensor:
    """Momentum of zero for a tensor: its codes in the order of its entries, then the exponents."""
    return like.new_zeros(like.numel() + -(-like.numel() // BLOCK), dtype=torch.uint8)


def size(buffer: Tensor) -> int:
    """How many entries a buffer holds."""
    return buffer.numel() - -(-buffer.numel() // (BLOCK + 1))


def look_ahead_float8_(
    gradient: Tensor,
    buffer: Tensor,
    step: Tensor,
    out: Tensor,
    group: Mapping[str, Any],
    finite: Tensor | None = None,
) -> None:
    """M <- mu M + G and N <- G + mu M, or M, by as much as a cache holds at a time.

    Args:
        gradient: G, of any dtype.
        buffer: M, from `zeros` or `encoded`, which is changed.
        step: How many steps there were, without dimensions; one more now.
        out: N, float32, contiguous, with the shape of `gradient`. It is what it would be if M were
            rounded after the look-ahead.
        group: As for `look_ahead_`.
        finite: Where it is False, M stays as it is and G counts as zero; no dimensions.
    """
    step.add_(1 if finite is None else finite)
    flat, result = gradient.reshape(-1), out.view(-1)
    for start, stop, codes, exponents in _chunks(buffer):
        momentum = _read(codes, exponents)
        shape = momentum.shape
        part, ahead = flat[start:stop].view(shape), result[start:stop].view(shape)
        look_ahead_(part, momentum, ahead, group, finite)
        _write(momentum, codes, exponents, step)


def decoded(buffer: Tensor) -> Tensor:
    """The entries, flat, in bfloat16, which holds them exactly."""
    out = buffer.new_empty(size(buffer), dtype=torch.bfloat16)
    for start, stop, codes, exponents in _chunks(buffer):
        out[start:stop] = _read(codes, exponents).view(-1)
    return out


def encoded(value: Tensor) -> Tensor:
    """A buffer of a tensor's entries; exact for what `decoded` returned.

    Args:
        value: Any shape, floating point, finite.
    """
    buffer, flat = zeros(value), value.reshape(-1)
    step = torch.zeros((), device=value.device)
    for start, stop, codes, exponents in _chunks(buffer):
        part = flat[start:stop].to(torch.float32).view(codes.shape)
        _write(part, codes, exponents, step)
    return buffer


def _chunks(buffer: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """First entry, the one after the last, codes (k, size), exponents (k,); whole blocks first."""
    entries = size(buffer)
    codes, exponents = buffer[:entries], buffer[entries:]
    whole = entries - entries % BLOCK
    at_once = CACHED_ELEMENTS if buffer.device.type == "cpu" else _OTHERS_AT_ONCE
    for start in range(0, whole, at_once):
        stop = min(start + at_once, whole)
        of_blocks = exponents[start // BLOCK : stop // BLOCK]
        yield start, stop, codes[start:stop].view(-1, BLOCK), of_blocks
    if whole < entries:
        yield whole, entries, codes[whole:].view(1, -1), exponents[-1:]


def _read(codes: Tensor, exponents: Tensor) -> Tensor:  # (k, size), (k,) -> (k, size) float32
    """By way of float16, of which a code is sign, the last bits of the exponent, and mantissa."""
    bits = codes.to(torch.int16)
    signs = bits << 8
    signs &= -32768
    bits &= 0x7F
    bits <<= 6
    bits |= signs
    value = bits.view(torch.float16).to(torch.float32).mul_(FROM_HALF)
    return value.mul_((exponents.to(torch.int32) << 23).view(torch.float32)[:, None])


def _write(value: Tensor, codes: Tensor, exponents: Tensor, step: Tensor) -> None:
    """The exponent is that of the largest entry, and 0 111 0000 what it may be rounded up to.

    So it can grow by increments far below its spacing; and what has been read is written back
    without a change, whichever of the two codes that a power of two has it gets.

    Subnormal numbers of float32 would do the same with fewer operations, and stall many CPUs.
    """
    scaled = value.abs()
    largest = scaled.amax(dim=1)
    exponent = ((largest.view(torch.int32) - 1) >> 23).clamp_(0, 253)
    exponents.copy_(exponent)
    scaled *= ((254 - exponent) << 23).view(torch.float32)[:, None]
    bits = scaled.view(torch.int32)
    below = bits - LEAST_NORMAL
    below >>= 31  # all bits, where the even spacing begins, and none elsewhere
    scaled += (below & LEAST_NORMAL).view(torch.float32)
    bits += _noise(value, step)
    bits >>= 19
    bits -= LEAST_NORMAL >> 19
    below += 1
    below <<= 4
    bits += below  # 16 codes more where there are no subnormal ones
    signs = value.view(torch.int32) >> 24
    signs &= 0x80
    codes.copy_(bits.clamp_(max=127).bitwise_or_(signs))


def _noise(value: Tensor, step: Tensor) -> Tensor:  # (k, size) -> below 2^19
    salts = torch.arange(value.shape[1], dtype=torch.int32, device=value.device)
    salts *= PER_PLACE
    salts += step.to(torch.int32) * PER_STEP
    for mixer in MIXERS:
        salts ^= salts >> 15
        salts *= mixer
    noise = value.view(torch.int32) ^ salts
    noise *= MIXERS[0]
    noise >>= 13
    noise &= 0x7FFFF
    return noise
