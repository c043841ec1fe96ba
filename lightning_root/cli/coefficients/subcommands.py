"""The parser of `coefficients`: its subcommands, their arguments and help."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

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

DESCRIPTION = """\
Coefficients of the Newton-Schulz iteration, by the shape of a matrix: look at those in use, fit
your own, check what a set can do, compare with published ones.

T steps send a singular value sigma of a matrix of norm 1 to p_T(sigma), each step by
sigma -> a sigma + b sigma^3 + c sigma^5. The error of a set is the mean of (p_T(sigma) - 1)^2 over
the singular values that such matrices have: those of Gaussian matrices, of a model of momentum in
training, or captured in a run."""

EXAMPLES = """\
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

COMPARED_SETS = """\
  Muon           K. Jordan et al., 2024: one triple for all shapes
  paper          ROOT, arXiv:2511.20626: one triple per shape, fitted to Gaussian matrices
  published      the ROOT authors' script: four shapes, Muon's triple elsewhere
  You            J. You; F. Cesista: a triple per step
  Polar Express  arXiv:2505.16932: a triple per step
  CANS           arXiv:2506.10935: a triple per step
  adaptive       the default: a triple per step and shape"""

SET_HELP = (
    f"{', '.join(COEFFICIENT_NAMES)}, a .json file of `fit --output`, or "
    "triples: one for all steps, '3.4445,-4.775,2.0315', or one per step, 'a,b,c a,b,c'"
)
SOME_STEPS = "number of steps, one or several"
STEPS_OF_SETS = f"{SOME_STEPS} (default: 5, or all that a file has)"

AddParser: TypeAlias = Callable[..., CommandParser]


def make_parser() -> CommandParser:
    """Return the parser of all subcommands; `certify` exits with 1 if a set is unbounded."""
    name = f"{program()} coefficients"
    parser = CommandParser(
        help_if_empty=True, prog=name, description=DESCRIPTION, epilog=EXAMPLES.format(program=name)
    )
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    _add_show(commands.add_parser)
    _add_fit(commands.add_parser)
    _add_certify(commands.add_parser)
    _add_compare(commands.add_parser)
    return parser


def _add_show(add_parser: AddParser) -> None:
    parser = _add(
        add_parser,
        show,
        "The triples of a set, where they come from and what they can do.",
        'Without a shape: the errors of the table that is shipped as "adaptive", or all sets of '
        "a file.",
    )
    _add_shapes(parser)
    text = f"{SET_HELP} (default: adaptive)"
    parser.add_argument("--coefficients", default="adaptive", metavar="SET", help=text)
    _add_steps(parser, [], STEPS_OF_SETS)
    add_json(parser)


def _add_fit(add_parser: AddParser) -> None:
    parser = _add(
        add_parser,
        fit,
        "Fit sets for shapes, less than a second each, and write them to a file.",
        "A fit minimises the error on the spectrum among sets that keep [0, 1.02] within [0, 1.3].",
    )
    _add_shapes(parser, "; without any, all captured ones")
    _add_steps(parser, [5], f"{SOME_STEPS}, at most 12 (default: 5)")
    _add_spectrum(parser)
    text = (
        "weight of captured singular values in what is fitted to, the rest are Gaussian; the "
        "paper's is 0.25 (default: 0.75)"
    )
    parser.add_argument("--captured-share", type=read_share, metavar="SHARE", help=text)
    text = "one triple for all steps, as in the paper, instead of one per step"
    parser.add_argument("--single", action="store_true", help=text)
    text = "write the sets to a file for `--optimizer.coefficients`"
    parser.add_argument("--output", type=read_json_output, metavar="FILE.json", help=text)
    add_plot(parser, "p_T over log sigma, and the errors")
    add_json(parser)


def _add_certify(add_parser: AddParser) -> None:
    parser = _add(
        add_parser,
        certify,
        "Whether sets are bounded: the exact range of p_T, the largest stable input.",
        "A set is bounded if no singular value in [0, 1] is sent outside [-2, 2]; ROOT refuses "
        "others.\nExit status: 0 if all are bounded, 1 if one is not, 2 if the input is wrong.",
    )
    parser.add_argument("set", metavar="SET", help=SET_HELP)
    _add_shapes(parser, ", for sets that depend on it")
    _add_steps(parser, [], STEPS_OF_SETS)
    add_json(parser)


def _add_compare(add_parser: AddParser) -> None:
    parser = _add(
        add_parser,
        compare,
        "The error of published sets, the default and your own, by shape.",
        COMPARED_SETS,
    )
    _add_shapes(parser, "; without any, all captured ones")
    _add_steps(parser, [3, 4, 5, 6], f"{SOME_STEPS} (default: 3 4 5 6)")
    _add_spectrum(parser)
    text = "files of `fit --output` to compare with"
    parser.add_argument(
        "--with", dest="files", nargs="+", default=[], metavar="FILE.json", help=text
    )
    add_plot(parser, "p_T over log sigma, and the errors")
    add_json(parser)


def _add(
    add_parser: AddParser, command: Callable[[argparse.Namespace], int], purpose: str, more: str
) -> CommandParser:
    """Add a subcommand under the name of the function that carries it out."""
    name = command.__name__
    parser = add_parser(name, help=purpose, description=f"{purpose}\n\n{more}")
    parser.set_defaults(run=command)
    return parser


def _add_shapes(parser: CommandParser, more: str = "") -> None:
    text = f"shape of a matrix, like 768x3072, in either order{more}"
    parser.add_argument("shapes", nargs="*", type=read_shape, metavar="SHAPE", help=text)


def _add_steps(parser: CommandParser, default: list[int], text: str) -> None:
    parser.add_argument(
        "--steps", nargs="+", type=read_steps, default=default, metavar="T", help=text
    )


def _add_spectrum(parser: CommandParser) -> None:
    text = (
        "training: a model of momentum in training; gaussian; log-uniform: evenly in log sigma "
        "over [0.001, 1]; or a .json file of captured spectra, as `ROOTRefit` writes it (default: "
        "training)"
    )
    parser.add_argument("--spectrum", default="training", metavar="SPECTRUM", help=text)
