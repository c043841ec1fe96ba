"""The commands beside LightningCLI's, by their first argument.

Each takes the arguments after its name and returns an exit status. Its docstring is its line in
`--help`. It imports what it needs when it runs, so that one command does not slow another's start.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final


def _partition(arguments: Sequence[str]) -> int:
    """Show which parameter gets which rule and why, without training."""
    from lightning_root.cli.partition import run

    return run(arguments)


def _coefficients(arguments: Sequence[str]) -> int:
    """Show, fit, certify and compare the coefficients of the iteration."""
    from lightning_root.cli.coefficients import run

    return run(arguments)


def _report(arguments: Sequence[str]) -> int:
    """Write what the logs of a run tell as a page with figures."""
    from lightning_root.cli.report import run

    return run("report", arguments)


def _compare(arguments: Sequence[str]) -> int:
    """Write a page about several runs: who is ahead, and by how much."""
    from lightning_root.cli.report import run

    return run("compare", arguments)


def _plan(arguments: Sequence[str]) -> int:
    """Plan which of N ranks orthogonalizes which matrix, for any model."""
    from lightning_root.cli.plan import run

    return run(arguments)


def _convert_checkpoint(arguments: Sequence[str]) -> int:
    """Make a run's optimizer state ROOT's, or load everywhere."""
    from lightning_root.cli.convert import run

    return run(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    """Look at versions, devices and the cache, and check the orthogonalizer."""
    from lightning_root.cli.doctor import run

    return run(arguments)


def _completion(arguments: Sequence[str]) -> int:
    """Print what bash, zsh or tcsh needs to complete the command line."""
    from lightning_root.cli.completion import run

    return run(arguments)


COMMANDS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {
    "partition": _partition,
    "coefficients": _coefficients,
    "report": _report,
    "compare": _compare,
    "plan": _plan,
    "convert-checkpoint": _convert_checkpoint,
    "doctor": _doctor,
    "completion": _completion,
}
