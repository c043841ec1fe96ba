"""A run's model from its configuration, without its memory, its data and its Trainer."""

import os
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_root.cli.lightning import ROOTCLI
from lightning_root.cli.messages import NOT_TEXT, check_yaml, one_line
from lightning_root.optim import ROOT


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
    """Return the model that arguments of `fit` name, and the options of its optimizer.

    The options are those of `--optimizer`, else the `root_options` of a `ROOTMixin`. Raises
    ValueError if the arguments are wrong, or the model cannot be made on the meta device.
    """
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
