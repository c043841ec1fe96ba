"""Checkpoints that a killed process cannot spoil."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_root.coefficients.files import replaced_whole


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it, so that it is old or new, whole.

    Lightning's own writes to the system's folder for temporary files and moves it from there. Where
    that is on another file system, as on most clusters, moving is copying, and a process that ends
    meanwhile leaves half a file in the place of the one before: `last.ckpt` is lost. It also keeps
    a second copy of the checkpoint in memory; this does not. Remote paths are left to Lightning,
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
        with replaced_whole(path) as temporary:
            torch.save(checkpoint, temporary)
