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
from lightning_root.cli.messages import NO_TEXT, one_line
from lightning_root.cli.yaml_files import check_yaml
from lightning_root.optim import ROOT


class ModelCLI(ROOTCLI):
    """ROOTCLI that makes the model and nothing else.

    Args:
        arguments: As for `fit`.
        device: Where the model is made; "meta" takes no memory.

    Raises:
        argparse.ArgumentError: If the arguments are wrong.
    """

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
        """What `fit` takes besides: the configuration that a run has saved holds it."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(LightningCLI.subcommands()["fit"]))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what is given; the words of the process are not all for this parser."""
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Nothing is drawn here."""

    def instantiate_classes(self) -> None:
        """Make the model, to the end."""
        with torch.device(self.device):
            chosen = Namespace(model=self.config.model)  # type: ignore[no-untyped-call]
            self.model = self.parser.instantiate_classes(chosen).model
            self.model.configure_model()


def read_model(
    arguments: Sequence[str], *, allocate: bool = False
) -> tuple[LightningModule, Mapping[str, Any]]:
    """The model that the arguments name, and the options of its optimizer.

    Args:
        arguments: As for `fit`.
        allocate: Make the model in memory instead of on the meta device.

    Returns:
        The model; options of `--optimizer`, else the `root_options` of a `ROOTMixin`.

    Raises:
        ValueError: If the arguments are wrong, or the model cannot be made.
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
        raise ValueError(NO_TEXT) from None
    except (RuntimeError, ValueError) as error:
        if allocate or "meta" not in str(error):
            raise
        raise ValueError(
            f"the model cannot be made without memory ({_first_line(error)}); give `--allocate` to "
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


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "meta" in line]
    return lines[0].strip(" -")
