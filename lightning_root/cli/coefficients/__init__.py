"""`python -m lightning_root coefficients`: show, fit, certify and compare; here its arguments."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from lightning_root.cli.coefficients.commands import certify, compare, fit, show
from lightning_root.cli.parser import (
    CommandParser,
    add_json,
    add_plot,
    described,
    read_json_output,
    read_shape,
    read_share,
    read_steps,
)
from lightning_root.coefficients import COEFFICIENT_NAMES

NAMES: Final = (
    f"{', '.join(COEFFICIENT_NAMES)}, a .json file of `fit --output`, or "
    "triples: one for all steps, '3.4445,-4.775,2.0315', or one per step, 'a,b,c a,b,c'"
)
SETS: Final = f"{NAMES} (default: adaptive)"
SPECTRA: Final = (
    "training: a model of momentum in training; gaussian; log-uniform: evenly in log sigma over "
    "[0.001, 1]; or a .json file of captured spectra, as `ROOTRefit` writes it (default: training)"
)
CAPTURED_SHARE: Final = (
    "weight of captured singular values in what is fitted to, the rest are Gaussian; the "
    "paper's is 0.25 (default: 0.75)"
)
SHAPE: Final = "shape of a matrix, like 768x3072, in either order"
SHAPES: Final[dict[str, Any]] = {"nargs": "*", "type": read_shape, "metavar": "SHAPE"}
EVERY: Final = f"{SHAPE}; without any, all captured ones"
COUNT: Final = "number of steps, one or several"
STEPS: Final[dict[str, Any]] = {"nargs": "+", "type": read_steps, "metavar": "T"}
SPECTRUM: Final = {"default": "training", "metavar": "SPECTRUM", "help": SPECTRA}
SINGLE: Final = "one triple for all steps, as in the paper, instead of one per step"
OUTPUT: Final = "write the sets to a file for `--optimizer.coefficients`"
WITH: Final = "files of `fit --output` to compare with"

ARGUMENTS: Final[dict[Callable[[Namespace], int], dict[str, dict[str, Any]]]] = {
    show: {
        "shapes": dict(**SHAPES, help=SHAPE),
        "--coefficients": dict(default="adaptive", metavar="SET", help=SETS),
        "--steps": dict(**STEPS, default=[], help=f"{COUNT} (default: 5, or all that a file has)"),
    },
    fit: {
        "shapes": dict(**SHAPES, help=EVERY),
        "--steps": dict(**STEPS, default=[5], help=f"{COUNT}, at most 12 (default: 5)"),
        "--spectrum": SPECTRUM,
        "--captured-share": dict(type=read_share, metavar="SHARE", help=CAPTURED_SHARE),
        "--single": dict(action="store_true", help=SINGLE),
        "--output": dict(type=read_json_output, metavar="FILE.json", help=OUTPUT),
    },
    certify: {
        "set": dict(metavar="SET", help=NAMES),
        "shapes": dict(**SHAPES, help=f"{SHAPE}, for sets that depend on it"),
        "--steps": dict(**STEPS, default=[], help=f"{COUNT} (default: 5, or all that a file has)"),
    },
    compare: {
        "shapes": dict(**SHAPES, help=EVERY),
        "--steps": dict(**STEPS, default=[3, 4, 5, 6], help=f"{COUNT} (default: 3 4 5 6)"),
        "--spectrum": SPECTRUM,
        "--with": dict(dest="files", nargs="+", default=[], metavar="FILE.json", help=WITH),
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
        if command in (fit, compare):
            add_plot(subcommand, "p_T over log sigma, and the errors")
        add_json(subcommand)
    return parser
