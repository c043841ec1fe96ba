"""Questions of callbacks to the Trainer, and writing to logs on a full disk."""

from collections import Counter
from collections.abc import Iterator

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_root.optim import ROOT


def step_of(trainer: Trainer) -> int:
    """Return the step at which Lightning puts its own points, so that all curves share one axis."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def roots_of(trainer: Trainer) -> list[ROOT]:
    """Return those of its optimizers that are ROOT."""
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, ROOT)]


def parameter_names(trainer: Trainer) -> list[str]:
    """Return the names of all parameters, in the order of the model."""
    partitions = [optimizer.partition for optimizer in roots_of(trainer)]
    return [route.name for partition in partitions if partition for route in partition.routes]


def skipped_updates(trainer: Trainer) -> Counter[str]:
    """Return the number of updates left out so far, by parameter."""
    total: Counter[str] = Counter()
    for optimizer in roots_of(trainer):
        total += optimizer.skipped
    return total


def check_whole(name: str, value: object, minimum: int, hint: str) -> None:
    """Raise TypeError unless an option is a whole number, ValueError if it is below a minimum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}; {hint}")
    if value < minimum:
        raise ValueError(f"`{name}` must be >= {minimum}, got {value}; {hint}")


class SuppressLogWriteErrors:
    """Context in which a full or missing disk costs what was to be logged, and one warning."""

    def __init__(self, callback: str) -> None:
        self.callback = callback
        self.warned = False

    def __enter__(self) -> None:
        """Do nothing: what counts is how the context ends."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Warn once of an OSError in place of raising it."""
        # Lightning's TensorBoardLogger makes a ValueError of it: "you tried to log 0.3".
        found = next((e for e in error_chain(error) if isinstance(e, OSError)), None)
        if found is None:
            return False
        if not self.warned:
            self.warned = True
            rank_zero_warn(
                f"{self.callback} cannot write to the logs and leaves out what it would have "
                f"shown, now and as long as that lasts; training is not affected: {found}"
            )
        return True


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
