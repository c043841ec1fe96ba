"""Two live gloo processes that tests lend functions to.

Starting two processes costs seconds (each imports torch), a call on live ones milliseconds, so the
session keeps one pool and every distributed test runs on it.

The protocol is one pipe per rank. Going down: a rendezvous file, read when there is no process
group (yet, or any more), and a pickled `(function, args)`. Coming back: a pickled `Answer`. All
through `pickle`, not torch's shared memory: what arrives is a copy that outlives its sender.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, shown as the cause of the re-raised one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one call on one rank."""

    result: Any = None
    exception: BaseException | None = None
    traceback: str = ""
    died: bool = False


class GlooPool:
    """`world_size` processes in one gloo group; started by the first `run`.

    Args:
        world_size: How many ranks.
        grace: Seconds that the other ranks have left once one has failed.
    """

    def __init__(self, world_size: int = 2, *, grace: float = 30.0) -> None:
        self.world_size = world_size
        self.grace = grace
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: TemporaryDirectory[str] | None = None
        self._calls = 0
        self._busy: set[int] = set()

    @property
    def alive(self) -> bool:
        """Whether every process is running (also true of a pool that has not started)."""
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *args: Any, time_limit: float = 600.0) -> list[Any]:
        """Call `function(rank, world_size, *args)` on every rank.

        Args:
            function: Found by its import path in the other processes: top level of a module.
            args: Anything that can be pickled.
            time_limit: Seconds for all ranks together, the start of the pool included; past it
                the processes are killed.

        Returns:
            What each rank returned, rank 0 first.

        Raises:
            TypeError: `function` or `args` cannot be pickled.
            TimeoutError: A rank was not done within `time_limit`.
            RuntimeError: A rank's process ended, or its exception could not be pickled.
            BaseException: What a rank raised (the lowest rank's), with its traceback as the cause.
        """
        try:
            call = pickle.dumps((function, args))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"{function!r} or its arguments cannot be pickled: {error}") from error
        if self._folder is None or not self.alive:
            self.close()
            self._folder = self._start()
        self._calls += 1
        rendezvous = (Path(self._folder.name) / f"call-{self._calls}").as_uri()
        self._busy = set(range(self.world_size))
        for pipe in self._pipes:
            pipe.send((rendezvous, call))
        return self._collect(getattr(function, "__qualname__", repr(function)), time_limit)

    def close(self) -> None:
        """End the processes; the next `run` starts new ones."""
        for pipe in self._pipes:
            pipe.close()  # whereupon a process that waits for a call ends as programs do
        for rank, process in enumerate(self._processes):
            process.join(0.0 if rank in self._busy else self.grace)
            process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None
        self._busy = set()

    def _start(self) -> TemporaryDirectory[str]:
        """Start the processes and return the folder of their rendezvous files."""
        context = torch.multiprocessing.get_context("spawn")
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            # Daemons: should the session die without `close`, they die with it.
            arguments = (rank, self.world_size, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _environment(**shared, **_variables(rank, self.world_size)):
                process.start()
            theirs.close()  # now the pipe reports the end of a dead process
            self._processes.append(process)
            self._pipes.append(ours)
        return TemporaryDirectory(prefix="gloo-pool-")

    def _collect(self, task: str, time_limit: float) -> list[Any]:
        """Wait for one answer from every rank; keep the processes only if all are idle again."""
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + time_limit
        while len(answers) < self.world_size and time.monotonic() < deadline:
            ranks = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            ready = wait(list(ranks), timeout=max(0.0, deadline - time.monotonic()))
            for rank in [rank for pipe, rank in ranks.items() if pipe in ready]:
                answers[rank] = self._receive(rank, task)
                self._busy.discard(rank)
                if answers[rank].exception is not None:  # the others may wait for this rank
                    deadline = min(deadline, time.monotonic() + self.grace)
        silent = [rank for rank in range(self.world_size) if rank not in answers]
        failed = [rank for rank in sorted(answers) if answers[rank].exception is not None]
        # A dead process is the cause of what the others then raise.
        failed.sort(key=lambda rank: not answers[rank].died)
        # One rank's failure may leave half a collective behind: the next call gets new processes.
        if silent or 0 < len(failed) < self.world_size or any(a.died for a in answers.values()):
            self.close()
        if failed:
            cause = answers[failed[0]]
            assert cause.exception is not None
            raise cause.exception from RemoteTraceback(cause.traceback)
        if silent:
            raise TimeoutError(f"ranks {silent} were not done with {task} in {time_limit:g} s")
        return [answers[rank].result for rank in range(self.world_size)]

    def _receive(self, rank: int, task: str) -> Answer:
        try:
            answer: Answer = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionResetError):
            self._processes[rank].join(60.0)  # its end of the pipe is closed: it is ending
            code = self._processes[rank].exitcode
            error = RuntimeError(f"rank {rank} ended with exit code {code} during {task}")
            return Answer(exception=error, traceback="none: the process is gone", died=True)
        return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _variables(rank: int, world_size: int) -> dict[str, str]:
    """What a launcher such as torchrun would set; Lightning then takes the processes as its own."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    return {"OMP_NUM_THREADS": "1", **ranks}


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(rank: int, world_size: int, pipe: Connection) -> None:
    """The life of one rank: answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the session, which ends the pool
    torch.set_num_threads(1)
    while True:
        try:
            rendezvous, call = pipe.recv()
        except EOFError:
            return
        if not dist.is_initialized():
            _join(rank, world_size, rendezvous)
        pipe.send_bytes(_answer(rank, world_size, call))


def _join(rank: int, world_size: int, rendezvous: str) -> None:
    patience = timedelta(minutes=10)  # the pool's own time limit is the one that counts
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=patience
    )


def _answer(rank: int, world_size: int, call: bytes) -> bytes:
    """Run one pickled call, seeded and with the environment put back, and pickle its outcome."""
    try:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        with _environment():
            function, args = pickle.loads(call)
            return pickle.dumps(Answer(result=function(rank, world_size, *args)))
    except BaseException as error:  # `pytest.fail` raises no `Exception`
        text = f"on rank {rank}:\n{traceback.format_exc()}"
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # not every exception survives the journey; its text does
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps(Answer(exception=error, traceback=text))
