"""Different matrices on different CPU threads, as a small one does not keep several busy."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of the threads


def run_in_order(
    jobs: Iterable[Callable[[], Result]], workers: int, ahead: int | None = None
) -> Iterator[Result]:
    """Results of independent jobs, in their order, which several threads run.

    Args:
        jobs: Called under `torch.no_grad()`.
        workers: How many at a time; 1 runs them in the calling thread.
        ahead: How many results may wait to be taken; None for any number.
    """
    # What a job raises is raised once the others that had begun are done.
    if workers == 1:
        for job in jobs:
            yield job()
        return
    pool = _pool(workers)
    begun: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            begun.append(pool.submit(torch.no_grad()(job)))  # a thread's own setting
            if ahead is not None and len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        wait(begun)


def _take_one_thread() -> None:
    """Have operations of this thread use no other."""
    torch.get_num_threads()  # a thread's first question sets it to the number of all others
    torch.set_num_threads(1)


def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the threads, which stay until the process ends."""
    if workers not in _pools:
        everyone = Barrier(workers)
        pool = ThreadPoolExecutor(workers, "lightning_root", _take_one_thread)
        for started in [pool.submit(everyone.wait) for _ in range(workers)]:
            started.result()
        # It has also set what threads of the future begin with.
        torch.set_num_threads(torch.get_num_threads())
        _pools[workers] = pool
    return _pools[workers]
