"""Logs that cannot be written end no run."""

from collections.abc import Iterator
from types import TracebackType

from lightning.pytorch.utilities import rank_zero_warn


class Unwritten:
    """A context in which a disk that is full, or gone, costs what was to be written, and no more.

    There is one warning, whatever the number of times.

    Args:
        who: The callback that writes.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.warned = False

    def __enter__(self) -> None:
        """Nothing is needed before."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Take an error of the operating system for a warning."""
        del kind, trace
        # Lightning's TensorBoardLogger makes a ValueError of it: "you tried to log 0.3".
        found = next((e for e in causes(error) if isinstance(e, OSError)), None)
        if found is None:
            return False
        if not self.warned:
            self.warned = True
            rank_zero_warn(
                f"{self.who} cannot write to the logs and leaves out what it would have shown, "
                f"now and as long as that lasts; training is not affected: {found}"
            )
        return True


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
