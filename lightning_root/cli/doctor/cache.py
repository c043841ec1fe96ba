"""The cache folder: where fits and measurements of the machine are kept."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightning_root._files import cache_folder


@dataclass(frozen=True)
class Cache:
    """What the folder holds.

    Args:
        folder: Where it is, or will be.
        failure: Why nothing can be written there; None if it can.
        coefficients: How many fitted sets it holds.
        rates: How many measurements of machines.
    """

    folder: Path
    failure: str | None
    coefficients: int
    rates: int

    @property
    def problem(self) -> str | None:
        """What is wrong and the next move; None if it can be written."""
        if self.failure is None:
            return None
        return (
            f"cache folder: {self.failure}; until LIGHTNING_ROOT_CACHE names a folder that can be "
            "written, every run fits coefficients anew and no rates are measured"
        )


def cache() -> Cache:
    """Look at the folder; what is not there yet is made when it is first needed, and not here."""
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
