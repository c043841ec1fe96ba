"""`python -m lightning_root partition`: which parameter gets which rule and why."""

import argparse

from lightning_root.cli.lightning import read_model
from lightning_root.cli.parser import ModelParser
from lightning_root.partition import partition_parameters


def make_parser() -> ModelParser:
    """Return the parser of what LightningCLI's does not know."""
    usage = "(--config FILE | --model CLASS_PATH ...) [options]"
    parser = ModelParser("partition", usage)
    parser.add_argument("--allocate", action="store_true")
    parser.set_defaults(run=_partition)
    return parser


def _partition(options: argparse.Namespace) -> int:
    model, chosen = read_model(options.model, allocate=options.allocate)
    print(partition_parameters(model, rules=chosen.get("rules")))
    return 0
