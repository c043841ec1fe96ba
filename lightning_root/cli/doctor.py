"""`python -m lightning_root doctor`: whether what a run needs is there, and what to do if not."""

import argparse
import os
import platform
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from lightning_root._files import cache_folder
from lightning_root.cli.output import error_text, print_json, render
from lightning_root.coefficients import lookup, output_range
from lightning_root.kernels import Form, orthogonalize
from lightning_root.kernels.rates import processor, rates_file
from lightning_root.npu import runtime
from lightning_root.versions import OPTIONAL, REQUIRED, Version, installed, own_version

# Those that matrix products gain from, as Linux names them
INSTRUCTION_SETS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
GPU_DRIVER: Final = Path("/dev/nvidiactl")
CANN_FOLDERS: Final = (Path("/usr/local/Ascend/cann"), Path("/usr/local/Ascend/ascend-toolkit"))

WITHOUT_CACHE: Final = (
    "until LIGHTNING_ROOT_CACHE names a folder that can be written, every run fits coefficients "
    "anew and no rates are measured"
)

SHAPE: Final = (128, 512)  # of the matrix that is orthogonalized
ROUNDING: Final = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # what it may add to the error


class Package(NamedTuple):
    """A package as it is installed; one that has no purpose named is required."""

    version: Version
    purpose: str | None = None
    extra: str = ""  # of lightning-root, that installs it

    @property
    def problem(self) -> str | None:
        """A fault and the next move; a missing optional package is none."""
        expected = self.purpose is None or self.version.found is not None
        return self.version.problem if expected else None

    @property
    def note(self) -> str:
        """A mark if there is a problem, else what the package is for."""
        if self.problem is not None:
            return "OUTSIDE" if self.version.found else "MISSING"
        if self.purpose is None:
            return ""
        missing = self.version.found is None and self.extra
        return f"for {self.purpose}" + (f": lightning-root[{self.extra}]" if missing else "")

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table of packages."""
        return self.version.package, self.version.found or "-", self.version.supported, self.note


class Device(NamedTuple):
    """A kind of device, named as the Trainer's `accelerator`."""

    name: str
    state: str  # what is there, or why nothing is
    usable: tuple[str, ...] = ()  # torch devices of this kind
    problem: str | None = None  # with the next move, where something is there and cannot be used


class Check(NamedTuple):
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
        """A fault; None if the result is within its bound."""
        what = f"orthogonalizer on {self.device} ({self.form}, {self.dtype})"
        if self.error is None:
            return f"{what}: {self.failure}"
        if self.error <= self.bound:
            return None
        return f"{what}: the error is {self.error:.3g}, above {self.bound:.3g}; do not train on it"

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table of checks."""
        error = "failed" if self.error is None else error_text(self.error)
        bound, milliseconds = error_text(self.bound), f"{1e3 * self.seconds:.1f}"
        return self.device, self.form, self.dtype, error, bound, milliseconds


def run(options: argparse.Namespace) -> int:
    """Print what is there and what to do; return 1 if there is something to do."""
    found, machine, (folder, failure) = packages(), devices(), cache()
    files = {kind: len(list(folder.glob(f"{kind}-*/*.json"))) for kind in ("coefficients", "rates")}
    checks = [check for kind in machine for name in kind.usable for check in check_device(name)]
    wrong = [package.problem for package in found] + [device.problem for device in machine]
    wrong += [failure and f"cache folder: {failure}; {WITHOUT_CACHE}"]
    problems = [each for each in (*wrong, *(check.problem for check in checks)) if each]
    values = {
        "version": own_version(),
        "system": platform.platform(),
        "packages": [{**v._asdict(), "fits": v.fits} for v, *_ in found],
        "devices": [device._asdict() for device in machine],
        "cache": {"folder": str(folder), "failure": failure, **files},
        "orthogonalizer": [check._asdict() for check in checks],
        "problems": problems,
    }
    if options.json:
        print_json(values)
    else:
        more = {"platform": platform, "fill": textwrap.fill, "found": found, "checks": checks}
        print(render("doctor", **values, **more))
    return 1 if problems else 0


def packages() -> list[Package]:
    """Look up Python, the required packages, and the optional ones."""
    # torch's own version names the CUDA or ROCm it is for, which pip may not know
    known = {"python": platform.python_version(), "torch": torch.__version__}
    required = [installed(*each) for each in {"python": ">=3.11", **REQUIRED}.items()]
    return [
        *(Package(v._replace(found=known.get(v.package, v.found))) for v in required),
        *(Package(installed(name, span), *rest) for name, (span, *rest) in OPTIONAL.items()),
    ]


def devices() -> list[Device]:
    """Look at the CPU, CUDA or ROCm, and NPUs."""
    return [_cpu(), _cuda(), _npu()]


def _cpu() -> Device:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # another system than Linux
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    sets = ", ".join(name for name in INSTRUCTION_SETS if name in flags)
    threads = torch.get_num_threads()
    state = (
        f"{' '.join(processor().split())}, cores: {os.cpu_count()}, threads: {threads}; "
        f"torch uses {torch.backends.cpu.get_cpu_capability()}; "
        f"the chip has {sets or 'what it does not tell'}; "
        f"rates {'are' if rates_file(threads).exists() else 'are not yet'} measured"
    )
    return Device("cpu", state, ("cpu",))


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


def cache() -> tuple[Path, str | None]:
    """Return the cache folder, and why nothing can be written there; it is not made here."""
    try:
        folder = cache_folder()
    except RuntimeError:  # pathlib's, where `~` means nothing
        return Path(os.environ.get("LIGHTNING_ROOT_CACHE") or "~"), "there is no home folder"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return folder, None
    except OSError as error:
        return folder, f"{nearest}: {os.strerror(error.errno or 0)}"


def check_device(device: str, iterate: Callable[..., Tensor] = orthogonalize) -> list[Check]:
    """Orthogonalize one Gaussian matrix in every form that is used on a device of torch."""
    # The bound is exact but for rounding: the range of the iteration's polynomial between the
    # matrix's smallest and largest singular value.
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
