"""What this machine has, what torch can use of it, and whether it computes what it should."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lightning_root.coefficients import lookup, output_range
from lightning_root.kernels import Form, orthogonalize
from lightning_root.kernels.rates import processor, rates_file
from lightning_root.npu import runtime

INSTRUCTION_SETS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Those that matrix products gain from, as Linux names them."""

GPU_DRIVER: Final = Path("/dev/nvidiactl")
CANN_FOLDERS: Final = (Path("/usr/local/Ascend/cann"), Path("/usr/local/Ascend/ascend-toolkit"))

SHAPE: Final = (128, 512)
ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""What rounding may add to the error, by arithmetic."""


@dataclass(frozen=True)
class Device:
    """A kind of device, named as the Trainer's `accelerator`."""

    name: str
    state: str  # what is there, or why nothing is
    usable: tuple[str, ...] = ()  # torch devices of this kind
    problem: str | None = None  # with the next move, where something is there and cannot be used


@dataclass(frozen=True)
class Check:
    """One form of the iteration, run on one device."""

    device: str
    form: Form
    dtype: str  # of the arithmetic
    error: float | None  # largest singular value of the result less the polar factor
    bound: float  # what the certificate and rounding leave room for
    seconds: float  # of the second call
    failure: str | None = None  # the error that was raised

    @property
    def problem(self) -> str | None:
        """What is wrong; None if the result is within its bound."""
        what = f"orthogonalizer on {self.device} ({self.form}, {self.dtype})"
        if self.error is None:
            return f"{what}: {self.failure}"
        if self.error <= self.bound:
            return None
        return f"{what}: the error is {self.error:.3g}, above {self.bound:.3g}; do not train on it"


def devices() -> list[Device]:
    """Look at the CPU, CUDA or ROCm, and NPUs."""
    return [_cpu(), _cuda(), _npu()]


def _cpu() -> Device:
    threads = torch.get_num_threads()
    measured = "are" if rates_file(threads).exists() else "are not yet"
    state = (
        f"{' '.join(processor().split())}, cores: {os.cpu_count()}, threads: {threads}; "
        f"torch uses {torch.backends.cpu.get_cpu_capability()}; "
        f"the chip has {', '.join(_instruction_sets()) or 'what it does not tell'}; "
        f"rates {measured} measured"
    )
    return Device("cpu", state, ("cpu",))


def _instruction_sets() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # another system than Linux
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _cuda() -> Device:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        build = torch.version.cuda or torch.version.hip
        usable = tuple(f"cuda:{index}" for index in range(len(names)))
        return Device("cuda", f"{', '.join(names)}; torch is built for {build}", usable)
    if torch.version.cuda is not None or torch.version.hip is not None:
        state = "torch sees no GPU"
        move = (
            "`nvidia-smi` must list one, CUDA_VISIBLE_DEVICES must not hide it, and its driver "
            f"must be as new as CUDA {torch.version.cuda}"
        )
    else:
        state = f"this torch ({torch.__version__}) is built without CUDA"
        move = f"install torch's CUDA build of {torch.__version__.split('+')[0]}"
    problem = f"GPU: {state}, but there is a driver; {move}" if GPU_DRIVER.exists() else None
    return Device("cuda", f"none: {state}", problem=problem)


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
    return next((folder for folder in CANN_FOLDERS if (folder / "set_env.sh").exists()), None)


def check_device(device: str, iterate: Callable[..., Tensor] = orthogonalize) -> list[Check]:
    """Orthogonalize one Gaussian matrix in every form that is used on a device of torch.

    The bound is exact but for rounding: the range of the iteration's polynomial between the
    matrix's smallest and largest singular value.
    """
    matrix = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, sigma, right = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    triples = lookup(SHAPE).triples
    low, high = output_range(triples, upper=sigma[0].item(), lower=sigma[-1].item())
    certified = max(1.0 - low, high - 1.0)
    cases: list[tuple[Form, torch.dtype]] = [("standard", torch.float32)]
    if device == "cpu":
        cases += [("gram", torch.float32), ("eigh", torch.float32)]
    elif not device.startswith("npu") or torch.get_device_module("npu").is_bf16_supported():
        cases += [("standard", torch.bfloat16)]
    found = []
    for form, dtype in cases:
        bound = certified + ROUNDING[dtype]
        kind = str(dtype).removeprefix("torch.")
        try:
            given = matrix.to(device, torch.float32)
            run = partial(iterate, given, triples, form=form, dtype=dtype)
            error, seconds = _measure(run, left @ right)
            found.append(Check(device, form, kind, error, bound, seconds))
        except RuntimeError as failed:
            reason = str(failed).strip().partition("\n")[0]
            found.append(Check(device, form, kind, None, bound, 0.0, reason))
    return found


def _measure(run: Callable[[], Tensor], polar: Tensor) -> tuple[float, float]:
    """Return the error, infinite if the result is not finite, and the seconds of a warm call."""
    run().sum().item()  # what a first call sets up
    start = time.perf_counter()
    result = run()
    result.sum().item()  # waits for the device
    seconds = time.perf_counter() - start
    difference = result.to("cpu", torch.float64) - polar
    if not bool(difference.isfinite().all()):
        return float("inf"), seconds
    return torch.linalg.matrix_norm(difference, ord=2).item(), seconds
