"""Triton's kernels beside torch's own operations, on the GPU at hand."""

import logging
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional import outlier_threshold
from lightning_root.functional.orthogonalize import unit_frobenius
from lightning_root.kernels.rounding import BLOCK
from lightning_root.kernels.triton import passes, products, rounding
from lightning_root.kernels.triton.language import cdiv
from lightning_root.kernels.triton.tiles import SIZES, TILES, TORCH, Tile, Tuning

_log = logging.getLogger(__name__)

_FAILED: Final = "a Triton kernel does not run here and is not used: %s"

MARGIN: Final = 0.97  # share of torch's time to stay below: noise is not to decide
STACK_ELEMENTS: Final = 1 << 22  # of a stack of small matrices, as the optimizer makes them
PASSES_SHAPE: Final = (8, 1024, 2048)  # for the passes over memory: more than a cache holds


def measure(device: torch.device, dtype: torch.dtype) -> Tuning:
    """Compile and time all kernels on a CUDA device, in half a minute."""
    with torch.cuda.device(device), torch.no_grad():
        tiles = tuple(fastest_tile(m, device, dtype) for m in SIZES)
        faster = passes_are_faster(device, dtype)
        return Tuning(tiles, faster, rounds=faster and rounding_is_correct(device))


def fastest_tile(m: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return the number of the fastest tile, or `TORCH`, for X X' and b R + c R^2 on m rows."""
    stack = max(1, STACK_ELEMENTS // m**2)
    wide = _random(stack, m, 2 * m, device=device).div_((2 * m) ** 0.5).to(dtype)

    def plain(x: Tensor) -> Tensor:
        gram = torch.bmm(x, x.mT)
        return torch.baddbmm(gram, gram, gram, beta=-1.5, alpha=0.5)

    def tiled(tile: Tile) -> Callable[[], Tensor]:
        return lambda: products.quadratic(
            products.symmetric_product(wide, wide.mT, tile), -1.5, 0.5, tile
        )

    exact = plain(wide[:1].float())
    best, limit = TORCH, MARGIN * milliseconds(lambda: plain(wide))
    allowed = 2.0 * _relative_error(plain(wide)[:1], exact) + 1e-6
    # In float32 the large tiles do not fit into registers.
    for number, tile in enumerate(TILES[:1] if dtype == torch.float32 else TILES):
        taken = time_if_correct(tiled(tile), lambda out: _relative_error(out[:1], exact) <= allowed)
        if taken < limit:
            best, limit = number, taken
    return best


def passes_are_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Compare momentum, look-ahead, threshold, clamp, norm and weights of a stack of matrices."""
    gradients, momenta, others = (_random(*PASSES_SHAPE, device=device) for _ in range(3))
    out, weights = torch.empty_like(momenta), list(others)
    largest = momenta.new_empty(len(momenta), passes.blocks(momenta[0]))

    def plain() -> Tensor:
        for gradient, momentum, direction in zip(gradients, momenta, out, strict=True):
            torch.add(gradient, momentum, alpha=0.5, out=momentum)
            torch.add(gradient, momentum, alpha=0.5, out=direction)
        bounds = outlier_threshold(out, 0.9, mode="sampled")[:, None, None]
        unit = unit_frobenius(torch.clamp(out, -bounds, bounds, out=out)).to(dtype)
        torch._foreach_mul_(weights, 0.999)
        torch._foreach_add_(weights, list(unit.float()), alpha=-10.0)  # units have small entries
        return unit

    def fused() -> Tensor:
        for parts in zip(gradients, momenta, out, [0.5] * len(out), largest, strict=True):
            passes.momentum_step_(*parts, nesterov=True, maximize=False)
        bounds = passes.sampled_threshold(out, 0.9)
        bounds = torch.where(bounds > 0, bounds, largest.amax(dim=1))
        unit = passes.clipped_unit(out, bounds, dtype)
        for weight, update in zip(weights, unit, strict=True):
            passes.apply_update_(weight, update, 0.01, 0.1, 1000.0)
        return unit

    changed = [momenta, *weights]
    start = [tensor.clone() for tensor in changed]
    exact = [plain(), *(tensor.clone() for tensor in changed)]

    def is_correct(result: Tensor) -> bool:
        allowed = (1e-2, 1e-5, *(1e-4 for _ in weights))
        compared = zip([result, *changed], exact, allowed, strict=True)
        return all(_relative_error(found, right) <= bound for found, right, bound in compared)

    limit = MARGIN * milliseconds(plain)
    torch._foreach_copy_(changed, start)
    return time_if_correct(fused, is_correct) < limit


def rounding_is_correct(device: torch.device) -> bool:
    """Return whether momentum in 16 and in 8 bits is right after two steps, up to rounding."""
    # That it is faster needs no measurement: it replaces 8 and 25 passes over memory.
    gradient = _random(*PASSES_SHAPE, device=device).flatten()
    entries, largest = gradient.numel(), gradient.new_empty(passes.blocks(gradient))
    half = torch.zeros_like(gradient, dtype=torch.bfloat16)
    codes = torch.zeros(entries + cdiv(entries, BLOCK), dtype=torch.uint8, device=device)
    out, step = torch.empty_like(gradient), torch.zeros(())

    def of_half() -> Tensor:
        passes.momentum_step_(gradient, half, out, 0.5, largest, nesterov=True, maximize=False)
        return half.float()

    def of_codes() -> Tensor:
        rounding.momentum_step_float8_(
            gradient, codes, step, out, 0.5, nesterov=True, maximize=False
        )
        return rounding.decoded(codes, entries)

    def is_correct(advance: Callable[[], Tensor], spacing: float) -> bool:
        before = torch.zeros_like(gradient)
        for _ in range(2):
            exact = gradient + 0.5 * before
            before = advance()
            ahead = _relative_error(out, gradient + 0.5 * exact) <= 1e-5
            if not (ahead and _relative_error(before, exact) <= spacing):
                return False
        return True

    try:
        return is_correct(of_half, 2.0**-8) and is_correct(of_codes, 2.0**-5)
    except Exception as error:
        _log.warning(_FAILED, error)
        return False


def time_if_correct(run: Callable[[], Tensor], is_correct: Callable[[Tensor], bool]) -> float:
    """Return milliseconds; infinitely many if it fails or its first result is not right."""
    try:
        if is_correct(run()):
            return milliseconds(run)
    except Exception as error:  # of Triton's compiler, of the driver: torch can do without
        _log.warning(_FAILED, error)
    return float("inf")


def milliseconds(run: Callable[[], object], rounds: int = 5, min_time: float = 2.0) -> float:
    """Return the shortest mean over as many runs as take `min_time` milliseconds or more."""
    repeats, best = 1, float("inf")
    run()
    while rounds:
        start, end = (_event() for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        taken = start.elapsed_time(end)
        if taken < min_time and repeats < 1000:
            repeats *= 2
            continue
        best, rounds = min(best, taken / repeats), rounds - 1
    return best


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _random(*shape: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=device)


def _relative_error(result: Tensor, exact: Tensor) -> float:
    return float((result.float() - exact).norm() / exact.norm())
