"""Keeps two sweeps out of one folder: each would clear what the other is writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder until the end of the block, or of the process.

    Systems without `fcntl` are trusted.

    Raises:
        ValueError: If another process holds it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"`--output` must be a folder that no other sweep is working in, got '{folder}'; "
                "wait for that one, or stop it"
            ) from error
        yield
