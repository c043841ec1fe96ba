"""The callback that gives ROOT the live parameters, and what is said of a run that a disk ended."""

import errno
import math
import shutil
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from zipfile import is_zipfile

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lightning_root.coefficients.shapes import shape_text
from lightning_root.diagnostics.refit import ROOTRefit
from lightning_root.diagnostics.training import error_chain, roots_of
from lightning_root.distributed import reshard
from lightning_root.optim import ROOT
from lightning_root.optim.checkpoint import keyed_by_names
from lightning_root.optim.schedule import ManualSteps, end_with_run, for_groups, warmups_in
from lightning_root.partition.parameters import canonical_parameters

_FROZEN: Final = "lightning_root_frozen"
"""Entry of a checkpoint with the names of what was frozen, where a callback does that."""

# No space is left on the device, or none to this user.
DISK_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
# Modules of torch whose hooks for DDP end with the same gradients on all ranks.
EQUAL: Final = ("default_hooks", "powerSGD_hook", "quantization_hooks", "mixed_precision_hooks")


class ROOTBinder(Callback):
    """Gives ROOT the live parameters, with their names, when training starts, and shows the split.

    That is after the model is complete and strategies such as FSDP2 have replaced its parameters,
    and before a checkpoint is restored. The split is printed, and written to `partition.txt` beside
    the logs. The callback also follows a model that gains or loses parameters (what a callback such
    as `BackboneFinetuning` freezes is left to that, and is frozen as before where a run resumes),
    hands the length of the run to `WarmupDecayLR`, steps it per step (under manual optimization
    too), has the ranks of DDP share the work on the matrices (see `ROOT.share`), and keys the state
    in checkpoints by names. It holds no state. `ROOTMixin` and `ROOTCLI` add it; elsewhere:

        trainer = Trainer(callbacks=[ROOTBinder()])
    """

    _manual_steps: Sequence[ManualSteps] = ()
    _frozen: Collection[str] | None = None  # names in the checkpoint that is resumed from
    _given: Sequence[list[dict[str, Any]]] = ()  # options of the groups before a state is loaded

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind every ROOT of the Trainer and resolve its schedules."""
        optimizers = roots_of(trainer)
        for optimizer in optimizers:
            optimizer.bind(_whole(optimizer, pl_module), frozen=not frozen_by_callback(pl_module))
        tables = [optimizer.table() for optimizer in optimizers]
        replicas = _replicas(trainer.strategy, optimizers)
        for optimizer in optimizers:
            if not optimizer.shards_state:  # the strategy shares more than this
                optimizer.share(replicas if optimizer.share_updates else None)
        if tables and _first_binder(trainer) is self:
            _print_partition(trainer, "\n\n".join(tables))
            _announce_fits(optimizers)
        _plan_schedules(trainer, pl_module)
        scheduled = {"initial_lr": None} if trainer.lr_scheduler_configs else {}
        self._given = [[{**scheduled, **g} for g in root.param_groups] for root in optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the schedules anew, for other callbacks may have changed the run."""
        if trainer.ckpt_path is not None and _first_binder(trainer) is self:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            refit = any(isinstance(each, ROOTRefit) for each in callbacks)
            _say_what_lost(self._given, roots_of(trainer), {"coefficients"} if refit else set())
        if self._frozen is not None:
            _freeze(pl_module, self._frozen)
        self._given, self._frozen = (), None
        _plan_schedules(trainer, pl_module)
        self.on_train_end()
        if not pl_module.automatic_optimization and _first_binder(trainer) is self:
            schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
            self._manual_steps = [ManualSteps(one) for one in schedules if warmups_in(one)]

    def on_train_end(self, *_: Any) -> None:
        """Leave no hook in the optimizers."""
        for manual in self._manual_steps:
            manual.check()
            manual.end()
        self._manual_steps = ()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take in parameters that have been made since, with a fresh state."""
        del batch, batch_idx
        if frozen_by_callback(pl_module):
            return  # what that leaves out, or adds later, is its own affair
        for optimizer in roots_of(trainer):
            new, gone = optimizer.unbound(), optimizer.lost()
            if new or gone:
                optimizer.bind(_whole(optimizer, pl_module))
                rank_zero_info(
                    f"ROOT follows the model: {len(new)} parameters are new {new[:3]}, {len(gone)} "
                    f"are gone {gone[:3]}"
                )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Key ROOT's state by parameter names, so that every strategy can load it.

        With numbers, FSDP2 would take the order of the groups for that of the model.
        """
        states = checkpoint["optimizer_states"]
        reshard(pl_module)
        if frozen_by_callback(pl_module):
            named = canonical_parameters(pl_module)
            checkpoint[_FROZEN] = [name for name, p in named if not p.requires_grad]
        names = {p: name for name, p in canonical_parameters(pl_module)}
        for number, optimizer in enumerate(trainer.optimizers):
            if not isinstance(optimizer, ROOT) or not states[number].get("state"):
                continue  # only the first rank has one under some strategies
            numbered = all(isinstance(key, int) for key in states[number]["state"])
            listed = [group["params"] for group in optimizer.param_groups]
            if numbered and all(p in names for params in listed for p in params):
                groups = [[names[p] for p in params] for params in listed]
                states[number] = keyed_by_names(states[number], groups)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring schedules that were saved for older ROOT's two groups to the groups of now."""
        self._frozen = checkpoint.get(_FROZEN) if frozen_by_callback(pl_module) else None
        states = checkpoint.get("optimizer_states", [])
        schedules = checkpoint.get("lr_schedulers", [])
        for number, config in enumerate(trainer.lr_scheduler_configs[: len(schedules)]):
            root: Any = getattr(config.scheduler, "optimizer", None)
            if not isinstance(root, ROOT):
                continue
            rates, places, before = schedules[number].get("base_lrs", []), None, 2
            if states:
                saved = states[trainer.optimizers.index(root)]["param_groups"]
                places, before = root.places_in(saved), len(saved)
            elif len(root.param_groups) == 1 and len(rates) == 2 and rates[0] == rates[1]:
                places = [0]  # FSDP2's state has been loaded already
            if places is not None:
                schedules[number] = for_groups(schedules[number], before, places)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Note below the error of a full disk where it is full and what to go on from."""
        del pl_module
        self.on_train_end()
        if _first_binder(trainer) is self:
            _note_full_disk(exception, trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many updates were left out because of gradients that were not finite."""
        del pl_module
        for optimizer in roots_of(trainer):
            if optimizer.skipped:
                worst = optimizer.skipped.most_common(3)
                rank_zero_warn(
                    f"ROOT skipped {optimizer.skipped.total()} updates of {len(optimizer.skipped)} "
                    f"parameters whose gradients were not finite (most often: {worst})"
                )


