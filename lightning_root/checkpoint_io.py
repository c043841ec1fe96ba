"""Checkpoints that a killed process cannot spoil."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_root.coefficients.files import remove_unfinished, replaced_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that it is old or new, whole.

    Lightning's own writes to the system's folder for temporary files and moves it from there. Where
    that is on another file system, as on most clusters, moving is copying, and a process that ends
    meanwhile leaves half a file in the place of the one before: `last.ckpt` is lost. It also keeps
    a second copy of the checkpoint in memory; this does not. What a killed process has left of a
    file is removed when that file is written again. Remote paths are left to Lightning,
    and folders of shards (`save_distributed_checkpoint: true`) do not come by here: give each a
    name of its own and have `save_last: link`.

    Example:
        >>> import lightning as L
        >>> from lightning_root import AtomicCheckpointIO
        >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()], accelerator="cpu")
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path)  # first, for the disk may be full of them
        with replaced_whole(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, no checkpoint, or could run code while it is read.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"'{path}' is damaged, no checkpoint, or holds more than tensors and plain values, "
                "which could run code. Resume from another one; if you trust this one, pass "
                "`weights_only=False` to `Trainer.fit`"
            ) from error
        except FileNotFoundError:
            raise
        except (EOFError, OSError, RuntimeError) as error:  # OSError: where a file ends too early
            raise ValueError(
                f"'{path}' is no checkpoint, or is not complete: {error}. Resume from another one"
            ) from error
