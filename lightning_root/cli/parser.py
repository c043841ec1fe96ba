"""The commands beside LightningCLI's: their names, their parser, and types of their arguments."""

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from lightning_root.coefficients import COEFFICIENT_NAMES

MAX_STEPS: Final = 99
MAX_RANKS: Final = 999_999
HELP: Final = Path(__file__).parent / "help"
TABLE: Final = tomllib.loads((HELP / "commands.toml").read_text("utf-8"))
COMMANDS: Final = {name: entry["about"] for name, entry in TABLE.items() if "about" in entry}
"""First argument of each command, and its line in `--help`."""


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, with help texts laid out as written and errors of one line."""

    help_if_empty = False
    takes_model = False  # whether it leaves unknown arguments, in `model`, to LightningCLI's parser

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options and what is unknown, which is left among them for a model."""
        options, rest = super().parse_known_args(args, namespace)
        if self.takes_model:
            options.model, rest = rest, []
        return options, rest


def run_command(parser: CommandParser, arguments: Sequence[str]) -> int:
    """Call the parser's default `run`, or what that names, and return its exit status."""
    # What the user can mend exits with status 2 and one line on stderr.
    if parser.help_if_empty and not arguments:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    try:
        if isinstance(options.run, str):
            module, _, function = options.run.partition(":")
            options.run = getattr(import_module(module), function)
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the interpreter must not flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.error(str(error))
    return status


def program() -> str:
    """Return what the user types before the first argument."""
    script = Path(sys.argv[0]).stem
    return script if script == "lightning-root" else "python -m lightning_root"


def parser_of(command: str, make: Callable[..., CommandParser] = CommandParser) -> CommandParser:
    """Make the parser of a command or a subcommand, with the texts in the folder `help`."""
    # In its file, a line `---` stands where the options come, and `{program}` for the call.
    entry, called = TABLE[command], f"{program()} {command}"
    text = (HELP / f"{command.replace(' ', '-')}.txt").read_text("utf-8")
    description, _, epilog = text.replace("{program}", called).partition("---\n")
    parser = make(prog=called, description=description, epilog=epilog)
    parser.help_if_empty = entry.get("help_if_empty", False)
    if "usage" in entry:
        parser.usage, parser.takes_model = f"{called} {entry['usage']}", True
    parser.set_defaults(run=entry.get("run"))
    subcommands = [name for name in TABLE if name.startswith(f"{command} ")]
    if subcommands:
        action = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for name in subcommands:
        purpose = (HELP / f"{name.replace(' ', '-')}.txt").read_text("utf-8").partition("\n")[0]
        parser_of(name, partial(action.add_parser, name.split()[-1], help=purpose))
    for name, own in entry.get("arguments", {}).items():
        options = TABLE["every"].get(name, {}) | own
        if "type" in options:
            options["type"] = READERS[options["type"]]
        options["help"] = options["help"].replace("{sets}", ", ".join(COEFFICIENT_NAMES))
        parser.add_argument(name, **options)
    return parser


def read_shape(text: str) -> tuple[int, int]:
    """Parse a shape like 768x3072, in either order, into (m, n) with m <= n."""
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"a shape is two whole numbers >= 1, written like 768x3072, got {text!r}"
        )
    m, n = sorted(map(int, match.groups()))
    return m, n


def read_count(text: str, most: int) -> int:
    """Parse a whole number from 1 to `most`, of as many digits."""
    if re.fullmatch(r"[1-9]\d*", text) is None or len(text) > len(str(most)):
        hint = "; shapes come before the options" if "x" in text and most == MAX_STEPS else ""
        wrong = f"must be a whole number from 1 to {most}, got {text!r}{hint}"
        raise argparse.ArgumentTypeError(wrong)
    return int(text)


def read_number(text: str, fits: Callable[[float], bool], rule: str, hint: str) -> float:
    """Parse a number that fits the rule, such as "in (0, 1]"."""
    try:
        if fits(number := float(text)):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be {rule}, got {text!r}; {hint}")


def read_output(text: str) -> Path:
    """Parse the path of a file to write, whose folder must exist."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return path


def read_json_output(text: str) -> Path:
    """Parse the path of a file to write that `coefficients=` takes for a file."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"must end in .json, by which `coefficients=` knows a file, got {text!r}"
        )
    return read_output(text)


READERS: Final[dict[str, Callable[[str], Any]]] = {
    "json_output": read_json_output,
    "output": read_output,
    "path": Path,
    "ranks": lambda text: read_count(text, MAX_RANKS),
    "shape": read_shape,
    "share": lambda text: read_number(
        text, lambda x: 0 < x <= 1, "in (0, 1]", "0.25 is the paper's"
    ),
    "steps": lambda text: read_count(text, MAX_STEPS),
    "weight": lambda text: read_number(text, lambda x: 0 <= x < 1, "in [0, 1)", "0.9 smooths much"),
}
