"""`main`: what `python -m lightning_root` and the console script `lightning-root` run."""

import os
import sys
import warnings
from collections.abc import Sequence

from lightning_root.cli.parser import COMMANDS, parser_of, run_command
from lightning_root.versions import explain, own_version


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, or LightningCLI; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A console script, unlike `python -m`, does not see modules of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if given and given[0] in COMMANDS:
        return run_command(parser_of(given[0]), given[1:])
    try:
        _run_lightning(None if arguments is None else given)
    except Exception as error:
        from lightning_root.binder import full_disk, notes_of
        from lightning_root.cli.messages import loading_error

        full = full_disk(error)
        if full is not None:
            print(f"error: {full}. {'. '.join(notes_of(error))}", file=sys.stderr)
            return 1
        explain(error)
        message = loading_error(error) or " ".join(str(error).split())
        if message.startswith("`") and not notes_of(error):  # as we name what the user can mend
            print(f"error: {message}", file=sys.stderr)
            return 2
        raise
    return 0


def _run_lightning(arguments: list[str] | None) -> None:
    """Run LightningCLI on the model and data that the configuration names."""
    from lightning_root.cli.lightning import MainCLI, MainParser

    # What Lightning's own calls to torch and jsonargparse print at every start is not for the user.
    warnings.filterwarnings(
        "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
    )
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    MainCLI(
        save_config_kwargs={"overwrite": True},
        parser_class=MainParser,
        parser_kwargs={
            "description": "Train with ROOT, and look into what it does.",
            "version": own_version(),
        },
        args=arguments,
    )
