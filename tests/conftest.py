"""What every test starts from: one thread, fixed seeds, nothing left by the test before."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings

from lightning_root._files import write_json
from lightning_root.kernels import rates
from tests.distributed.pool import GlooPool

torch.set_num_threads(1)
# No verdict of the clock: a busy machine would fail what is right.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Keep fitted coefficients in a folder of this session, away from the user's cache."""
    cache = TemporaryDirectory(prefix="lightning-root-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["LIGHTNING_ROOT_CACHE"] = cache.name
    # All processes of the session choose the same forms, whatever else the machine is doing.
    for threads in range(1, 9):
        file = rates.rates_file(threads)
        file.parent.mkdir(exist_ok=True)
        write_json(file, asdict(rates.DEFAULT_RATES))
        rates.known[threads] = rates.DEFAULT_RATES


class _TorchInFloat32:
    """`torch`, but for one dtype."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.fixture
def torchs_muon_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon's own code, but for its cast to bfloat16, which copies: to float32."""
    monkeypatch.setattr(torch.optim._muon, "torch", _TorchInFloat32())  # of 2.15
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # of those before it


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Undo what a test changes in `os.environ`, and hide pytest's own command line."""
    environment, argv = dict(os.environ), sys.argv
    os.environ["PL_GLOBAL_SEED"] = "0"  # Lightning warns when it has to choose
    sys.argv = argv[:1]  # LightningCLI warns when it is given `args` beside a command line
    yield
    sys.argv = argv
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_process_group_left() -> Iterator[None]:
    """Destroy the process group that a test, or a strategy it used, left behind."""
    yield
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[GlooPool]:
    """Two gloo processes for the whole session; `gloo_pool.run(function, *args)` uses them."""
    pool = GlooPool()
    yield pool
    pool.close()
