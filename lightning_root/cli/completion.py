"""`python -m lightning_root completion`: what a shell needs to complete words of the command line.

The script holds all commands, options and choices, so that the TAB key starts no Python.
"""

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.cli import LightningArgumentParser

from lightning_root.cli.commands import COMMANDS
from lightning_root.cli.lightning import MainCLI, MainParser
from lightning_root.cli.parser import CommandParser, program, run_command

SHELLS: Final = ("bash", "zsh", "tcsh")
SCRIPT: Final = "lightning-root"
"""The command that is completed; shells complete by a command's first word."""

DESCRIPTION: Final = """\
Print a script by which a shell completes the commands and options of `lightning-root`, with the
names of Trainer options, optimizers and callbacks. It takes some seconds to make and none to use.
Needs shtab: pip install 'lightning-root[completion]'."""

EPILOG: Final = """\
bash:  lightning-root completion bash > ~/.local/share/bash-completion/completions/lightning-root
zsh:   lightning-root completion zsh > FOLDER/_lightning-root, with FOLDER in $fpath
tcsh:  lightning-root completion tcsh > FILE, and `source FILE` in ~/.tcshrc
"""


def run(arguments: Sequence[str]) -> int:
    """Print the script of one shell.

    Args:
        arguments: What follows `completion`.

    Returns:
        Never.

    Raises:
        SystemExit: With status 0 once it is printed; with status 2 and one line on stderr if the
            arguments are wrong, or shtab is not there.
    """
    return run_command(make_parser(), arguments)


def make_parser() -> CommandParser:
    """The parser of its one argument."""
    parser = CommandParser(prog=f"{program()} completion", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("shell", choices=SHELLS, help="your shell: `echo $0` names it")
    parser.set_defaults(run=_completion)
    return parser


def parsers() -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of the commands that are not LightningCLI's."""
    from lightning_root.cli import partition, plan, report
    from lightning_root.cli.coefficients import command as coefficients
    from lightning_root.cli.convert import command as convert
    from lightning_root.cli.doctor import command as doctor

    return {
        "partition": partition.make_parser(),
        "coefficients": coefficients.make_parser(),
        "report": report.make_parser("report"),
        "compare": report.make_parser("compare"),
        "plan": plan.make_parser(),
        "convert-checkpoint": convert.make_parser(),
        "doctor": doctor.make_parser(),
        "completion": make_parser(),
    }


class _FullParser(MainParser):
    """The parser of all commands, those that do not train with their options too."""

    def list_commands(self) -> None:
        """Name the commands, with what they take."""
        for name, parser in parsers().items():
            listed = MainParser()
            for action in parser._actions:
                if not isinstance(action, argparse._HelpAction):
                    listed._add_action(_with_files(action))
            self.listing.add_subcommand(name, listed, help=COMMANDS[name].__doc__)


class _ScriptCLI(MainCLI):
    """Prints a script in place of running anything, and leaves, as `--help` does.

    Args:
        shell: One of `SHELLS`.
    """

    def __init__(self, shell: str) -> None:
        self.shell = shell
        super().__init__(
            parser_class=_FullParser,
            parser_kwargs={"prog": SCRIPT},
            args=[],
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Print the script of the finished parser."""
        del args
        print(parser.get_completion_script(f"shtab-{self.shell}"))
        raise SystemExit(0)  # the parser cannot be used again


def _with_files(action: argparse.Action) -> argparse.Action:
    """The same action, completed with names of files or folders where it takes them."""
    import shtab

    shown = str(action.metavar)
    if shown in ("FOLDER", "RUN_DIR"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.type is Path or "FILE" in shown:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    return action


def _completion(options: argparse.Namespace) -> int:
    if find_spec("shtab") is None or not hasattr(MainParser, "get_completion_script"):
        raise ModuleNotFoundError(
            "shtab and a jsonargparse that knows it are needed: "
            "pip install 'lightning-root[completion]'"
        )
    _ScriptCLI(options.shell)
    return 0
