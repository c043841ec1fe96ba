"""The command line: LightningCLI that knows ROOT."""

import os
import sys
import warnings
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeUnion
from torch.optim import Optimizer

from lightning_root.module import ROOTBinder
from lightning_root.optim import ROOT
from lightning_root.partition import Rules, partition_parameters


class SchedulerInterval(Callback):
    """Steps every learning rate scheduler of the run per `interval`.

    Args:
        interval: "step" or "epoch".
    """

    def __init__(self, interval: Literal["step", "epoch"]) -> None:
        self.interval = interval

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the interval before the first step."""
        del pl_module
        for config in trainer.lr_scheduler_configs:
            config.interval = self.interval


class ROOTCLI(LightningCLI):
    """`LightningCLI` that binds ROOT to the finished model and steps its schedule per step.

    Everything else is LightningCLI's: subcommands `fit`, `validate`, `test`, `predict`, YAML files
    through `--config` (later ones override earlier ones), `--print_config`, `--optimizer.help
    ROOT`. One option is added: `--lr_scheduler_interval`.

    Example:

    .. code-block:: text

        python -m lightning_root fit --config configs/quickstart.yaml --optimizer.lr 2e-3
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--lr_scheduler_interval`."""
        parser.add_argument(
            "--lr_scheduler_interval",
            type=Literal["step", "epoch"] | None,
            default=None,
            help="How often `--lr_scheduler` is stepped. Default: per step for WarmupDecayLR, per "
            "epoch for torch's schedulers, as in LightningCLI.",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with the binding callback."""
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, ROOTBinder) for callback in callbacks):
            callbacks.append(ROOTBinder())
        interval = self._get(self.config_init, "lr_scheduler_interval")
        if interval is not None:
            callbacks.append(SchedulerInterval(interval))
        return trainer

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """Bind ROOT once the model is complete; the rest is LightningCLI's."""
        if isinstance(optimizer, ROOT):
            optimizer.bind(optimizer.module or lightning_module)
        return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)


class PartitionTrainer(Trainer):
    """A Trainer with one more entry point, so that the command line has one more subcommand."""

    def partition(self, model: LightningModule, rules: Rules | None = None) -> None:
        """Show which parameter gets which rule and why, without training."""
        model.configure_model()
        print(partition_parameters(model, rules=rules))


class MainCLI(ROOTCLI):
    """What `python -m lightning_root` runs: ROOTCLI and the subcommand `partition`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """LightningCLI's subcommands, and `partition`."""
        return {**LightningCLI.subcommands(), "partition": {"model", "rules"}}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer; for `partition` one that any machine has, whatever the run is meant for."""
        if self.subcommand == "partition":
            return PartitionTrainer(accelerator="cpu", devices=1, logger=False, barebones=True)
        return super().instantiate_trainer(**kwargs)

    def partition(self, model: LightningModule, datamodule: Any = None) -> None:
        """Show the split with the rules of the configured optimizer."""
        del datamodule
        optimizer = self._get(self.config, "optimizer") or {}
        options = optimizer.get("init_args") or {}
        assert isinstance(self.trainer, PartitionTrainer)
        self.trainer.partition(model, options.get("rules"))


def main() -> None:
    """Run the command line on the model and data that the configuration names."""
    # What Lightning's own calls to torch and jsonargparse print at every start is not for the user.
    warnings.filterwarnings(
        "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
    )
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # A console script, unlike `python -m`, does not see modules of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    MainCLI(trainer_class=PartitionTrainer, save_config_kwargs={"overwrite": True})
