"""The supported versions of other packages, asked for when something fails, not before."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

_TABLE: Final = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
REQUIRED: Final[Mapping[str, str]] = _TABLE["required"]
OPTIONAL: Final[Mapping[str, tuple[str, str, str]]] = _TABLE["optional"]

WITHOUT_CANN: Final = (
    "torch_npu is installed and cannot be loaded: `source` CANN's set_env.sh in this shell, or see "
    "more with TORCH_DEVICE_BACKEND_AUTOLOAD=0 python -m lightning_root doctor"
)


class Version(NamedTuple):
    """A package, by its name in pip, with its version and the supported range."""

    package: str
    found: str | None  # None: it is not installed
    supported: str

    @property
    def fits(self) -> bool:
        """Whether it is installed, in the supported range."""
        from packaging.specifiers import SpecifierSet

        supported = SpecifierSet(self.supported)
        return self.found is not None and supported.contains(self.found, prereleases=True)

    @property
    def problem(self) -> str | None:
        """A fault and the command that mends it; None if the version fits."""
        if self.fits:
            return None
        wrong = f"{self.found} is outside the supported range {self.supported}"
        cure = f"pip install '{self.package}{self.supported}'"
        return f"{self.package} {wrong if self.found else 'is not installed'}: {cure}"


def installed(package: str, supported: str) -> Version:
    """Look a package up, by its name in pip, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Version(package, version(package), supported)
    except PackageNotFoundError:
        return Version(package, None, supported)


def own_version() -> str:
    """Return the version of lightning_root, where pip knows it."""
    return installed("lightning-root", ">=0").found or "(not installed, run from its source)"


def explain(error: BaseException) -> None:
    """Note below an error a CANN that is not sourced, and packages outside the supported range."""
    if "backend extension: torch_npu" in str(error):
        error.add_note(WITHOUT_CANN)
    for package, supported in REQUIRED.items():
        if problem := installed(package, supported).problem:
            error.add_note(problem)
