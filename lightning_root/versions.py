"""Which versions of other packages this one supports, and what to say where it fails.

Nothing here is asked while all goes well: another version may do, and reading versions takes time.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

REQUIRED: Final[Mapping[str, str]] = {
    "torch": ">=2.11,<2.16",
    "lightning": ">=2.6.4,<2.7",
    "torchmetrics": ">=1.6",
    "jsonargparse": ">=4.39,<5",
    "tensorboard": ">=2.18",
    "numpy": ">=2.0",
}
"""The supported range of each package that is always needed: the dependencies of pyproject.toml."""

WITHOUT_CANN: Final = (
    "torch_npu is installed and cannot be loaded: `source` CANN's set_env.sh in this shell, or see "
    "more with TORCH_DEVICE_BACKEND_AUTOLOAD=0 python -m lightning_root doctor"
)
"""What helps where `import torch` itself fails."""


class Version(NamedTuple):
    """A package as it is installed.

    Args:
        package: Its name in pip.
        found: Its version; None if it is not installed.
        supported: A range, as pip writes it.
    """

    package: str
    found: str | None
    supported: str

    @property
    def fits(self) -> bool:
        """Whether it is installed, in the supported range."""
        from packaging.specifiers import SpecifierSet

        return self.found is not None and SpecifierSet(self.supported).contains(
            self.found, prereleases=True
        )

    @property
    def problem(self) -> str | None:
        """What is wrong with it and the command that mends it; None if it fits."""
        if self.fits:
            return None
        cure = f"pip install '{self.package}{self.supported}'"
        if self.found is None:
            return f"{self.package} is not installed: {cure}"
        return (
            f"{self.package} {self.found} is outside the supported range {self.supported}: {cure}"
        )


def installed(package: str, supported: str) -> Version:
    """Look one package up, without importing it.

    Args:
        package: Its name in pip.
        supported: A range, as pip writes it.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Version(package, version(package), supported)
    except PackageNotFoundError:
        return Version(package, None, supported)


def own_version() -> str:
    """Of lightning_root, where pip knows it."""
    return installed("lightning-root", ">=0").found or "(not installed, run from its source)"


def explain(error: BaseException) -> None:
    """Note below an error which required packages are outside the supported range.

    Where `import torch` already fails, because CANN is not sourced, that is noted too: nothing else
    of this package can be reached then.

    Args:
        error: Of an import, or of a run. It is left as it is if none of this explains it.
    """
    if "backend extension: torch_npu" in str(error):
        error.add_note(WITHOUT_CANN)
    for package, supported in REQUIRED.items():
        problem = installed(package, supported).problem
        if problem is not None:
            error.add_note(problem)
