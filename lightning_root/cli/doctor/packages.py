"""Packages: what is installed, and what this one supports."""

import platform
from dataclasses import dataclass
from typing import Final

import torch

from lightning_root.versions import REQUIRED, Version, installed

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
    """One line of the table.

    Args:
        version: What is installed, and the supported range.
        purpose: What it is needed for; None if nothing goes without.
        extra: Of lightning-root, that installs it.
    """

    version: Version
    purpose: str | None = None
    extra: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong and the next move; nothing is if an optional package is not there."""
        if self.purpose is not None and self.version.found is None:
            return None
        return self.version.problem

    @property
    def note(self) -> str:
        """The last column: a mark, or what the package would be for."""
        if self.problem is not None:
            return "OUTSIDE" if self.version.found else "MISSING"
        if self.purpose is None:
            return ""
        if self.version.found is None and self.extra is not None:
            return f"for {self.purpose}: lightning-root[{self.extra}]"
        return f"for {self.purpose}"


def packages() -> list[Package]:
    """Python, what is required, and what is optional."""
    python = Version("python", platform.python_version(), ">=3.11")
    required = [installed(name, supported) for name, supported in REQUIRED.items()]
    builds = {"torch": torch.__version__}  # with the CUDA or ROCm it is for, which pip may not know
    required = [v._replace(found=builds.get(v.package, v.found)) for v in required]
    optional = [
        Package(installed(name, supported), purpose, extra)
        for name, (supported, purpose, extra) in OPTIONAL.items()
    ]
    return [*(Package(version) for version in (python, *required)), *optional]
