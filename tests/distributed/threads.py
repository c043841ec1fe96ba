"""Any number of ranks as threads of this process, over gloo; for what needs more than two.

Threads have one default process group and one random generator between them, so that models are
made before, and everything takes its group as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def on_threads(ranks: int, function: Callable[..., Any], *args: Any, seconds: int = 600) -> list:
    """Call `function(group, *args)` on each rank.

    Args:
        ranks: How many.
        function: What a rank does with its process group.
        args: The same for all ranks.
        seconds: That a collective, and the whole, may take.

    Raises:
        TimeoutError: If they wait for each other.
    """
    store = dist.HashStore()

    def worker(rank: int) -> Any:
        patience = timedelta(seconds=seconds)
        gloo = dist.ProcessGroup.BackendType.GLOO
        group = dist.ProcessGroup(store, rank, ranks)
        backend = dist.ProcessGroupGloo(store, rank, ranks, patience)
        group._register_backend(torch.device("cpu"), gloo, backend)
        group._set_default_backend(gloo)
        return function(group, *args)

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(worker, rank) for rank in range(ranks)]
        return [future.result(seconds) for future in futures]
