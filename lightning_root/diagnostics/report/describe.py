"""A run in words: its label, and what it was set up with."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from lightning_root.diagnostics.report.run import Run

TRAINER: Final = (
    "max_steps",
    "max_epochs",
    "precision",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
)
"""What a reader wants to know of the Trainer."""

_LONGEST: Final = 160
"""Characters of a value."""


def label_of(run: Run) -> str:
    """Optimizer and learning rate, or the folder if no configuration tells."""
    optimizer = _mapping(run.config.get("optimizer"))
    if "class_path" not in optimizer:
        return run.name
    options = options_of(optimizer)
    words = [] if options.get("coefficients", "adaptive") == "adaptive" else ["coefficients"]
    if words and isinstance(options["coefficients"], str):
        words = [options["coefficients"]]
    if "outlier_quantile" in options and options["outlier_quantile"] is None:
        words.append("no threshold")
    elif options.get("outlier_quantile") == "auto":
        words.append("automatic threshold")
    variant = f" ({', '.join(words)})" if words else ""
    return f"{class_name(optimizer)}{variant}, lr {options.get('lr', 'default')}"


def labels_of(runs: Sequence[Run]) -> list[str]:
    """One for each run, with the folder where the same optimizer has several."""
    labels = [label_of(run) for run in runs]
    named = [
        f"{label}, {run.name}" if labels.count(label) > 1 and label != run.name else label
        for label, run in zip(labels, runs, strict=True)
    ]
    paths = [str(run.folder) for run in runs]
    return [p if named.count(n) > 1 else n for n, p in zip(named, paths, strict=True)]


def set_up(run: Run) -> list[tuple[str, str]]:
    """Rows of what the run was set up with, as far as the configuration tells."""
    config = run.config
    parts = {"Model": "model", "Data": "data", "Optimizer": "optimizer", "Schedule": "lr_scheduler"}
    rows = [(name, in_words(config.get(key))) for name, key in parts.items()]
    if not {"model", "optimizer", "trainer"} & config.keys():
        rows.append(("Hyperparameters", in_words(config)))
    trainer = _mapping(config.get("trainer"))
    rows.append(("Trainer", in_words({key: trainer[key] for key in TRAINER if key in trainer})))
    if isinstance(config.get("seed_everything"), int):
        rows.append(("Seed", str(config["seed_everything"])))
    # LightningCLI writes its version into a comment at the top.
    versions = re.findall(r"^# ([\w.]+)==(\S+)$", run.config_text, flags=re.MULTILINE)
    rows.append(("Software", ", ".join(f"{name} {version}" for name, version in versions)))
    return [(name, text) for name, text in rows if text]


def in_words(part: Any) -> str:
    """A part of a configuration: its class, and the options that are set."""
    values = _mapping(part)
    if not values:
        return ""
    options = options_of(values)
    text = ", ".join(
        f"{key} {_value(value)}"
        for key, value in options.items()
        # None means "not set" but for one option, which it switches off.
        if (value is not None or key == "outlier_quantile") and not str(key).startswith("_")
    )
    if "class_path" not in values:
        return text
    return f"{values['class_path']}: {text}" if text else str(values["class_path"])


def options_of(part: Any) -> Mapping[str, Any]:
    """The options of a `class_path` with its `init_args`, or of a plain mapping."""
    values = _mapping(part)
    return _mapping(values.get("init_args")) if "class_path" in values else values


def class_name(part: Mapping[str, Any]) -> str:
    """`AdamW` of `torch.optim.AdamW`."""
    return str(part["class_path"]).rpartition(".")[2]


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Options in which configurations differ: a value for each run, "-" where it has none."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for options in flat for key in options)
    return {
        key: [options.get(key, "-") for options in flat]
        for key in keys
        if len({options.get(key) for options in flat}) > 1 and not key.startswith("trainer.logger")
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{name}.")
        else:
            found.append((name.replace(".init_args.", "."), _value(value)))
    return found


def _value(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    if isinstance(value, str):
        text = value
    elif value is None or isinstance(value, bool | int | float):
        text = f"{value:g}" if isinstance(value, float) else str(value).lower()
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
