"""A sweep's file, and the runs that it stands for."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

Labels: TypeAlias = Mapping[str, str]
"""One value of each axis, by name."""

LOGGER = "lightning.pytorch.loggers.TensorBoardLogger"


@dataclass(frozen=True)
class Plot:
    """What the picture over an axis shows.

    Args:
        over: Axis along the bottom. Values that are not numbers become level lines.
        lines: Axis with a line for each value; None for one line.
        panels: Axis with a panel for each value; None for one panel.
    """

    over: str
    lines: str | None = None
    panels: str | None = None


@dataclass(frozen=True)
class Run:
    """One combination of values with one seed.

    Args:
        labels: The combination.
        seed: Of the run.
        folder: For its logs and its `result.json`.
        arguments: Of `python -m lightning_root`.
        fingerprint: Hash of all that the arguments and the files that they name set.
        metric: Tag of the curve that counts.
        mode: Whether less or more of it is better.
    """

    labels: Labels
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    fingerprint: str
    metric: str
    mode: Literal["min", "max"]

    @property
    def result(self) -> Path:
        """The file that says that the run is done."""
        return self.folder / "result.json"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder / "output.txt"

    @property
    def checkpoint(self) -> Path:
        """Where the run goes on if it was interrupted and keeps checkpoints."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def name(self) -> str:
        """In words: `optimizer ROOT, lr 0.012, seed 0`."""
        return f"{in_words(self.labels)}, seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says; `examples.sweeps.file.read_sweep` reads one.

    Args:
        name: Of the file.
        base: Config files of every run, in their order.
        axes: Arguments that each value of each axis adds, by axis and label.
        seeds: Of the runs that are compared.
        seeded: Options that are set to the seed.
        metric: Tag of the curve that counts, by its last value.
        mode: Whether less or more of it is better.
        tune: Axis of which, for each combination of the others, the best value is taken.
        tune_seeds: Of the runs that the best is chosen by; empty for `seeds`.
        only: By axis and label: labels of other axes that go together with it.
        baseline: Values that others are compared with; axes that are not named are alike.
        plot: The picture over an axis.
        settings: Arguments of every run, after its config files and before what its values add.
        kept: By axis: the only labels that are run, where not all are.
    """

    name: str
    base: tuple[str, ...]
    axes: Mapping[str, Mapping[str, tuple[str, ...]]]
    seeds: tuple[int, ...]
    metric: str
    mode: Literal["min", "max"]
    seeded: tuple[str, ...] = ("seed_everything",)
    tune: str | None = None
    tune_seeds: tuple[int, ...] = ()
    only: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = field(default_factory=dict)
    baseline: Labels = field(default_factory=dict)
    plot: Plot | None = None
    settings: tuple[str, ...] = ()
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def combinations(self) -> list[Labels]:
        """All combinations of values that go together, in the order of the file."""
        products = itertools.product(*self.axes.values())
        found = (dict(zip(self.axes, labels, strict=True)) for labels in products)
        return [labels for labels in found if self._go_together(labels)]

    def groups(self) -> list[tuple[Labels, list[Labels]]]:
        """The combinations that are compared, each with those that it is the best of."""
        found: dict[tuple[str, ...], list[Labels]] = {}
        for labels in self.combinations():
            found.setdefault(tuple(without(labels, self.tune).values()), []).append(labels)
        return [(without(members[0], self.tune), members) for members in found.values()]

    def run(self, labels: Labels, seed: int, output: Path) -> Run:
        """The run of a combination and a seed, with its logs below a folder."""
        chosen = [argument for axis in self.axes for argument in self.axes[axis][labels[axis]]]
        settings = [f"--config={file}" for file in self.base] + [*self.settings, *chosen]
        settings += [f"--{option}={seed}" for option in self.seeded]
        logger = [
            f"--trainer.logger={LOGGER}",
            f"--trainer.logger.save_dir={output}",
            f"--trainer.logger.name={folder_name(labels)}",
            f"--trainer.logger.version=seed_{seed}",
            "--trainer.logger.default_hp_metric=false",
        ]
        return Run(
            labels,
            seed,
            output / folder_name(labels) / f"seed_{seed}",
            ("fit", *settings, *logger),
            _fingerprint(settings),
            self.metric,
            self.mode,
        )

    def runs(self, combinations: Sequence[Labels], seeds: Sequence[int], to: Path) -> list[Run]:
        """Each combination with each seed; seeds in turn, so that comparisons grow evenly."""
        return [self.run(labels, seed, to) for seed in seeds for labels in combinations]

    def _go_together(self, labels: Labels) -> bool:
        if any(labels[axis] not in kept for axis, kept in self.kept.items()):
            return False
        demands = (self.only.get(axis, {}).get(label, {}) for axis, label in labels.items())
        return all(
            labels[axis] in allowed for demand in demands for axis, allowed in demand.items()
        )


def without(labels: Labels, axis: str | None) -> Labels:
    """The labels of all other axes."""
    return {name: label for name, label in labels.items() if name != axis}


def in_words(labels: Labels) -> str:
    """`optimizer ROOT, lr 0.012`."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def in_short(labels: Labels) -> str:
    """`ROOT, lr 0.012`: without the names of axes whose labels say enough."""
    return ", ".join(
        label
        if re.search(r"[a-zA-Z]{3}", label) and label not in ("off", "none")
        else f"{axis} {label}"
        for axis, label in labels.items()
    )


def folder_name(labels: Labels) -> str:
    """A combination as a folder that no shell has to quote: `optimizer=ROOT,lr=0.012`."""
    text = ",".join(f"{axis}={label}" for axis, label in labels.items())
    return re.sub(r"[^\w.=,+-]+", "_", text)


def _fingerprint(settings: Sequence[str]) -> str:
    """A hash of what the arguments set: values, not comments or layout of files."""
    values = list(_values(settings))
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def _values(settings: Sequence[str]) -> Iterator[Any]:
    for argument in settings:
        name, _, value = argument.partition("=")
        yield yaml.safe_load(Path(value).read_text("utf-8")) if name == "--config" else argument
