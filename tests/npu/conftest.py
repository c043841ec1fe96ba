"""Which machine the tests of this folder run on.

Without options: an emulated one where there are gcc and the torch_npu wheel (`make test-npu`), or
else they are skipped. `--npu-required`, or LIGHTNING_ROOT_NPU=required, makes that a failure.
`--npu-hardware`, or LIGHTNING_ROOT_NPU=hardware, runs them on the NPUs of this machine.
"""

from __future__ import annotations

import os

import pytest

from tests.npu.emulation.machine import Machine, build, missing


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options, which pytest knows where `tests/npu` is named on its command line."""
    group = parser.getgroup("npu")
    required = "fail where the wheel of torch_npu or gcc is missing, instead of skipping"
    group.addoption("--npu-required", action="store_true", help=required)
    hardware = "run on this machine's Ascend NPUs instead of emulated ones"
    group.addoption("--npu-hardware", action="store_true", help=hardware)


def _asked(config: pytest.Config, what: str) -> bool:
    return config.getoption(f"npu_{what}", False) or os.environ.get("LIGHTNING_ROOT_NPU") == what


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """With two NPUs, emulated or not."""
    scratch = tmp_path_factory.mktemp("programs")
    if _asked(pytestconfig, "hardware"):
        return Machine(None, scratch)
    reason = missing()
    if reason is not None:
        if _asked(pytestconfig, "required"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cann")
    build(folder)
    return Machine(folder, scratch)


@pytest.fixture
def emulated(machine: Machine) -> Machine:
    """For tests that change the machine: its chip, its number of devices, its libraries."""
    if not machine.emulated:
        pytest.skip("changes the machine, which only an emulated one allows")
    return machine
