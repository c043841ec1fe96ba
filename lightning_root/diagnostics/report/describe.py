"""Runs, numbers and formulas as text."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from lightning_root.diagnostics.report.run import Run

TRAINER_OPTIONS: Final = (
    *("max_steps", "max_epochs", "precision", "accelerator", "devices", "num_nodes", "strategy"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic"),
)
"""What a reader wants to know of the Trainer."""

MAX_VALUE_LENGTH: Final = 160  # characters of a value
_SYMBOLS: Final = {
    "sigma": "\N{GREEK SMALL LETTER SIGMA}",
    " - ": " \N{MINUS SIGN} ",
    "(N, -q": "(N, \N{MINUS SIGN}q",
    "^2": "\N{SUPERSCRIPT TWO}",
    "^4": "\N{SUPERSCRIPT FOUR}",
    "||": "\N{DOUBLE VERTICAL LINE}",
    " x ": " \N{MULTIPLICATION SIGN} ",
}


def typeset(text: str) -> str:
    """Replace plain text by minus signs, powers and norms, in our own sentences alone.

    Example:
        >>> from lightning_root.diagnostics.report.describe import typeset
        >>> typeset("(s - 1)^2") == "(s \N{MINUS SIGN} 1)\N{SUPERSCRIPT TWO}"
        True
    """
    for plain, symbol in _SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def number(value: float | None) -> str:
    """Format with four decimals where that is readable, else three digits; "-" for None.

    Example:
        >>> from lightning_root.diagnostics.report.describe import number
        >>> number(1.26823), number(0.00123456), number(12345.6), number(None)
        ('1.2682', '0.00123', '12,346', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    if 1e3 <= size < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.1 <= size < 1e3 else f"{value:#.3g}"


def whole(value: float | None) -> str:
    """Format rounded, with commas; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Format as hours, minutes and seconds; "-" where they are not known."""
    if seconds is None or math.isnan(seconds):
        return "-"
    return str(timedelta(seconds=round(seconds)))


def label_of(run: Run) -> str:
    """Return optimizer and learning rate, or the folder if no configuration tells."""
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
    name = str(optimizer["class_path"]).rpartition(".")[2]
    return f"{name}{variant}, lr {options.get('lr', 'default')}"


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run, with the folder where the same optimizer has several."""
    labels = [label_of(run) for run in runs]
    named = [
        f"{label}, {run.name}" if labels.count(label) > 1 and label != run.name else label
        for label, run in zip(labels, runs, strict=True)
    ]
    paths = [str(run.folder) for run in runs]
    return [p if named.count(n) > 1 else n for n, p in zip(named, paths, strict=True)]


def setup_rows(run: Run) -> list[tuple[str, str]]:
    """Return rows of what the run was set up with, as far as the configuration tells."""
    config = run.config
    parts = {"Model": "model", "Data": "data", "Optimizer": "optimizer", "Schedule": "lr_scheduler"}
    rows = [(name, _describe(config.get(key))) for name, key in parts.items()]
    if not {"model", "optimizer", "trainer"} & config.keys():
        rows.append(("Hyperparameters", _describe(config)))
    trainer = _mapping(config.get("trainer"))
    options = {key: trainer[key] for key in TRAINER_OPTIONS if key in trainer}
    rows.append(("Trainer", _describe(options)))
    if isinstance(config.get("seed_everything"), int):
        rows.append(("Seed", str(config["seed_everything"])))
    # LightningCLI writes its version into a comment at the top.
    versions = re.findall(r"^# ([\w.]+)==(\S+)$", run.config_text, flags=re.MULTILINE)
    rows.append(("Software", ", ".join(f"{name} {version}" for name, version in versions)))
    return [(name, text) for name, text in rows if text]


def options_of(part: Any) -> Mapping[str, Any]:
    """Return the options of a `class_path` with its `init_args`, or of a plain mapping."""
    values = _mapping(part)
    return _mapping(values.get("init_args")) if "class_path" in values else values


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return options in which configurations differ: a value for each run, "-" where none is."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for options in flat for key in options)
    return {
        key: [options.get(key, "-") for options in flat]
        for key in keys
        if len({options.get(key) for options in flat}) > 1 and not key.startswith("trainer.logger")
    }


def _describe(part: Any) -> str:
    """Return a part of a configuration in words: its class, and the options that are set."""
    values = _mapping(part)
    if not values:
        return ""
    text = ", ".join(
        f"{key} {_value_text(value)}"
        for key, value in options_of(values).items()
        # None means "not set" but for one option, which it switches off.
        if (value is not None or key == "outlier_quantile") and not str(key).startswith("_")
    )
    if "class_path" not in values:
        return text
    return f"{values['class_path']}: {text}" if text else str(values["class_path"])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names and values of nested options."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += _flatten(value, f"{name}.")
        else:
            found.append((name.replace(".init_args.", "."), _value_text(value)))
    return found


def _value_text(value: Any) -> str:
    """Return a value as YAML writes it, on one line."""
    if isinstance(value, str):
        text = value
    elif value is None or isinstance(value, bool | int | float):
        text = f"{value:g}" if isinstance(value, float) else str(value).lower()
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
