"""Checkpoints that neither a killed process nor a power cut can spoil."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_root._files import atomic_write, remove_unfinished


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that it is old or new, whole.

    Lightning's own moves it from the system's folder for temporary files, which is copying where
    that is on another file system: a process that ends meanwhile leaves half a file in the place of
    the one before. This keeps no second copy in memory either, and a power cut leaves the file
    whole too. What a killed process has left of a file is removed when that file is written again.
    Remote paths are left to Lightning, and folders of shards (`save_distributed_checkpoint: true`)
    do not come by here: give each a name of its own and have `save_last: link`.

    Example:
        >>> import lightning as L
        >>> from lightning_root import AtomicCheckpointIO
        >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu")
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`; after an OSError the file before it is as it was."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)  # first, for the disk may be full of them
        with atomic_write(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
                _sync(temporary)
            except (OSError, RuntimeError) as error:
                _raise_os_error(error, temporary, path)
                raise
        _sync_folder(Path(path).parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; errors are those of `explained_read_errors`."""
        with explained_read_errors(path):
            return super().load_checkpoint(path, map_location, weights_only)

    def map_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Map what `save_checkpoint` wrote into memory: what is not looked at is not read.

        The file may be replaced meanwhile, because that makes a new one.
        """
        with explained_read_errors(path):
            content: dict[str, Any]
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        return content


@contextmanager
def explained_read_errors(path: str | Path) -> Iterator[None]:
    """Turn errors while `path` is read, but FileNotFoundError, into a ValueError with advice."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is damaged, no checkpoint, or holds more than tensors and plain values, "
            "which could run code. Resume from another one; if you trust this one, pass "
            "`weights_only=False` to `Trainer.fit`"
        ) from error
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # bytes that are no checkpoint may raise anything: KeyError, "101"
        raise ValueError(
            f"'{path}' is no checkpoint, or is not complete: {error}. Resume from another one"
        ) from error


def _sync(path: Path, more: bytes = b"") -> None:
    """Append `more` and wait until the file is on the disk; 400 MB take 0.25 s, 0.65 s to write."""
    with path.open("ab") as file:
        file.write(more)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the new name is on the disk, where the system can: Windows opens no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some network file systems cannot; the file is whole in any case
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_os_error(error: Exception, temporary: Path, path: str | Path) -> None:
    """Raise the system's own error; of a full disk torch says `unexpected pos 768 vs 662`."""
    cause = error if isinstance(error, OSError) else None
    if cause is None:
        try:
            _sync(temporary, bytes(1 << 20))
        except OSError as found:
            cause = found
    if cause is not None and cause.errno is not None:
        reason = f"{os.strerror(cause.errno)}, so that the checkpoint before it is left as it was"
        raise OSError(cause.errno, reason, str(path)) from error
