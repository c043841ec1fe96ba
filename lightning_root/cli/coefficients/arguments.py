"""The parser of `coefficients`: its subcommands, whose docstrings are their help, and arguments."""

import inspect
from typing import Any, Final

from lightning_root.cli.coefficients.compare import compare, fit
from lightning_root.cli.coefficients.show import certify, show
from lightning_root.cli.parser import (
    CommandParser,
    add_json,
    add_plot,
    program,
    read_json_output,
    read_shape,
    read_share,
    read_steps,
)
from lightning_root.coefficients import COEFFICIENT_NAMES

DESCRIPTION: Final = """\
Coefficients of the Newton-Schulz iteration, by the shape of a matrix: look at those in use, fit
your own, check what a set can do, compare with published ones.

T steps send a singular value sigma of a matrix of norm 1 to p_T(sigma), each step by
sigma -> a sigma + b sigma^3 + c sigma^5. The error of a set is the mean of (p_T(sigma) - 1)^2 over
the singular values that such matrices have: those of Gaussian matrices, of a model of momentum in
training, or captured in a run."""

EXAMPLES: Final = """\
examples:
  {program} show 768x3072 --steps 4 5
  {program} fit 768x768 768x3072 --output mine.json
  {program} fit --spectrum spectra.json --output mine.json
  {program} certify mine.json
  {program} certify published 2048x2048 --steps 5 6
  {program} compare 768x3072 --with mine.json --plot compare.png

In training: --optimizer.coefficients mine.json, or ROOT(..., coefficients="mine.json").
Shapes are written 768x3072, in either order, and come before the options.
"""

SETS: Final = (
    f"{', '.join(COEFFICIENT_NAMES)}, a .json file of `fit --output`, or "
    "triples: one for all steps, '3.4445,-4.775,2.0315', or one per step, 'a,b,c a,b,c'"
)
SPECTRA: Final = (
    "training: a model of momentum in training; gaussian; log-uniform: evenly in log sigma over "
    "[0.001, 1]; or a .json file of captured spectra, as `ROOTRefit` writes it (default: training)"
)
SHAPE: Final = "shape of a matrix, like 768x3072, in either order"
SHAPES: Final[dict[str, Any]] = {"nargs": "*", "type": read_shape, "metavar": "SHAPE"}
COUNT: Final = "number of steps, one or several"
STEPS: Final[dict[str, Any]] = {"nargs": "+", "type": read_steps, "metavar": "T"}


def make_parser() -> CommandParser:
    """Return the parser of all subcommands; `certify` exits with 1 if a set is unbounded."""
    name = f"{program()} coefficients"
    parser = CommandParser(
        help_if_empty=True, prog=name, description=DESCRIPTION, epilog=EXAMPLES.format(program=name)
    )
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for command, add_arguments in ARGUMENTS.items():
        text = inspect.getdoc(command) or ""
        purpose = text.partition("\n")[0]
        subcommand = commands.add_parser(command.__name__, help=purpose, description=text)
        subcommand.set_defaults(run=command)
        add_arguments(subcommand)
        add_json(subcommand)
    return parser


def _add_show(parser: CommandParser) -> None:
    add = parser.add_argument
    add("shapes", **SHAPES, help=SHAPE)
    add("--coefficients", default="adaptive", metavar="SET", help=f"{SETS} (default: adaptive)")
    add("--steps", **STEPS, default=[], help=f"{COUNT} (default: 5, or all that a file has)")


def _add_certify(parser: CommandParser) -> None:
    add = parser.add_argument
    add("set", metavar="SET", help=SETS)
    add("shapes", **SHAPES, help=f"{SHAPE}, for sets that depend on it")
    add("--steps", **STEPS, default=[], help=f"{COUNT} (default: 5, or all that a file has)")


def _add_fit(parser: CommandParser) -> None:
    add = parser.add_argument
    add("shapes", **SHAPES, help=f"{SHAPE}; without any, all captured ones")
    add("--steps", **STEPS, default=[5], help=f"{COUNT}, at most 12 (default: 5)")
    add("--spectrum", default="training", metavar="SPECTRUM", help=SPECTRA)
    text = (
        "weight of captured singular values in what is fitted to, the rest are Gaussian; the "
        "paper's is 0.25 (default: 0.75)"
    )
    add("--captured-share", type=read_share, metavar="SHARE", help=text)
    text = "one triple for all steps, as in the paper, instead of one per step"
    add("--single", action="store_true", help=text)
    text = "write the sets to a file for `--optimizer.coefficients`"
    add("--output", type=read_json_output, metavar="FILE.json", help=text)
    add_plot(parser, "p_T over log sigma, and the errors")


def _add_compare(parser: CommandParser) -> None:
    add = parser.add_argument
    add("shapes", **SHAPES, help=f"{SHAPE}; without any, all captured ones")
    add("--steps", **STEPS, default=[3, 4, 5, 6], help=f"{COUNT} (default: 3 4 5 6)")
    add("--spectrum", default="training", metavar="SPECTRUM", help=SPECTRA)
    text = "files of `fit --output` to compare with"
    add("--with", dest="files", nargs="+", default=[], metavar="FILE.json", help=text)
    add_plot(parser, "p_T over log sigma, and the errors")


ARGUMENTS: Final = {show: _add_show, fit: _add_fit, certify: _add_certify, compare: _add_compare}
