"""What a callback that watches ROOT asks of the Trainer."""

from collections import Counter

from lightning.pytorch import Trainer

from lightning_root.optim import ROOT


def step_of(trainer: Trainer) -> int:
    """Where Lightning puts its own points, so that all curves share one axis."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def roots_of(trainer: Trainer) -> list[ROOT]:
    """Those of its optimizers that are ROOT."""
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, ROOT)]


def names_of(trainer: Trainer) -> list[str]:
    """Of all parameters, in the order of the model."""
    partitions = [optimizer.partition for optimizer in roots_of(trainer)]
    return [route.name for partition in partitions if partition for route in partition.routes]


def skipped_by(trainer: Trainer) -> Counter[str]:
    """Updates left out so far, by parameter."""
    total: Counter[str] = Counter()
    for optimizer in roots_of(trainer):
        total += optimizer.skipped
    return total


def check_interval(value: object) -> None:
    """Refuse what is no number of steps between points; None takes the Trainer's."""
    hint = "None takes the Trainer's"
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`log_every_n_steps` must be a whole number, got {value!r}; {hint}")
    if value < 1:
        raise ValueError(f"`log_every_n_steps` must be >= 1, got {value}; {hint}")
