"""How much memory a call needs beyond what was there before."""

import ctypes
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PROCESS = Path("/proc/self")
REPEATED = 3


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that were taken at a time within `run`, over the start.

    Call `run` once before: what is made once and kept, an optimizer's state for example, is no part
    of it.

    Args:
        run: Takes no argument.
        device: Whose memory is counted.

    Returns:
        On one thread of a CPU what torch's allocator has handed out, exactly; without what numpy or
        a library of kernels allocates for itself. On several threads, which the profiler does not
        see, the growth of the process; None where the system does not tell it. On a GPU what
        torch's allocator has handed out.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return allocated(run) if torch.get_num_threads() == 1 else grown(run)


def allocated(run: Callable[[], object]) -> int:
    """Most bytes that torch's allocator had handed out at a time, in this thread."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would report its start and end
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    sizes: list[int] = [event.nbytes() for event in memory]  # negative where memory is freed
    return max(itertools.accumulate(sizes, initial=0))


def grown(run: Callable[[], object]) -> int | None:
    """Growth of the memory that the process occupies, the most of three calls; Linux only.

    Small blocks may come from what the process already has, so it can be a few MiB too low.
    """
    try:
        return max(_growth(run) for _ in range(REPEATED))
    except (OSError, AttributeError):  # no such file, or a C library without `malloc_trim`
        return None


def _growth(run: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # give back what is free, so that it counts when taken again
    (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value) << 10
