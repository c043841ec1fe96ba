"""`python -m lightning_root coefficients`: show, fit, certify and compare; here its arguments."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from lightning_root.cli.coefficients.commands import certify, compare, fit, show
from lightning_root.cli.parser import (
    CommandParser,
    described,
    read_json_output,
    read_output,
    read_shape,
    read_share,
    read_steps,
)
from lightning_root.coefficients import COEFFICIENT_NAMES

SETS: Final = (
    f"{', '.join(COEFFICIENT_NAMES)}, a .json file of `fit --output`, or "
    "triples: one for all steps, '3.4445,-4.775,2.0315', or one per step, 'a,b,c a,b,c'"
)
OR_ADAPTIVE: Final = f"{SETS} (default: adaptive)"
SHAPES: Final[dict[str, Any]] = {"nargs": "*", "type": read_shape, "metavar": "SHAPE"}
STEPS: Final[dict[str, Any]] = {"nargs": "+", "type": read_steps, "metavar": "T"}
SPECTRUM: Final = {"default": "training", "metavar": "SPECTRUM"}
PLOT: Final = {"type": read_output, "metavar": "FILE.png"}

ARGUMENTS: Final[dict[Callable[[Namespace], int], dict[str, dict[str, Any]]]] = {
    show: {
        "shapes": SHAPES,
        "--coefficients": dict(default="adaptive", metavar="SET", help=OR_ADAPTIVE),
        "--steps": dict(**STEPS, default=[]),
    },
    fit: {
        "shapes": SHAPES,
        "--steps": dict(**STEPS, default=[5]),
        "--spectrum": SPECTRUM,
        "--captured-share": dict(type=read_share, metavar="SHARE"),
        "--single": dict(action="store_true"),
        "--output": dict(type=read_json_output, metavar="FILE.json"),
        "--plot": PLOT,
    },
    certify: {
        "set": dict(metavar="SET", help=SETS),
        "shapes": SHAPES,
        "--steps": dict(**STEPS, default=[]),
    },
    compare: {
        "shapes": SHAPES,
        "--steps": dict(**STEPS, default=[3, 4, 5, 6]),
        "--spectrum": SPECTRUM,
        "--with": dict(dest="files", nargs="+", default=[], metavar="FILE.json"),
        "--plot": PLOT,
    },
}
"""Arguments of `add_argument`, by the function of a subcommand."""


def make_parser() -> CommandParser:
    """Return the parser of all subcommands; `certify` exits with 1 if a set is unbounded."""
    parser = CommandParser(help_if_empty=True, **described("coefficients"))
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for command, arguments in ARGUMENTS.items():
        texts = described(f"coefficients {command.__name__}")
        purpose = texts["description"].partition("\n")[0]
        subcommand = commands.add_parser(command.__name__, help=purpose, **texts)
        subcommand.set_defaults(run=command)
        for name, options in arguments.items():
            subcommand.add_argument(name, **options)
        subcommand.add_argument("--json", action="store_true")
    return parser
