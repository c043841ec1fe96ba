"""Reads a sweep's YAML file, and says what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from examples.sweeps.plan import Plot, Sweep, folder_name
from lightning_root.diagnostics.report.curves import mode_of

KEYS = {entry.name for entry in fields(Sweep)} - {"name", "settings", "kept"}
REQUIRED = ("base", "axes", "seeds", "metric")
BOOLEANS = {True: "on", False: "off", None: "none"}  # what YAML makes of these words


def read_sweep(
    path: Path,
    seeds: Sequence[int] | None = None,
    options: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Sweep:
    """Read a sweep's file.

    Args:
        path: The file. Config files that it names are relative to the working directory.
        seeds: Used instead of the file's.
        options: Further options of every run, such as `trainer.max_steps=500`.
        keep: Values to keep of an axis, such as `optimizer=Muon`; of axes not named, all.

    Raises:
        ValueError: If the file or a config file is missing, a key is unknown, an axis or a value
            is named that there is not, or two combinations have the same folder.
    """
    values = _mapping(_load(path), f"`{path}`")
    if unknown := sorted(values.keys() - KEYS):
        raise ValueError(f"`{path}` has unknown keys {unknown}; a sweep has {sorted(KEYS)}")
    if missing := [key for key in REQUIRED if key not in values]:
        raise ValueError(f"`{path}` must have {missing}; a sweep needs {list(REQUIRED)}")
    if seeds is not None:
        values["seeds"] = list(seeds)
    axes = {
        str(axis): {_label(k): _arguments(v) for k, v in _mapping(entries, f"`{axis}`").items()}
        for axis, entries in _mapping(values["axes"], "`axes`").items()
    }
    sweep = Sweep(
        name=path.stem,
        base=tuple(values["base"]),
        axes=axes,
        seeds=_seeds(values["seeds"], "seeds"),
        metric=values["metric"],
        mode=values.get("mode") or mode_of(values["metric"]),
        seeded=tuple(values.get("seeded", ("seed_everything",))),
        tune=values.get("tune"),
        tune_seeds=_seeds(values.get("tune_seeds", ()), "tune_seeds"),
        only=_only(values.get("only", {})),
        baseline={axis: _label(label) for axis, label in values.get("baseline", {}).items()},
        plot=Plot(**values["plot"]) if "plot" in values else None,
        settings=tuple(f"--{option}" for option in options),
        kept=_kept(keep),
    )
    _check(sweep)
    return sweep


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"`{path}` is not YAML: {error}") from error


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{what} must be a mapping with at least one entry, got {value!r}")
    return value


def _label(key: Any) -> str:
    """A key of YAML as the text that was written, as far as it can be known."""
    return BOOLEANS[key] if key is None or isinstance(key, bool) else str(key)


def _arguments(value: Any) -> tuple[str, ...]:
    """Of a config file, dotted options, or a list of both; null adds nothing."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (f"--config={value}",)
    if isinstance(value, Mapping):
        return tuple(f"--{option}={_text(setting)}" for option, setting in value.items())
    if isinstance(value, list):
        return tuple(argument for entry in value for argument in _arguments(entry))
    raise ValueError(
        f"a value of an axis must be config files or options, got {value!r}; for example "
        "[configs/optimizer/adamw.yaml, {optimizer.lr: 0.003}]"
    )


def _text(setting: Any) -> str:
    return setting if isinstance(setting, str) else json.dumps(setting)


def _seeds(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(seed) is int for seed in value):
        raise ValueError(f"`{name}` must be a list of integers, got {value!r}")
    if len(set(value)) < len(value) or (name == "seeds" and not value):
        raise ValueError(f"`{name}` must be different seeds, at least one, got {value}")
    return tuple(value)


def _only(values: Mapping[str, Any]) -> dict[str, dict[str, dict[str, list[str]]]]:
    return {
        axis: {
            _label(label): {other: list(map(_label, allowed)) for other, allowed in rule.items()}
            for label, rule in rules.items()
        }
        for axis, rules in values.items()
    }


def _kept(keep: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in keep:
        axis, equals, label = entry.partition("=")
        if not equals:
            raise ValueError(f"`--only` must be AXIS=VALUE, got {entry!r}; such as optimizer=Muon")
        found.setdefault(axis, []).append(label)
    return found


def _check(sweep: Sweep) -> None:
    """Everything that is named is there."""
    if sweep.mode not in ("min", "max"):
        raise ValueError(f"`mode` must be min or max, got {sweep.mode!r}; a loss wants min")
    plot = sweep.plot
    chosen = [sweep.tune] if plot is None else [sweep.tune, plot.over, plot.lines, plot.panels]
    rules = [
        rule for entries in sweep.only.values() for other in entries.values() for rule in other
    ]
    for axis in [*chosen, *sweep.only, *rules, *sweep.baseline, *sweep.kept]:
        if axis is not None and axis not in sweep.axes:
            raise ValueError(f"{axis!r} must be an axis; there are {list(sweep.axes)}")
    for axis, label in _named_labels(sweep):
        if label not in sweep.axes[axis]:
            raise ValueError(
                f"{label!r} must be a value of {axis!r}; there are {list(sweep.axes[axis])}"
            )
    if sweep.tune in sweep.baseline:
        raise ValueError(f"`baseline` must not name {sweep.tune!r}, of which the best is taken")
    combinations = sweep.combinations()
    if not combinations:
        raise ValueError("`only` must leave at least one combination, and leaves none")
    if len(set(map(folder_name, combinations))) < len(combinations):
        raise ValueError("`axes` must have labels that differ in letters, digits, or one of .=,+-")
    arguments = [value for axis in sweep.axes.values() for value in axis.values()]
    files = [a.removeprefix("--config=") for v in arguments for a in v if a.startswith("--config=")]
    for file in [*sweep.base, *files]:
        if not Path(file).is_file():
            raise ValueError(f"`{file}` must be a config file; call from the project's root")


def _named_labels(sweep: Sweep) -> list[tuple[str, str]]:
    """(axis, label) wherever the file names a value outside of `axes`."""
    named = list(sweep.baseline.items())
    named += [(axis, label) for axis, labels in sweep.kept.items() for label in labels]
    for axis, rules in sweep.only.items():
        for label, rule in rules.items():
            named.append((axis, label))
            named += [(other, allowed) for other, labels in rule.items() for allowed in labels]
    return named
