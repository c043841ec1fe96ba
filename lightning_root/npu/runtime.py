"""torch_npu, imported when an NPU is first asked for, and the reason where there is none."""

import importlib
import os
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import torch

VISIBLE_DEVICES: Final = "ASCEND_RT_VISIBLE_DEVICES"
"""The environment variable by which CANN hides devices; the others are numbered from 0."""


def npu() -> Any:
    """Return the module `torch.npu`; raise RuntimeError, with advice, if no NPU can be used."""
    reason = problem()
    if reason is not None:
        raise RuntimeError(f"`accelerator: npu` cannot be used: {reason}")
    return torch.get_device_module("npu")


def problem() -> str | None:
    """Return why no NPU can be used, and the next move; None where one can."""
    reason = _loading_problem()
    if reason is not None or device_count() > 0:
        return reason
    hidden = os.environ.get(VISIBLE_DEVICES)
    if hidden is not None:
        return (
            f"torch_npu sees no device with {VISIBLE_DEVICES}={hidden!r}; unset it, or name "
            "devices that `npu-smi info` lists, such as 0 or 0,1"
        )
    return (
        "torch_npu is loaded but sees no device; `npu-smi info` must list one, and in a container "
        "/dev/davinci0 and /dev/davinci_manager must be passed in"
    )


def device_count() -> int:
    """Return how many NPUs this process sees; 0 where torch_npu cannot be loaded."""
    return 0 if _loading_problem() else int(torch.get_device_module("npu").device_count())


@cache
def _loading_problem() -> str | None:
    """Load torch_npu; return why that fails and the next move, or None."""
    release = torch.__version__.split("+")[0]
    # Of the build, not of the machine: torch_npu ends the process when it is loaded beside CUDA's.
    other = torch.accelerator.current_accelerator()
    if other is not None and other.type != "npu":
        return (
            f"this torch ({torch.__version__}) is built for {other.type}, and torch_npu cannot be "
            f"loaded beside it; install torch's CPU build of {release} in its place"
        )
    if find_spec("torch_npu") is None:
        return (
            "torch_npu is not installed; install CANN, and then the torch_npu of torch's own "
            f"release: pip install torch-npu=={release}"
        )
    try:  # once in a process: a failed import cannot be repeated
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever a half-installed machine raises
        return (
            f"torch_npu failed to load ({type(error).__name__}: {error}); {_advice(error, release)}"
        )
    return None


def _advice(error: Exception, release: str) -> str:
    """Return what helps against the usual ways in which torch_npu fails to load."""
    if any(sign in str(error) for sign in ("cannot open shared object file", "set_env.sh")):
        return (
            "CANN's libraries are not on the search path: run `source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh` (newer CANN: "
            "/usr/local/Ascend/cann/set_env.sh) in this shell and start again"
        )
    return (
        f"torch {release} needs the torch_npu of the same release, whose CANN and driver versions "
        "its release notes name; `python -c 'import torch_npu'` shows the whole error"
    )
