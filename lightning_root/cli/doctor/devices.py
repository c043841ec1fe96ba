"""Devices: what this machine has, and what this torch can use of it."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from lightning_root.kernels.rates import processor, rates_file
from lightning_root.npu import runtime

INSTRUCTIONS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that matrix products gain from, as Linux names them."""

_GPU_DRIVER: Final = Path("/dev/nvidiactl")
_CANN: Final = (Path("/usr/local/Ascend/cann"), Path("/usr/local/Ascend/ascend-toolkit"))


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Args:
        name: As the Trainer's `accelerator` has it.
        state: What is there, or why nothing is.
        usable: The torch devices of this kind that a tensor can be put on.
        problem: The next move, where something is there that cannot be used.
    """

    name: str
    state: str
    usable: tuple[str, ...] = ()
    problem: str | None = None


def devices() -> list[Device]:
    """CPU, CUDA or ROCm, NPU."""
    return [_cpu(), _cuda(), _npu()]


def _cpu() -> Device:
    threads = torch.get_num_threads()
    measured = "are" if rates_file(threads).exists() else "are not yet"
    words = [
        f"{' '.join(processor().split())}, cores: {os.cpu_count()}, threads: {threads}",
        f"torch uses {torch.backends.cpu.get_cpu_capability()}",
        f"the chip has {', '.join(_instructions()) or 'what it does not tell'}",
        f"rates {measured} measured",
    ]
    return Device("cpu", "; ".join(words), ("cpu",))


def _instructions() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # another system than Linux
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return [name for name in INSTRUCTIONS if name in flags]


def _cuda() -> Device:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        build = torch.version.cuda or torch.version.hip
        usable = tuple(f"cuda:{index}" for index in range(len(names)))
        return Device("cuda", f"{', '.join(names)}; torch is built for {build}", usable)
    built = torch.version.cuda is not None or torch.version.hip is not None
    state = (
        "torch sees no GPU" if built else f"this torch ({torch.__version__}) is built without CUDA"
    )
    if not _GPU_DRIVER.exists():
        return Device("cuda", f"none: {state}")
    move = (
        "`nvidia-smi` must list one, CUDA_VISIBLE_DEVICES must not hide it, and its driver must be "
        f"as new as CUDA {torch.version.cuda}"
        if built
        else f"install torch's CUDA build of {torch.__version__.split('+')[0]}"
    )
    return Device("cuda", f"none: {state}", problem=f"GPU: {state}, but there is a driver; {move}")


def _npu() -> Device:
    reason = runtime.problem()
    if reason is None:
        name = torch.get_device_module("npu").get_device_name()
        count = runtime.device_count()
        usable = tuple(f"npu:{index}" for index in range(count))
        return Device("npu", f"{count} x {name}; {_cann()}", usable)
    wheel = "torch_npu is there" if find_spec("torch_npu") else "no torch_npu"
    state = f"none: {wheel}, {_cann()}"
    wanted = find_spec("torch_npu") or _cann_folder() or Path("/dev/davinci_manager").exists()
    return Device("npu", state, problem=f"NPU: {reason}" if wanted else None)


def _cann() -> str:
    sourced = os.environ.get("ASCEND_HOME_PATH")
    if sourced:
        return f"CANN sourced from {sourced}"
    folder = _cann_folder()
    return f"CANN in {folder} is not sourced" if folder else "no CANN"


def _cann_folder() -> Path | None:
    return next((folder for folder in _CANN if (folder / "set_env.sh").exists()), None)
