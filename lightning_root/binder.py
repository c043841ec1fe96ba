"""The callback that gives ROOT the live parameters, and what is said of a run that a disk ended."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from zipfile import is_zipfile

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from lightning_root.coefficients.shapes import shape_text
from lightning_root.diagnostics.training import error_chain
from lightning_root.distributed import reshard
from lightning_root.optim import ROOT, WarmupDecayLR
from lightning_root.optim.agreement import fits_needed
from lightning_root.optim.checkpoint import keyed_by_names
from lightning_root.optim.groups import members, views_of
from lightning_root.partition.names import canonical

# No space is left on the device, or none to this user.
DISK_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


class ROOTBinder(Callback):
    """Gives ROOT the live parameters, with their names, when training starts, and shows the split.

    That is after the model is complete and strategies such as FSDP2 have replaced its parameters,
    and before a checkpoint is restored. The split is printed, and written to `partition.txt` beside
    the logs. The callback also takes in parameters that are unfrozen during training, hands the
    length of the run to `WarmupDecayLR`, steps it per step, has the ranks of DDP share the work on
    the matrices (see `ROOT.share`), and keys the state in checkpoints by names. It holds no state.
    `ROOTMixin` and `ROOTCLI` add it by themselves; elsewhere:

        trainer = Trainer(callbacks=[ROOTBinder()])
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind every ROOT of the Trainer and resolve its schedules."""
        optimizers = _roots(trainer)
        partitions = [optimizer.bind(optimizer.module or pl_module) for optimizer in optimizers]
        model: Any = trainer.strategy.model
        # The ranks with the same parameters and, after the backward pass, gradients.
        replicas = model.process_group if isinstance(model, DistributedDataParallel) else None
        for optimizer in optimizers:
            if not optimizer.shards_state:  # the strategy shares more than this
                optimizer.share(replicas if optimizer.share_updates else None)
        if partitions and _first_binder(trainer) is self:
            _print_partition(trainer, "\n\n".join(str(partition) for partition in partitions))
            _announce_fits(optimizers)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupDecayLR):
                if config.scheduler.max_steps is None:
                    config.scheduler.resolve(run_length(pl_module))
                config.interval = "step"

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take in parameters that have been unfrozen since, with a fresh state."""
        del batch, batch_idx
        for optimizer in _roots(trainer):
            _align_backbone(trainer, pl_module, optimizer)
            if names := optimizer.unbound():
                assert optimizer.module is not None
                optimizer.bind(optimizer.module)
                rank_zero_info(f"ROOT now trains {len(names)} more parameters: {names[:3]} ...")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Key ROOT's state by parameter names, so that every strategy can load it.

        With numbers, FSDP2 would take the order of the groups for that of the model.
        """
        states = checkpoint["optimizer_states"]
        reshard(pl_module)
        names = {p: canonical(name) for name, p in pl_module.named_parameters()}
        for number, optimizer in enumerate(trainer.optimizers):
            if not isinstance(optimizer, ROOT) or not states[number].get("state"):
                continue  # only the first rank has one under some strategies
            numbered = all(isinstance(key, int) for key in states[number]["state"])
            if numbered and all(p in names for _, _, p in members(optimizer.param_groups)):
                groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
                states[number] = keyed_by_names(states[number], groups)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Note below the error of a full disk where it is full and what to go on from."""
        del pl_module
        if _first_binder(trainer) is self:
            _note_full_disk(exception, trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many updates were left out because of gradients that were not finite."""
        del pl_module
        for optimizer in _roots(trainer):
            if optimizer.skipped:
                worst = optimizer.skipped.most_common(3)
                rank_zero_warn(
                    f"ROOT skipped {optimizer.skipped.total()} updates of {len(optimizer.skipped)} "
                    f"parameters whose gradients were not finite (most often: {worst})"
                )


def run_length(module: LightningModule) -> int:
    """Return the steps of the run that a module is in, 1 for none; ValueError if it has no end."""
    if module._fabric is None and module._trainer is None:
        raise ValueError(
            "`max_steps` must be given when the module is not attached to a Trainer; with a "
            "Trainer it is the length of the run"
        )
    if module.trainer.limit_train_batches == 0:
        return 1
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            "`max_steps` must be given when the Trainer's run has no end (max_epochs=-1); or pass "
            "schedule=None for a fixed learning rate"
        )
    if steps < 0:  # so Lightning says that it cannot count them
        raise ValueError(
            "`max_steps` must be given, here or to the Trainer, when the training data have no "
            "length (an IterableDataset) and steps cannot be counted from `max_epochs`; or pass "
            "schedule=None for a fixed learning rate"
        )
    return max(1, int(steps))


def full_disk(error: BaseException) -> OSError | None:
    """Return the error of a full disk, if it is this one or one that it came from."""
    errors = (each for each in error_chain(error) if isinstance(each, OSError))
    return next((each for each in errors if each.errno in DISK_FULL), None)


def notes_of(error: BaseException) -> list[str]:
    """Return the notes below an error and those that it came from, each once."""
    return list(dict.fromkeys(n for e in error_chain(error) for n in getattr(e, "__notes__", ())))


def _note_full_disk(error: BaseException, trainer: Trainer) -> None:
    """Note below the error of a full disk which folder is on it and what to go on from."""
    # No collective is called: other ranks may know of no error.
    if full_disk(error) is None:
        return
    places = [getattr(logger, "log_dir", None) or logger.save_dir for logger in trainer.loggers]
    places += [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    folders = [Path(place) for place in places if place and Path(place).is_dir()]
    free = {folder: shutil.disk_usage(folder).free for folder in folders}
    fullest = min(free, key=free.__getitem__, default=None)
    left = "" if fullest is None else f": {free[fullest] / 1e6:,.1f} MB are left in '{fullest}'"
    paths = [
        getattr(callback, name, None)
        for callback in trainer.checkpoint_callbacks
        for name in ("last_model_path", "best_model_path")
    ]  # a file that was cut short lacks its end and is no zip file
    whole = [Path(path) for path in paths if path and (Path(path).is_dir() or is_zipfile(path))]
    last = max(whole, key=lambda path: path.stat().st_mtime, default=None)
    then = f"go on with ckpt_path='{last}'" if last else "begin again: no checkpoint is whole"
    error.add_note(f"The disk is full{left}. Make room, then {then}")


def _roots(trainer: Trainer) -> list[ROOT]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, ROOT)]


def _first_binder(trainer: Trainer) -> ROOTBinder:
    """Return the one that prints where configuration, mixin and command line each add one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(each for each in callbacks if isinstance(each, ROOTBinder))


def _align_backbone(trainer: Trainer, module: LightningModule, optimizer: ROOT) -> None:
    """Give all groups of a backbone one learning rate, where `BackboneFinetuning` trains it."""
    # That raises the rate of the last group epoch by epoch: AdamW's, of ROOT's two for a backbone.
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if not any(hasattr(each, "unfreeze_backbone_at_epoch") for each in callbacks):
        return
    backbone = {id(parameter) for parameter in module.backbone.parameters()}  # type: ignore[union-attr]
    groups = [
        group
        for group in optimizer.param_groups
        if group["params"] and backbone.issuperset(map(id, group["params"]))
    ]
    if groups and groups[-1] is optimizer.param_groups[-1]:
        for group in groups:
            group["lr"] = groups[-1]["lr"]


def _print_partition(trainer: Trainer, table: str) -> None:
    """Print the table, and write it beside the logs if there are any."""
    rank_zero_info(f"{table}\n")
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    folder = trainer.log_dir  # a collective: every rank asks
    if folder is not None and trainer.is_global_zero:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, "partition.txt").write_text(f"{table}\n", encoding="utf-8")
        except OSError as error:  # it has been printed
            rank_zero_warn(f"the split of the parameters could not be kept: {error}")


def _announce_fits(optimizers: Sequence[ROOT]) -> None:
    """Say for which shapes the first step fits coefficients, or finds them in the cache."""
    shapes = {
        shape
        for optimizer in optimizers
        if optimizer.partition is not None
        for shape, _, _ in fits_needed(optimizer.param_groups, views_of(optimizer.partition))
    }
    if shapes:
        names = ", ".join(map(shape_text, sorted(shapes)[:5]))
        rank_zero_info(
            f"ROOT fits coefficients for {len(shapes)} shapes at its first step ({names}), less "
            "than a second each; they are kept for later runs in the folder "
            "`LIGHTNING_ROOT_CACHE` or the user's cache"
        )
