"""ROOT in a LightningModule: the factory, the mixin, the binding callback."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from lightning_root.coefficients.shapes import shape_text
from lightning_root.distributed import reshard
from lightning_root.optim import ROOT, WarmupDecayLR
from lightning_root.optim.agreement import fits_needed
from lightning_root.optim.checkpoint import keyed_by_names
from lightning_root.optim.groups import members, views_of
from lightning_root.optim.schedule import ScheduleName
from lightning_root.partition.names import canonical


def configure_optimizers(
    module: LightningModule,
    *,
    lr: float = 1e-3,
    warmup_steps: int | None = None,
    max_steps: int | None = None,
    schedule: ScheduleName | None = "cosine",
    min_lr_ratio: float = 0.1,
    **root_options: Any,
) -> dict[str, Any]:
    """What a LightningModule's `configure_optimizers` returns: ROOT, with a schedule per step.

    Args:
        module: The module to train; its parameters are split by `partition_parameters`.
        lr: Full learning rate of both rules. With the default scale AdamW's values carry over.
        warmup_steps: Linear warm-up; default 2000, at most a tenth of the run.
        max_steps: Optimizer steps until the decay ends; default: the Trainer's.
        schedule: "cosine", "linear", "constant" (warm-up only), or None for a fixed rate.
        min_lr_ratio: Final learning rate as a share of `lr`.
        **root_options: Further options of `ROOT`, such as `weight_decay` or `outlier_quantile`.

    Raises:
        ValueError: If an option is out of range, or `max_steps` is neither given nor known to the
            Trainer.

    Example:
        >>> import lightning as L
        >>> import torch
        >>> from lightning_root import configure_optimizers
        >>> class Net(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        ...
        ...     def configure_optimizers(self):
        ...         return configure_optimizers(self, lr=2e-3, max_steps=1000)
        >>> sorted(Net().configure_optimizers())
        ['lr_scheduler', 'optimizer']
    """
    optimizer = ROOT([], lr=lr, **root_options)
    optimizer.bind(module)
    if schedule is None:
        return {"optimizer": optimizer}
    scheduler = WarmupDecayLR(
        optimizer,
        warmup_steps=warmup_steps,
        max_steps=max_steps,
        schedule=schedule,
        min_lr_ratio=min_lr_ratio,
    )
    if max_steps is None:
        scheduler.resolve(_run_length(module))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1},
    }


class ROOTBinder(Callback):
    """Gives ROOT the live parameters, with their names, when training starts, and shows the split.

    `LightningCLI` builds the optimizer before the model is complete; strategies such as FSDP2 then
    replace its parameters. The Trainer calls this callback after that and before a checkpoint is
    restored. The split is printed, and written to `partition.txt` beside the logs. The callback
    also takes in parameters that are unfrozen during training, hands the length of the run to
    `WarmupDecayLR` and has it stepped per step. Under DDP it has the ranks share the work on the
    matrices (see `ROOT.share`). In checkpoints the state is keyed by names. It holds no state.
    `ROOTMixin` and `ROOTCLI` add it by themselves; elsewhere:

        trainer = Trainer(callbacks=[ROOTBinder()])
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind every ROOT of the Trainer and resolve its schedules."""
        optimizers = [o for o in trainer.optimizers if isinstance(o, ROOT)]
        partitions = [optimizer.bind(optimizer.module or pl_module) for optimizer in optimizers]
        replicas = _replicas(trainer)
        for optimizer in optimizers:
            if not optimizer.shards_state:  # the strategy shares more than this
                optimizer.share(replicas if optimizer.share_updates else None)
        if partitions and _first_binder(trainer) is self:
            _show(trainer, "\n\n".join(str(partition) for partition in partitions))
            _announce_fits(optimizers)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupDecayLR):
                if config.scheduler.max_steps is None:
                    config.scheduler.resolve(_run_length(pl_module))
                config.interval = "step"

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take in parameters that have been unfrozen since, with a fresh state."""
        del batch, batch_idx
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, ROOT) and _finetunes_backbone(trainer):
                _align_backbone(optimizer, pl_module)
            if isinstance(optimizer, ROOT) and (names := optimizer.unbound()):
                module = optimizer.module
                assert module is not None
                optimizer.bind(module)
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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many updates were left out because of gradients that were not finite."""
        del pl_module
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, ROOT) and optimizer.skipped:
                worst = optimizer.skipped.most_common(3)
                rank_zero_warn(
                    f"ROOT skipped {optimizer.skipped.total()} updates of {len(optimizer.skipped)} "
                    f"parameters whose gradients were not finite (most often: {worst})"
                )


class ROOTMixin:
    """Add this to a LightningModule's bases and it trains with ROOT.

        class Net(ROOTMixin, LightningModule): ...

    An optimizer that the class configures itself is replaced, with a message; its learning rate is
    kept where it is AdamW's or Adam's, because ROOT's updates have the same size. Several
    optimizers are left as they are, with a warning, and so is a `configure_optimizers` that returns
    a ROOT. `--optimizer` on the command line goes before all of these. For `lightning.pytorch` and
    `pytorch_lightning` alike.

    Attributes:
        root_options: Options of the factory `configure_optimizers`, to be set in the class or on
            the instance, for example {"lr": 2e-3, "warmup_steps": 100, "outlier_quantile": 0.95}.
        clip_adamw_only: Have the Trainer's `gradient_clip_val` concern AdamW's part alone. The
            matrices' updates have a size of their own whatever the gradients', and their large
            norms then do not shrink the others' gradients.
    """

    root_options: Mapping[str, Any] = MappingProxyType({})
    clip_adamw_only: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("configure_optimizers")
        if own is not None:
            cls.configure_optimizers = _prefer_root(own)  # type: ignore[assignment, method-assign]

    def configure_optimizers(self) -> Any:
        """ROOT with warm-up and cosine decay, as `root_options` say."""
        inherited = getattr(super(), "configure_optimizers", None)
        if inherited is None or inherited.__qualname__ == "LightningModule.configure_optimizers":
            return configure_optimizers(self, **self.root_options)  # type: ignore[arg-type]
        return _with_root(self, inherited())

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says: all gradients, or those of AdamW's part."""
        if self.clip_adamw_only:
            groups = [group for group in optimizer.param_groups if group.get("role") != "root"]
            optimizer = SimpleNamespace(param_groups=groups)
        super().configure_gradient_clipping(  # type: ignore[misc]
            optimizer, gradient_clip_val, gradient_clip_algorithm
        )

    def configure_callbacks(self) -> list[Any]:
        """The callbacks of the other bases, and the one that binds."""
        inherited = super().configure_callbacks()  # type: ignore[misc]
        others = inherited if isinstance(inherited, list | tuple) else [inherited]
        return [*others, ROOTBinder()]


