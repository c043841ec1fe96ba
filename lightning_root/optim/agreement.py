"""All ranks use the same coefficients, to the last digit, and the same form of the iteration."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lightning_root.coefficients import lookup
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.shapes import Shape
from lightning_root.coefficients.store import adopt, fits_in_use
from lightning_root.kernels import run_in_order
from lightning_root.kernels.rates import adopt_rates, rates, rates_in_use
from lightning_root.kernels.triton.tuning import adopt_tunings, tuning_for, tunings_in_use
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
    for fits in reversed(_gathered(fits_in_use())):
        adopt(fits)


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
    rates(threads)
    for _ in run_in_order([partial(rates, 1)] * 2, min(threads, 2)):
        pass  # a worker's operations have one thread
    for known in reversed(_gathered(rates_in_use())):
        adopt_rates(known)


def sync_kernels_across_ranks(present: Members) -> None:
    """Measure Triton's kernels where groups need that, and choose by the lowest rank's numbers."""
    # Before the first step, so that none is compiled or timed while a CUDA graph is captured.
    on_gpu = False
    for group, parameter, route in present:
        if route.role == "root":
            dtype = iteration_dtype(group["ns_dtype"], parameter)
            tuning_for(group["kernels"], parameter.device, dtype)
            on_gpu |= parameter.device.type == "cuda" and group["kernels"] == "auto"
    if on_gpu and _has_ranks():
        for known in reversed(_gathered(tunings_in_use())):
            adopt_tunings(known)


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(entries: dict[Any, Any]) -> list[dict[Any, Any]]:
    """Return the entries of each rank, by rank; a collective, where there is more than one."""
    if not _has_ranks():
        return [entries]
    from_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(from_ranks, entries)
    return [entry or {} for entry in from_ranks]
