"""Momentum and look-ahead, the first stage of a matrix.

    M <- mu M + G                 N <- G + mu M (Nesterov), or M

In float32 (float64 for float64 parameters), whatever M is kept in. State: M, and where it is kept
in 8 bits the number of steps, from which its rounding is drawn. Cost: two passes over memory.
Source: arXiv:2511.20626, Algorithm 2; the look-ahead is that of the authors' script.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_root.distributed.collectives import is_sharded, local_part, placed_like, shard_like
from lightning_root.kernels import tuning_for
from lightning_root.optim import low_precision
from lightning_root.optim.blocks import (
    BlockStep,
    BoundParameter,
    Group,
    StateSpec,
    momentum_dtype,
    state_dtype,
)
from lightning_root.optim.options import iteration_dtype


def in_float8(group: Group) -> bool:
    """Return whether a group keeps the momentum of its matrices in 8 bits."""
    return bool(group["momentum_dtype"] == "float8")


STATE: Final = (
    StateSpec("momentum_buffer", "entries", momentum_dtype, "root"),
    StateSpec("step", "counter", lambda *_: torch.float32, "root", in_float8),
)


def momentum_of(group: Group) -> float:
    """Return mu as it is now: beta_1 where a schedule of torch cycles the momentum."""
    # OneCycleLR and CyclicLR move `betas` of every optimizer that has them, and leave their mark.
    return float(group["betas"][0] if "base_momentum" in group else group["momentum"])


def momentum_twin(
    gradient: Tensor, momentum: Tensor, mu: float, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """Return M after the step and N, as a textbook writes it."""
    momentum = mu * momentum + gradient
    return momentum, gradient + mu * momentum if nesterov else momentum


def momentum_step_(
    gradient: Tensor, momentum: Tensor, out: Tensor, group: Group, finite: Tensor | None = None
) -> None:
    """Advance M and write N to `out`; where `finite` is False M stays and G counts as zero."""
    pieces = [(gradient, momentum, out)]
    if momentum.dtype != out.dtype:
        pieces = [(gradient[p], momentum[p], out[p]) for p in _in_cache(momentum)]
    for given, kept, ahead in pieces:
        counted, exact, mu = advance_momentum_(given, kept, group, finite)
        if group["nesterov"]:
            torch.add(counted, exact, alpha=mu, out=ahead)
        else:
            ahead.copy_(exact)


def _in_cache(momentum: Tensor) -> Iterator[slice]:
    """Yield as many rows as stay in a CPU's cache, for M that many passes round; else all."""
    length = max(1, len(momentum))
    rows = length
    if momentum.device.type == "cpu" and not is_sharded(momentum):
        rows = max(1, low_precision.CACHED_ELEMENTS * length // max(1, momentum.numel()))
    for start in range(0, length, rows):
        yield slice(start, start + rows)


def advance_momentum_(
    gradient: Tensor, momentum: Tensor, group: Group, finite: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Advance M; return G as it counted, M before it was rounded, and mu."""
    mu = momentum_of(group)
    if momentum.dtype == torch.bfloat16:
        exact = momentum.to(torch.float32)
    else:
        exact = momentum
    if gradient.dtype != exact.dtype:
        gradient = gradient.to(exact.dtype)
    if group["maximize"]:
        gradient = gradient.neg()
    if finite is None:
        torch.add(gradient, exact, alpha=mu, out=exact)
    else:
        gradient = torch.where(finite, gradient, 0.0)
        factor = torch.where(finite, exact.new_full((), mu), 1.0)
        torch.addcmul(gradient, exact, factor, out=exact)
    if exact is not momentum:
        low_precision.write_rounded_(momentum, exact)
    return gradient, exact, mu


def look_ahead(steps: Sequence[BlockStep], dtype: torch.dtype, group: Group) -> Tensor:
    """Advance the momentum of equal blocks and return N, (k, rows, columns); G stays as it is."""
    matrix = steps[0].momentum
    out = torch.empty(len(steps), *matrix.shape, dtype=dtype, device=matrix.device)
    for one, direction in zip(steps, out, strict=True):
        if one.gradient is None:
            direction.copy_(one.momentum)
        else:
            momentum_step_(one.gradient, one.momentum, direction, group, one.finite)
    return out


def look_ahead_by_kernels(steps: Sequence[BlockStep], group: Group) -> tuple[Tensor, Tensor]:
    """Do as `look_ahead` by Triton's kernels; return N and its largest magnitudes, (k,)."""
    from lightning_root.kernels.triton import passes

    matrix = steps[0].momentum
    shape = (len(steps), *matrix.shape)
    directions = torch.empty(shape, dtype=torch.float32, device=matrix.device)
    if steps[0].gradient is None:
        torch._foreach_copy_(list(directions), [one.momentum for one in steps])
        return directions, torch.linalg.vector_norm(directions, torch.inf, dim=(1, 2))
    peaks = directions.new_empty(len(steps), passes.blocks(matrix))
    for one, direction, peak in zip(steps, directions, peaks, strict=True):
        assert one.gradient is not None
        passes.momentum_step_(
            one.gradient,
            one.momentum,
            direction,
            momentum_of(group),
            peak,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            finite=one.finite,
        )
    return directions, peaks.amax(dim=1)


def whole_look_ahead(bound: BoundParameter, group: Group) -> Tensor:
    """Advance the momentum of a whole parameter and return N, laid out as the parameter is."""
    buffer: Tensor = bound.state["momentum_buffer"]
    if in_float8(group):
        gradient = local_part(placed_like(bound.gradient, bound.parameter))
        return shard_like(look_ahead_float8(gradient, bound, group), bound.parameter)
    direction = torch.empty_like(buffer, dtype=state_dtype(buffer))
    momentum_step_(bound.gradient, buffer, direction, group, bound.finite)
    return direction


def local_look_ahead(bound: BoundParameter, group: Group) -> Tensor:
    """Advance this rank's part of the momentum and return N of it, contiguous."""
    gradient, buffer = local_part(bound.gradient), local_part(bound.state["momentum_buffer"])
    if in_float8(group):
        return look_ahead_float8(gradient, bound, group)
    direction = torch.empty_like(
        buffer, dtype=state_dtype(buffer), memory_format=torch.contiguous_format
    )
    momentum_step_(gradient, buffer, direction, group)
    return direction


def look_ahead_float8(gradient: Tensor, bound: BoundParameter, group: Group) -> Tensor:
    """Advance momentum kept in 8 bits, of what belongs to `gradient`, and return N, float32."""
    step = bound.state["step"]
    if group["capturable"]:
        step = bound.state["step"] = step.to(gradient.device)  # of a state from a host
    out = torch.empty(gradient.shape, dtype=torch.float32, device=gradient.device)
    buffer = bound.state["momentum_buffer"]
    dtype = iteration_dtype(group["ns_dtype"], bound.parameter)
    tuning = tuning_for(group["kernels"], out.device, dtype)
    if tuning is None or not tuning.rounds:
        momentum_step_float8_(gradient, buffer, step, out, group, bound.finite)
        return out
    from lightning_root.kernels.triton import rounding

    rounding.momentum_step_float8_(
        gradient.contiguous(),
        buffer,
        step,
        out,
        momentum_of(group),
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        capturable=group["capturable"],
        finite=bound.finite,
    )
    return out


def momentum_step_float8_(
    gradient: Tensor,
    buffer: Tensor,  # as `float8_zeros` makes it
    step: Tensor,  # (), how many steps there were
    out: Tensor,  # float32, contiguous
    group: Group,
    finite: Tensor | None = None,
) -> None:
    """Do as `momentum_step_`, by as much as a cache holds; N is as if M were rounded after it."""
    step.add_(1 if finite is None else finite)
    flat, result = gradient.reshape(-1), out.view(-1)
    for start, stop, codes, exponents in low_precision.float8_chunks(buffer):
        momentum = low_precision.float8_read(codes, exponents)
        shape = momentum.shape
        part, ahead = flat[start:stop].view(shape), result[start:stop].view(shape)
        momentum_step_(part, momentum, ahead, group, finite)
        low_precision.float8_write(momentum, codes, exponents, step)