def frozen_by_callback(module: LightningModule) -> bool:
    """Tell whether a callback such as `BackboneFinetuning` freezes, unfreezes and adds groups."""
    trainer = getattr(module, "_trainer", None)
    callbacks: list[Callback] = trainer.callbacks if trainer is not None else []
    # By name, so that it may be `pytorch_lightning`'s.
    return any(cls.__name__ == "BaseFinetuning" for c in callbacks for cls in type(c).__mro__)


def _freeze(module: nn.Module, frozen: Collection[str]) -> None:
    """Freeze and unfreeze as when a checkpoint was saved, which `BaseFinetuning` does not do."""
    for name, parameter in canonical_parameters(module):
        parameter.requires_grad_(name not in frozen)
    for each in module.modules():
        if isinstance(each, _BatchNorm) and each.affine:
            each.track_running_stats = each.weight.requires_grad


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
    return max(1, _accumulated(module.trainer, int(steps)))


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


def _whole(optimizer: ROOT, module: LightningModule) -> nn.Module:
    """Return the module that an optimizer's parameters have their names in: the whole one."""
    own = optimizer.module
    return module if own is None or any(own is each for each in module.modules()) else own


def _first_binder(trainer: Trainer) -> ROOTBinder:
    """Return the one that prints where configuration, mixin and command line each add one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(each for each in callbacks if isinstance(each, ROOTBinder))


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
    shapes = {shape for optimizer in optimizers for shape in optimizer.shapes_to_fit()}
    if shapes:
        names = ", ".join(map(shape_text, sorted(shapes)[:5]))
        rank_zero_info(
            f"ROOT fits coefficients for {len(shapes)} shapes at its first step ({names}), less "
            "than a second each; they are kept for later runs in the folder "
            "`LIGHTNING_ROOT_CACHE` or the user's cache"
        )


def _plan_schedules(trainer: Trainer, module: LightningModule) -> None:
    """Give each `WarmupDecayLR` the length of the run, and have it stepped per step."""
    for config in trainer.lr_scheduler_configs:
        if warmups_in(config.scheduler):
            end_with_run(config.scheduler, partial(run_length, module))
            if config.interval != "step" and hasattr(config.scheduler, "_milestones"):
                rank_zero_info("SequentialLR is stepped per step: its milestones are steps too")
            config.interval = "step"


def _accumulated(trainer: Trainer, steps: int) -> int:
    """Return the steps of a run where `GradientAccumulationScheduler` changes them by epoch."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    factors = [getattr(each, "get_accumulate_grad_batches", None) for each in callbacks]
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    if not any(factors) or epochs == -1 or batches == math.inf:
        return steps
    factor = [each for each in factors if each][-1]
    steps = sum(math.ceil(batches / factor(epoch)) for epoch in range(epochs))
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def _say_what_lost(given: Any, optimizers: Sequence[ROOT], fitted: set[str]) -> None:
    """Name options of this run in whose place those of a loaded state are now."""
    found: dict[str, str] = {}
    for options, optimizer in zip(given, optimizers, strict=False):
        for before, after in zip(options, optimizer.param_groups, strict=False):
            cycled = {"betas", "lr"} if "base_momentum" in before else set()
            for name in optimizer.defaults.keys() - cycled - fitted:
                # Schedules move `lr` and leave the full one beside it.
                key = f"initial_{name}" if f"initial_{name}" in before else name
                if key in after and bool(after[key] != before[key]):
                    texts = [f"{one[key]!s:.40}" for one in (after, before)]
                    found.setdefault(name, "`{}` {} (given: {})".format(name, *texts))
    if found:
        rank_zero_warn(
            "ROOT goes on with the checkpoint's options, as torch's optimizers do, though the "
            f"configuration shows those that are given: {', '.join(sorted(found.values()))}. To "
            "have these, set them in `optimizer.param_groups` at `on_train_start`"
        )


