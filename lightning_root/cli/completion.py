"""`python -m lightning_root completion`: a script that holds all commands, options and choices."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.cli import LightningArgumentParser

from lightning_root.cli.lightning import MainCLI, MainParser
from lightning_root.cli.parser import COMMANDS, parser_of

SCRIPT: Final = "lightning-root"  # shells complete by a command's first word


def run(options: argparse.Namespace) -> int:
    """Print the script of a shell."""
    if find_spec("shtab") is None or not hasattr(MainParser, "get_completion_script"):
        raise ModuleNotFoundError(
            "shtab and a jsonargparse that knows it are needed: "
            "pip install 'lightning-root[completion]'"
        )
    _ScriptCLI(options.shell)
    return 0


class _ScriptCLI(MainCLI):
    """Prints the script of a shell in place of running anything, and exits."""

    def __init__(self, shell: str) -> None:
        self.shell = shell
        super().__init__(parser_class=MainParser, parser_kwargs={"prog": SCRIPT}, args=[])

    def list_commands(self) -> None:
        """Add the commands with all that they take."""
        for name, purpose in COMMANDS.items():
            listed = MainParser()
            for action in parser_of(name)._actions:
                if not isinstance(action, argparse._HelpAction):
                    listed._add_action(_with_files(action))
            self.parser.subcommands_action.add_subcommand(name, listed, help=purpose)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Print the script of the finished parser."""
        del args
        print(parser.get_completion_script(f"shtab-{self.shell}"))
        raise SystemExit(0)  # the parser cannot be used again


def _with_files(action: argparse.Action) -> argparse.Action:
    """Have an action that takes files or folders completed with their names."""
    import shtab

    shown = str(action.metavar)
    if shown in ("FOLDER", "RUN_DIR"):
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.type is Path or "FILE" in shown:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    return action
