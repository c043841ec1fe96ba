"""What goes to the loggers besides numbers, to those that can show it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from lightning.pytorch.loggers import Logger
from torch import Tensor

from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.pictures import heat_map

HEAT_MAPS: Final = {
    "orth_error": "Orthogonalization error, mean of (sigma - 1)^2",
    "outlier_energy": "Share of the momentum's energy beyond the threshold",
    "update_rms": "Root mean square of the scaled update",
    "update_to_weight": "log10 of learning rate * ||update|| / ||weight||",
}
"""Statistics that are drawn by layer and step, and the titles of the pictures."""

_LOGARITHMIC: Final = frozenset({"update_to_weight"})
"""It follows the learning rate over decades, beside which layers would not differ."""

_LAYOUT: Final = {
    "ROOT: all matrices": {
        "orthogonalization error": ["Multiline", ["root/orth_error/(mean|max)$"]],
        "singular values of the updates, least and greatest": [
            "Multiline",
            ["root/sigma_(min/min|max/max)$"],
        ],
        "update RMS, without the learning rate": [
            "Multiline",
            ["root/update_rms/(mean|min|max)$"],
        ],
        "update to weight, with the learning rate": [
            "Multiline",
            ["root/update_to_weight/(mean|max)$"],
        ],
        "cosine of momentum and update": ["Multiline", ["root/cosine/mean$"]],
        "outlier energy": ["Multiline", ["root/outlier_energy/(mean|max)$"]],
        "momentum kurtosis (Gaussian: 3)": ["Multiline", ["root/kurtosis/(mean|max)$"]],
        "skipped updates": ["Multiline", ["root/skipped$"]],
    },
    "ROOT: each parameter": {
        "orthogonalization error": ["Multiline", ["root/orth_error/(?!mean$|max$)"]],
        "update RMS": ["Multiline", ["root/update_rms/(?!mean$|min$|max$)"]],
        "update to weight": ["Multiline", ["root/update_to_weight/(?!mean$|max$)"]],
        "outlier energy": ["Multiline", ["root/outlier_energy/(?!mean$|max$)"]],
    },
}


def write_layout(loggers: Sequence[Logger]) -> None:
    """Arrange TensorBoard's page of custom scalars."""
    for add_custom_scalars in _writers(loggers, "add_custom_scalars"):
        add_custom_scalars(_LAYOUT)


def write_text(loggers: Sequence[Logger], tag: str, text: str, step: int) -> None:
    """Show text as it is, in columns that stay aligned."""
    for add_text in _writers(loggers, "add_text"):
        add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)


def write_histograms(loggers: Sequence[Logger], samples: Mapping[str, Tensor], step: int) -> None:
    """Show how values are distributed."""
    for add_histogram in _writers(loggers, "add_histogram"):
        for tag, values in samples.items():
            add_histogram(tag, values, step)


def write_heat_maps(loggers: Sequence[Logger], history: History) -> None:
    """Draw each statistic by layer and step."""
    writers = list(_writers(loggers, "add_image"))
    if not writers or not history.points:  # drawing takes longer than everything else
        return
    steps = history.column_steps()
    for (name, title), values in zip(HEAT_MAPS.items(), history.values(), strict=True):
        shown = values.log10() if name in _LOGARITHMIC else values
        pixels = heat_map(shown, history.labels, steps, title)
        for add_image in writers:
            add_image(f"root/heat_map/{name}", pixels, steps[-1], dataformats="HWC")


def _writers(loggers: Sequence[Logger], method: str) -> list[Callable[..., None]]:
    """Methods of TensorBoard's writers, on the ranks and of the loggers that have one."""
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in loggers]
    found = [getattr(experiment, method, None) for experiment in experiments]
    return [write for write in found if callable(write)]
