"""The commands beside LightningCLI's, by their first argument.

Each takes the arguments after its name and returns an exit status. Its docstring is its line in
`--help`. It imports what it needs when it runs, so that one command does not slow another's start.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final


def _coefficients(arguments: Sequence[str]) -> int:
    """Show, fit, certify and compare the coefficients of the iteration."""
    from lightning_root.cli.coefficients import run

    return run(arguments)


COMMANDS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {
    "coefficients": _coefficients,
}
