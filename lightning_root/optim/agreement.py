"""All ranks use the same coefficients, to the last digit, and the same form of the iteration."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lightning_root.coefficients import lookup, store
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.shapes import Shape
from lightning_root.kernels import rates, run_in_order
from lightning_root.kernels.triton import tuning
from lightning_root.optim.groups import Members
from lightning_root.optim.options import iteration_dtype


def fits_needed(present: Members) -> list[tuple[Shape, Any, int]]:
    """Return shape, coefficients and steps of what the first step fits, or finds in the cache."""
    return [
        ((min(shape), max(shape)), member.group["coefficients"], member.group["ns_steps"])
        for member in present
        if member.view is not None
        for shape in set(member.view.matrices(member.parameter.shape))
        if min(shape) > 0
        and needs_fit(shape, member.group["coefficients"], member.group["ns_steps"])
    ]


def sync_coefficients_across_ranks(present: Members) -> None:
    """Make the fits that the groups need; take over those of the lowest rank that has them."""
    # Fits on different machines, or from different caches, may differ in the last digits. Shapes
    # decide whether ranks talk at all, so that either all of them do or none.
    needed = fits_needed(present)
    if not needed:
        return
    for shape, coefficients, steps in needed:
        lookup(shape, coefficients, steps)
    _take_over(store.known)


def sync_rates_across_ranks(present: Members) -> None:
    """Have all ranks choose forms by the rates of the lowest of them."""
    # Ranks that evaluated the iteration in different forms would drift apart by rounding. One rank
    # alone measures when it has to choose. An accelerator needs no rates.
    devices = {member.parameter.device.type for member in present if member.role == "root"}
    if "cpu" not in devices or all(member.group["ns_form"] != "auto" for member in present):
        return
    if not _has_ranks():
        return
    threads = torch.get_num_threads()
    rates.rates(threads)
    for _ in run_in_order([partial(rates.rates, 1)] * 2, min(threads, 2)):
        pass  # a worker's operations have one thread
    _take_over(rates.known)


def sync_kernels_across_ranks(present: Members) -> None:
    """Measure Triton's kernels where groups need that, and choose by the lowest rank's numbers."""
    # Before the first step, so that none is compiled or timed while a CUDA graph is captured.
    on_gpu = False
    for group, parameter, route in present:
        if route.role == "root":
            dtype = iteration_dtype(group["ns_dtype"], parameter)
            tuning.tuning_for(group["kernels"], parameter.device, dtype)
            on_gpu |= parameter.device.type == "cuda" and group["kernels"] == "auto"
    if on_gpu:
        _take_over(tuning.known)


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _take_over(known: dict[Any, Any]) -> None:
    """Add what any rank goes by, of several the lowest one's; a collective, where there are."""
    if not _has_ranks():
        return
    from_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(from_ranks, known)
    for theirs in reversed(from_ranks):
        known.update(theirs or {})
