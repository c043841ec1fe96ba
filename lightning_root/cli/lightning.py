"""LightningCLI that knows ROOT: the public class, the one of `main`, and one for a model alone."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeUnion
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer

from lightning_root.binder import ROOTBinder, run_length
from lightning_root.checkpoint_io import explained_read_errors
from lightning_root.cli.messages import NOT_TEXT, check_yaml, one_line
from lightning_root.cli.parser import COMMANDS, program
from lightning_root.module import ROOTMixin
from lightning_root.optim import ROOT
from lightning_root.optim.schedule import end_with_run, warmups_in

CHECKPOINT_KEYWORDS: Final = ("best", "last", "hpc", "registry")  # of `--ckpt_path`, no files


class SchedulerInterval(Callback):
    """Has every learning rate scheduler of the run stepped per `interval`."""

    def __init__(self, interval: Literal["step", "epoch"]) -> None:
        self.interval = interval

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the interval before the first step."""
        del pl_module
        for config in trainer.lr_scheduler_configs:
            counts_steps = bool(warmups_in(config.scheduler))
            config.interval = "step" if counts_steps else self.interval
            if counts_steps and self.interval == "epoch":
                rank_zero_info("WarmupDecayLR counts steps and is stepped per step, not per epoch")


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
        """Make the Trainer, with the binding callback.

        Raises:
            ValueError: If its strategy would start processes that do not get `--optimizer`, or it
                is missing beside `--lr_scheduler`.
        """
        self._check_scheduler()
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        started = getattr(trainer.strategy, "_start_method", None)
        if started in ("spawn", "forkserver") and self._get(self.config_init, "optimizer"):
            raise ValueError(
                "`trainer.strategy` must be one whose processes get the options of `--optimizer`: "
                f'those that "{started}" starts train with the module\'s own optimizer, or with '
                'none; "ddp" is the usual choice'
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, ROOTBinder) for callback in callbacks):
            callbacks.append(ROOTBinder())
        interval = self._get(self.config_init, "lr_scheduler_interval")
        if interval is not None:
            callbacks.append(SchedulerInterval(interval))
        return trainer

    def _check_scheduler(self) -> None:
        """Refuse `--lr_scheduler` without `--optimizer`, which LightningCLI ignores in silence."""
        given = self._get(self.config, "lr_scheduler") or {}
        ignored = self.auto_configure_optimizers and self.subcommand in (None, "fit")
        if ignored and "class_path" in given and not self._get(self.config, "optimizer"):
            mixed = isinstance(self.model, ROOTMixin)
            raise ValueError(
                "`lr_scheduler` needs `--optimizer`: the model's own would train without it; write "
                f"`--optimizer lightning_root.ROOT --lr_scheduler {given['class_path']}`, or set "
                f"the schedule in `{'root_options' if mixed else 'configure_optimizers'}`"
            )

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """Bind ROOT once the model is complete; the rest is LightningCLI's."""
        if isinstance(optimizer, ROOT):
            optimizer.bind(optimizer.module or lightning_module)
        end_with_run(lr_scheduler, partial(run_length, lightning_module))
        return LightningCLI.configure_optimizers(lightning_module, optimizer, lr_scheduler)


class MainParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("prog", program())  # that of `--optimizer.help` too
        super().__init__(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2; raise it where a value is only tried."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {one_line(message)}\n")

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the action that takes further subcommands."""
        self.subcommands_action = super().add_subcommands(*args, **kwargs)
        return self.subcommands_action


class MainCLI(ROOTCLI):
    """ROOTCLI as `python -m lightning_root` runs it: lists all commands, errors have one line."""

    parser: MainParser

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Set up LightningCLI's parser and list the other commands in its help."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.list_commands()

    def list_commands(self) -> None:
        """Add the commands that do not train to the help, after LightningCLI's own."""
        subcommands = self.parser.subcommands_action
        for listed in subcommands._choices_actions:
            # Lightning takes the first line of a docstring, which may end within a sentence.
            first, _, _ = str(listed.help).partition(". ")
            listed.help = f"{first.rstrip('.')}."
        for name, summary in COMMANDS.items():
            subcommands.add_subcommand(name, MainParser(), help=summary)

    def instantiate_classes(self) -> None:
        """Make the objects; report a value that is refused in one line."""
        try:
            super().instantiate_classes()
        except (MisconfigurationException, TypeError, ValueError) as error:
            if not str(error).startswith(("`", "Does not validate")):
                raise  # not as we, Lightning and jsonargparse name what is wrong
            self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; report what it does not know, or this machine lacks, in one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, RuntimeError, ValueError) as error:
            self.parser.error(" ".join(str(error).split()))

    def before_fit(self) -> None:
        """Refuse a run without an optimizer before anything of it is set up."""
        if not is_overridden("configure_optimizers", self.model):
            self.parser.error(
                f"`optimizer` must be given, for `{type(self.model).__name__}` has no "
                "`configure_optimizers`: `--optimizer lightning_root.ROOT`"
            )

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, *args: Any, **options: Any) -> Any:
        """Bind ROOT; report rules that do not fit a model completed only now in one line."""
        try:
            return ROOTCLI.configure_optimizers(lightning_module, *args, **options)
        except (TypeError, ValueError) as error:
            if not str(error).startswith("`"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; refuse commands that must come first, and checkpoints that no run resumes."""
        try:
            check_yaml(sys.argv[1:] if args is None else args)
        except ValueError as error:
            parser.error(str(error))
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError:
            parser.error(NOT_TEXT)
        subcommand = self.config["subcommand"]
        if subcommand in COMMANDS:
            parser.error(f"`{subcommand}` must be the first argument")
        if subcommand:
            _check_numbers(parser, self.config[subcommand])
        path = self._ckpt_path()
        if path is not None and path not in CHECKPOINT_KEYWORDS and "://" not in str(path):
            _check_checkpoint(parser, Path(path))

    def _ckpt_path(self) -> Any:
        """Return what `--ckpt_path` gives; `self.subcommand` is not set while this is parsed."""
        subcommand = self.config["subcommand"]
        return self.config[subcommand].get("ckpt_path") if subcommand else None

    def _parse_ckpt_path(self) -> None:
        """Take the model's options from the checkpoint, as LightningCLI does."""
        try:
            with explained_read_errors(self._ckpt_path() or ""):
                super()._parse_ckpt_path()
        except ValueError as error:
            self.parser.error(f"`ckpt_path`: {error}")


def _check_checkpoint(parser: LightningArgumentParser, path: Path) -> None:
    """Refuse, before the work, a path from which no run can resume."""
    if not path.exists():
        parser.error(f"`ckpt_path` must be a checkpoint, but there is no '{path}'")
    if path.is_dir() and not any((path / name).exists() for name in (".metadata", "meta.pt")):
        parser.error(f"`ckpt_path` must be a checkpoint, but the folder '{path}' holds none")


def _check_numbers(parser: LightningArgumentParser, options: Any) -> None:
    """Refuse numbers that Lightning takes and then divides by, or cannot seed with."""
    divisors = ["accumulate_grad_batches"]
    if options.get("trainer.limit_val_batches") != 0:
        divisors.append("val_check_interval")
    for name in divisors:
        value = options.get(f"trainer.{name}")
        if isinstance(value, int | float) and value <= 0:
            parser.error(f"`trainer.{name}` must be > 0, got {value}")
    seed = options.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        parser.error(f"`seed_everything` must be in [0, 2**32), or true or false, got {seed}")


class ModelCLI(ROOTCLI):
    """ROOTCLI that makes the model and nothing else; device "meta" takes no memory."""

    def __init__(self, arguments: Sequence[str], device: str) -> None:
        self.device = device
        super().__init__(
            args=list(arguments),
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            parser_kwargs={"exit_on_error": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of `fit`, which a configuration that a run has saved holds."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(LightningCLI.subcommands()["fit"]))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args` alone; the process's own arguments are not all for this parser."""
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Leave the seed alone: nothing is drawn here."""

    def instantiate_classes(self) -> None:
        """Make the model, `configure_model` included."""
        with torch.device(self.device):
            chosen = Namespace(model=self.config.model)  # type: ignore[no-untyped-call]
            self.model = self.parser.instantiate_classes(chosen).model
            self.model.configure_model()


def read_model(
    arguments: Sequence[str], *, allocate: bool = False
) -> tuple[LightningModule, Mapping[str, Any]]:
    """Return the model that arguments of `fit` name, and the options of its optimizer."""
    # The options are those of `--optimizer`, else the `root_options` of a `ROOTMixin`. Raises
    # ValueError if the arguments are wrong, or the model cannot be made on the meta device.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    check_yaml(arguments)
    try:
        cli = ModelCLI(arguments, "cpu" if allocate else "meta")
    except ArgumentError as error:
        if str(error) == "the following arguments are required: model":
            raise ValueError("give the model, as `--config FILE` or `--model CLASS_PATH`") from None
        raise ValueError(one_line(str(error))) from error
    except UnicodeDecodeError:
        raise ValueError(NOT_TEXT) from None
    except (RuntimeError, ValueError) as error:
        if allocate or "meta" not in str(error):
            raise
        reason = next(line for line in str(error).splitlines() if "meta" in line).strip(" -")
        raise ValueError(
            f"the model cannot be made without memory ({reason}); give `--allocate` to "
            "make it in memory"
        ) from error
    optimizer = cli.config.get("optimizer")
    if optimizer is None:
        return cli.model, getattr(cli.model, "root_options", {})
    given = optimizer.get("init_args")
    options = given.as_dict() if given is not None else {}
    if optimizer.class_path == "lightning_root.ROOT":
        ROOT([], **options)  # raises where an option is out of range
    return cli.model, options