def _replicas(trainer: Trainer) -> dist.ProcessGroup | None:
    """The ranks that hold the same parameters and, after the backward pass, the same gradients."""
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return None
    group: dist.ProcessGroup = model.process_group
    return group


def _finetunes_backbone(trainer: Trainer) -> bool:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(hasattr(callback, "unfreeze_backbone_at_epoch") for callback in callbacks)


def _align_backbone(optimizer: ROOT, module: LightningModule) -> None:
    """Give all groups of the backbone one learning rate.

    `BackboneFinetuning` raises that of the last group epoch by epoch; of ROOT's two for a backbone
    that is AdamW's.
    """
    backbone = {id(parameter) for parameter in module.backbone.parameters()}  # type: ignore[union-attr]
    groups = [
        group
        for group in optimizer.param_groups
        if group["params"] and all(id(parameter) in backbone for parameter in group["params"])
    ]
    if groups and groups[-1] is optimizer.param_groups[-1]:
        for group in groups:
            group["lr"] = groups[-1]["lr"]


def _show(trainer: Trainer, table: str) -> None:
    """Print the table, and keep it beside the logs if there are any."""
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


def _first_binder(trainer: Trainer) -> ROOTBinder:
    """The one that speaks where the configuration, the mixin and the command line each add one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, ROOTBinder))


def _prefer_root(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(own)
    def configure(self: Any) -> Any:
        return _with_root(self, own(self))

    return configure


def _with_root(module: Any, configured: Any) -> Any:
    """`configured` if it has a ROOT in it, or else a ROOT in its place."""
    replaced = list(_optimizers(configured))
    if any(isinstance(optimizer, ROOT) for optimizer in replaced):
        return configured
    if len(replaced) > 1:
        rank_zero_warn(
            f"ROOTMixin leaves the {len(replaced)} optimizers of `{type(module).__name__}` as they "
            "are: one ROOT cannot stand for several. Return a `ROOT(part.parameters())` for each "
            "part of the model there"
        )
        return configured
    options = dict(module.root_options)
    if len(replaced) == 1 and isinstance(replaced[0], torch.optim.Adam | torch.optim.AdamW):
        options.setdefault("lr", replaced[0].defaults["lr"])
    result = configure_optimizers(module, **options)
    names = ", ".join(type(optimizer).__name__ for optimizer in replaced) or "nothing"
    rank_zero_warn(
        f"ROOTMixin trains with ROOT (lr={result['optimizer'].defaults['lr']}, with its own "
        f"schedule) in place of what `{type(module).__name__}.configure_optimizers` returned "
        f"({names}). Set `root_options` to change its options, or return a ROOT there"
    )
    return result


def _optimizers(configured: Any) -> Iterator[torch.optim.Optimizer]:
    """The optimizers in whatever `configure_optimizers` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for part in configured:
            yield from _optimizers(part)


def _run_length(module: LightningModule) -> int:
    if module._fabric is None and module._trainer is None:
        raise ValueError(
            "`max_steps` must be given when the module is not attached to a Trainer; with a "
            "Trainer it is the length of the run"
        )
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            "`max_steps` must be given when the Trainer's run has no end (max_epochs=-1); or pass "
            "schedule=None for a fixed learning rate"
        )
    return int(steps)
