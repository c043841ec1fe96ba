"""`python -m lightning_root partition`: which parameter gets which rule and why."""

import argparse
from typing import Final

from lightning_root.cli.lightning import read_model
from lightning_root.cli.parser import ModelParser, add_allocate
from lightning_root.partition import partition_parameters

DESCRIPTION: Final = """\
Show which parameter gets which rule and why: ROOT or AdamW, and into which matrices it is cut.
Nothing is trained, no data is read, and the model takes no memory, whatever its size.

The model is given as for `fit`: `--config FILE`, or `--model CLASS_PATH` with its arguments as
`--model.NAME VALUE`; the rules are those of `--optimizer`. What else a file holds (data, trainer,
callbacks) is checked and not used."""

EXAMPLES: Final = """\
examples:
  {program} --config configs/quickstart.yaml
  {program} --config FILE --optimizer.rules '{{"head.*": "root"}}'
  {program} --model my.Net --model.depth 12
"""


def make_parser() -> ModelParser:
    """Return the parser of what LightningCLI's does not know."""
    usage = "(--config FILE | --model CLASS_PATH ...) [options]"
    parser = ModelParser("partition", usage, DESCRIPTION, EXAMPLES)
    add_allocate(parser)
    parser.set_defaults(run=_partition)
    return parser


def _partition(options: argparse.Namespace) -> int:
    model, chosen = read_model(options.model, allocate=options.allocate)
    print(partition_parameters(model, rules=chosen.get("rules")))
    return 0
