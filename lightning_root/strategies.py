"""DDP of which each rank keeps a part of ROOT's state: a strategy for Lightning."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from zipfile import is_zipfile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from lightning_root.optim import ROOT

if TYPE_CHECKING:
    Mixin: TypeAlias = (
        Any  # on a strategy of Lightning's, of either package, whose attributes it has
    )
else:
    Mixin = object


class ShardedState(Mixin):  # type: ignore[misc]
    """Mixin for a DDP strategy: the optimizer's state in parts, its checkpoints whole."""

    def setup_optimizers(self, trainer: Any) -> None:
        """Have every rank keep a part of the state, before there is any."""
        super().setup_optimizers(trainer)
        if self._model_averaging_period is not None:
            raise ValueError(
                "`model_averaging_period` must be None, got "
                f"{self._model_averaging_period}: ranks whose weights differ between averages "
                "cannot share an optimizer's state; use `strategy: ddp`"
            )
        name = type(self).__name__
        for optimizer in self.optimizers:
            if not isinstance(optimizer, ROOT):
                raise TypeError(
                    f"`{name}` shards the state of ROOT alone, got {type(optimizer).__name__}; "
                    "return a ROOT from `configure_optimizers`, or use `strategy: ddp`"
                )
            if not optimizer.share_updates:
                raise ValueError(
                    f"`share_updates` must be True with `{name}`: a rank that keeps a part of the "
                    "momentum cannot orthogonalize the rest; or use `strategy: ddp`"
                )
            optimizer.share(self.model.process_group, shard_state=True)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the whole state on the CPU of rank 0, as one process has it; a collective."""
        root: ROOT = getattr(optimizer, "_optimizer", optimizer)
        return root.consolidated_state_dict(self.root_device)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Map the file into memory, of which each rank then reads its part instead of all."""
        path = Path(checkpoint_path)
        if path.is_dir():
            raise ValueError(
                f"'{path}' is the folder of a distributed checkpoint, which FSDP2 alone reads; "
                "make a file of it first: `python -m lightning_root convert-checkpoint FOLDER "
                "--output FILE`"
            )
        loaded: dict[str, Any]
        if is_zipfile(path) and hasattr(self.checkpoint_io, "map_checkpoint"):
            loaded = self.checkpoint_io.map_checkpoint(path, weights_only)
        elif is_zipfile(path) and type(self.checkpoint_io) is TorchCheckpointIO:
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        else:
            loaded = super().load_checkpoint(checkpoint_path, weights_only)
        return loaded


class ShardedDDPStrategy(ShardedState, DDPStrategy):
    """DDP with 1/N of ROOT's state on each of N ranks: `strategy: ddp_sharded_state`.

    The momentum of a matrix is kept by the rank that orthogonalizes it; AdamW's averages are cut
    evenly, and each rank updates its part of those parameters and sends it to the others. Runs end
    where those of `ddp` end, and the checkpoints are the same: one file, which resumes under any
    strategy on any number of ranks. To write one, rank 0 needs CPU memory for the whole state, and
    then for the file, which `AtomicCheckpointIO` does not build in memory; to resume, a machine
    holds the file once. Options are those of Lightning's `DDPStrategy`.

    Raises:
        TypeError: If an optimizer is not ROOT.
        ValueError: If `share_updates` is off, or with model averaging.

    Example:
        >>> from lightning.pytorch.strategies import StrategyRegistry
        >>> import lightning_root
        >>> StrategyRegistry["ddp_sharded_state"]["strategy"].__name__
        'ShardedDDPStrategy'
    """
