"""The parser of commands beside LightningCLI's: one line for a wrong word, no traceback."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """argparse's parser with the text of help as it is written, and errors of one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        self.exit(2, f"error: {message}\n")


class ModelParser(CommandParser):
    """Its own options; all others are left for LightningCLI's parser, in `model`.

    Args:
        command: Its name.
        usage: What follows the name.
        description: Of the help.
        examples: At its end; `{program}` stands for all that comes before the options.
    """

    def __init__(self, command: str, usage: str, description: str, examples: str) -> None:
        called = f"{program()} {command}"
        super().__init__(
            prog=called,
            usage=f"{called} {usage}",
            description=description,
            epilog=examples.format(program=called),
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Own options, and nothing that is unknown."""
        options, options.model = super().parse_known_args(args, namespace)
        return options, []


def add_allocate(parser: CommandParser) -> None:
    """Add the option for models that cannot be made without memory, as `read_model` names it."""
    parser.add_argument(
        "--allocate",
        action="store_true",
        help="make the model in memory after all, if it cannot be made without",
    )


def run_command(parser: CommandParser, arguments: Sequence[str]) -> int:
    """Call the function that the arguments choose; what the user can mend is one line on stderr.

    Args:
        parser: Its subcommands set the default `run`: takes the options, returns the exit status.
        arguments: What follows the command's name.

    Raises:
        SystemExit: With status 2 if the arguments are wrong, and after `--help`.
    """
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # `| head` has seen enough, and the interpreter is not to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.error(str(error))
    return status


def run_or_help(parser: CommandParser, arguments: Sequence[str]) -> int:
    """As `run_command`; without arguments show the help, which ends with status 2."""
    if arguments:
        return run_command(parser, arguments)
    parser.print_help(sys.stderr)
    return 2


def program() -> str:
    """What the user types before the first argument."""
    script = Path(sys.argv[0]).stem
    return script if script == "lightning-root" else "python -m lightning_root"
