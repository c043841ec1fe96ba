"""`python -m lightning_root doctor`: whether what a run needs is there, and what to do if not."""

import argparse
import os
import platform
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from lightning_root._files import cache_folder
from lightning_root.cli.devices import Check, Device, check_device, devices
from lightning_root.cli.output import error_text, print_json, text_table, wrapped
from lightning_root.cli.parser import CommandParser, add_json, program
from lightning_root.versions import REQUIRED, Version, installed, own_version

DESCRIPTION: Final = """\
Look at what a run needs: versions of packages, devices, the cache folder; and orthogonalize one
matrix on each device, compared with a singular value decomposition. Nothing is changed or sent.

Exit status: 0 if all is well, 1 if there is something to do, which the last lines say."""

OPTIONAL: Final = {
    "matplotlib": (">=3.9", "figures", "plot"),
    "triton": (">=3.4", "kernels on GPUs", None),
    "datasets": (">=5", "examples", "examples"),
    "scikit-learn": (">=1.6", "examples", "examples"),
    "transformers": (">=5.23", "tokenizers and export", "examples"),
    "lm_eval": (">=0.4.13", "zero-shot evaluation", "eval"),
    "torch_npu": (">=2.11,<2.16", "Ascend NPUs", "npu"),
}
"""By name: the supported range, its purpose, the extra that brings it (None: torch's builds do)."""


@dataclass(frozen=True)
class Package:
    """A package as it is installed; one that has no purpose named is required."""

    version: Version
    purpose: str | None = None
    extra: str | None = None  # of lightning-root, that installs it

    @property
    def problem(self) -> str | None:
        """What is wrong and the next move; nothing is if an optional package is missing."""
        if self.purpose is not None and self.version.found is None:
            return None
        return self.version.problem

    @property
    def note(self) -> str:
        """A mark if there is a problem, else what the package is for."""
        if self.problem is not None:
            return "OUTSIDE" if self.version.found else "MISSING"
        if self.purpose is None:
            return ""
        if self.version.found is None and self.extra is not None:
            return f"for {self.purpose}: lightning-root[{self.extra}]"
        return f"for {self.purpose}"


@dataclass(frozen=True)
class Cache:
    """The folder of fitted coefficients and of rates that were measured on this machine."""

    folder: Path
    failure: str | None  # why nothing can be written there
    coefficients: int  # fitted sets
    rates: int  # measurements

    @property
    def problem(self) -> str | None:
        """What is wrong and the next move; None if it can be written."""
        if self.failure is None:
            return None
        return (
            f"cache folder: {self.failure}; until LIGHTNING_ROOT_CACHE names a folder that can be "
            "written, every run fits coefficients anew and no rates are measured"
        )


@dataclass(frozen=True)
class Findings:
    """All that was looked at."""

    packages: Sequence[Package]
    devices: Sequence[Device]
    cache: Cache
    checks: Sequence[Check]

    @property
    def problems(self) -> list[str]:
        """What there is to do, in the order of the report."""
        found = [package.problem for package in self.packages]
        found += [device.problem for device in self.devices]
        found += [self.cache.problem, *(check.problem for check in self.checks)]
        return [problem for problem in found if problem is not None]


def make_parser() -> CommandParser:
    """Return the parser of `doctor`, whose command exits with 1 if there is something to do."""
    parser = CommandParser(prog=f"{program()} doctor", description=DESCRIPTION)
    add_json(parser)
    parser.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    machine = devices()
    checks = [check for kind in machine for name in kind.usable for check in check_device(name)]
    found = Findings(packages(), machine, cache(), checks)
    if options.json:
        print_json(_as_dict(found))
    else:
        _print(found)
    return 1 if found.problems else 0


def packages() -> list[Package]:
    """Look up Python, the required packages, and the optional ones."""
    python = Version("python", platform.python_version(), ">=3.11")
    required = [installed(name, supported) for name, supported in REQUIRED.items()]
    builds = {"torch": torch.__version__}  # with the CUDA or ROCm it is for, which pip may not know
    required = [v._replace(found=builds.get(v.package, v.found)) for v in required]
    optional = [
        Package(installed(name, supported), purpose, extra)
        for name, (supported, purpose, extra) in OPTIONAL.items()
    ]
    return [*(Package(version) for version in (python, *required)), *optional]


def cache() -> Cache:
    """Look at the cache folder; one that does not exist yet is not made here."""
    try:
        folder = cache_folder()
    except RuntimeError:  # pathlib's, where `~` means nothing
        wanted = Path(os.environ.get("LIGHTNING_ROOT_CACHE") or "~")
        return Cache(wanted, "there is no home folder", 0, 0)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    failure = None
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        failure = f"{nearest}: {os.strerror(error.errno or 0)}"
    counts = [len(list(folder.glob(f"{kind}-*/*.json"))) for kind in ("coefficients", "rates")]
    return Cache(folder, failure, *counts)


def _print(found: Findings) -> None:
    print(f"lightning_root {own_version()} on {platform.system()} {platform.machine()}\n")
    versions = [(package.version, package.note) for package in found.packages]
    rows = [(v.package, v.found or "-", v.supported, note) for v, note in versions]
    print(f"{text_table(('package', 'found', 'supported', ''), rows)}\n")
    labelled = {device.name: device.state for device in found.devices}
    for label, text in {**labelled, "cache": _cache_text(found.cache)}.items():
        print(textwrap.fill(f"{label:<7}{text}", 100, subsequent_indent=" " * 7))
    header = ("orthogonalizer", "form", "dtype", "error", "at most", "ms")
    print(f"\n{text_table(header, [_row(check) for check in found.checks])}\n")
    print("\n".join(wrapped(f"To do: {problem}") for problem in found.problems) or "All is well.")


def _cache_text(cache: Cache) -> str:
    state = "can be written" if cache.failure is None else "cannot be written"
    sets = "set" if cache.coefficients == 1 else "sets"
    rates = "measurement" if cache.rates == 1 else "measurements"
    return (
        f"{cache.folder} {state}; {cache.coefficients} fitted {sets} of coefficients, "
        f"{cache.rates} {rates} of machines"
    )


def _row(check: Check) -> tuple[str, ...]:
    error = "failed" if check.error is None else error_text(check.error)
    milliseconds = f"{1e3 * check.seconds:.1f}"
    return check.device, check.form, check.dtype, error, error_text(check.bound), milliseconds


def _as_dict(found: Findings) -> dict[str, Any]:
    versions = [package.version for package in found.packages]
    return {
        "version": own_version(),
        "system": platform.platform(),
        "packages": [{**version._asdict(), "fits": version.fits} for version in versions],
        "devices": [asdict(device) for device in found.devices],
        "cache": {**asdict(found.cache), "folder": str(found.cache.folder)},
        "orthogonalizer": [asdict(check) for check in found.checks],
        "problems": found.problems,
    }
