"""`python -m lightning_root plan`: what each of N ranks would do and exchange in a step."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast, get_args

from lightning_root.cli.coefficients.arguments import read_output, read_steps
from lightning_root.cli.parser import ModelParser, add_allocate, run_or_help
from lightning_root.cli.plan_model import read_model
from lightning_root.cli.plan_table import ELEMENT_BYTES, Plans, print_plans, print_plans_as_json
from lightning_root.cli.plots import check_picture
from lightning_root.distributed import COSTS, CostForm, Placement, matrices_in, plan_ownership
from lightning_root.partition import partition_parameters

DESCRIPTION: Final = """\
Plan which rank orthogonalizes which matrix, for any number of ranks, and print what the busiest of
them has to compute and to receive in a step. Nothing is trained, no data is read, and the model
takes no memory: a run that is meant for a thousand devices can be planned anywhere.

The model is given as for `fit`: `--config FILE`, or `--model CLASS_PATH` with its arguments as
`--model.NAME VALUE`; rules and steps are those of `--optimizer`. What else a file holds (data,
trainer, callbacks) is checked and not used."""

EXAMPLES: Final = """\
examples:
  {program} --config configs/quickstart.yaml --ranks 2 8
  {program} --model examples.gpt.GPT --model.depth 12 --ranks 8 64 --plot load.png
"""


def run(arguments: Sequence[str]) -> int:
    """Print the plans that the arguments after `plan` ask for; the help, with status 2, if none.

    Raises:
        SystemExit: With status 2 and the reason on stderr if the arguments are wrong.
    """
    return run_or_help(make_parser(), arguments)


def make_parser() -> ModelParser:
    """The parser of what LightningCLI's does not know."""
    usage = "(--config FILE | --model CLASS_PATH ...) --ranks N [N ...] [options]"
    parser = ModelParser("plan", usage, DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--ranks", nargs="+", type=_read_ranks, required=True, metavar="N", help="numbers of ranks")
    add(
        "--steps",
        type=read_steps,
        metavar="T",
        help="of the iteration (default: the optimizer's `ns_steps`)",
    )
    add(
        "--form",
        choices=get_args(CostForm),
        help="count the operations of the form with the fewest, or those of the standard form, "
        "which accelerators run (default: cheapest, unless the optimizer's `ns_form` is standard)",
    )
    add(
        "--dtype",
        choices=tuple(ELEMENT_BYTES),
        default="float32",
        help="of what travels between ranks (default: float32)",
    )
    add_allocate(parser)
    add(
        "--plot",
        type=read_output,
        metavar="FILE.png",
        help="draw the load of each rank (needs matplotlib)",
    )
    add("--json", action="store_true", help="print JSON, with every rank, instead of a table")
    parser.set_defaults(run=_plan)
    return parser


def _plan(options: argparse.Namespace) -> int:
    if options.plot:
        check_picture(options.plot)
    plans = _plans(options)
    if options.json:
        print_plans_as_json(plans)
    else:
        print_plans(plans)
    if options.plot:
        _draw(options.plot, plans, quiet=options.json)
    return 0


def _plans(options: argparse.Namespace) -> Plans:
    model, chosen = read_model(options.model, allocate=options.allocate)
    routes = partition_parameters(model, rules=chosen.get("rules")).routes
    matrices = [entry for route in routes for entry in matrices_in(route.name, route.matrices)]
    if not matrices:
        raise ValueError(f"`{type(model).__name__}` has no matrix for ROOT; `partition` says why")
    steps: int = options.steps or chosen.get("ns_steps", 5)
    usual = "standard" if chosen.get("ns_form") == "standard" else "cheapest"
    form = cast("CostForm", options.form or usual)
    plans = {
        (placement, ranks): plan_ownership(
            matrices,
            ranks,
            steps=steps,
            placement=placement,
            element_bytes=ELEMENT_BYTES[options.dtype],
            cost=COSTS[form],
        )
        for placement in cast("tuple[Placement, ...]", get_args(Placement))
        for ranks in sorted(set(options.ranks))
    }
    return Plans(type(model).__name__, tuple(matrices), steps, form, options.dtype, plans)


def _draw(path: Path, plans: Plans, quiet: bool) -> None:
    from lightning_root.cli.plan_picture import draw_loads

    draw_loads(path, plans)
    if not quiet:
        print(f"\nload of each rank drawn to {path}")


def _read_ranks(text: str) -> int:
    """A number of ranks, at least 1."""
    if re.fullmatch(r"[1-9]\d{0,5}", text) is None:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999999, got {text!r}")
    return int(text)