def _replicas(strategy: Any, optimizers: Sequence[ROOT]) -> Any:
    """Return the ranks whose parameters and gradients are the same, or None."""
    model = strategy.model
    if not isinstance(model, DistributedDataParallel):
        return None
    hooks = model._comm_hooks
    states = [getattr(strategy, "_ddp_comm_state", None), *(state for _, state in hooks)]
    local = any(type(state).__name__ == "PostLocalSGDState" for state in states)
    if not local and all(_makes_equal(hook) for hook, _ in hooks):
        return model.process_group
    if any(optimizer.shards_state for optimizer in optimizers):
        raise ValueError(
            "`ddp_comm_hook` must leave the same gradients on all ranks where they share ROOT's "
            "state, and this one may not; use `strategy: ddp`, or another hook"
        )
    if any(optimizer.share_updates for optimizer in optimizers):
        rank_zero_warn(
            "ROOT does all of its work on every rank: the communication hook of DDP may leave "
            "other gradients on each, as post-local SGD does. Pass `share_updates=False` to say so"
        )
    return None


def _makes_equal(hook: Any) -> bool:
    """Return whether a hook of DDP is known to leave the same gradients on all ranks."""
    wrapped = [cell.cell_contents for cell in getattr(hook, "__closure__", None) or ()]
    module = str(getattr(hook, "__module__", "")).rpartition(".")[2]
    return module in EQUAL and all(map(_makes_equal, filter(callable, wrapped)))
