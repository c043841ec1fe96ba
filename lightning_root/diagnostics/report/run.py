"""A run as its folder tells it: curves and texts from its log files, configuration beside them."""

import csv
import io
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml  # type: ignore[import-untyped]

from lightning_root.diagnostics.report.curves import Series

EVENTS: Final = "events.out.tfevents.*"
METRICS: Final = "metrics.csv"
Scalar: TypeAlias = tuple[int, float, float]  # step, time, value
Text: TypeAlias = tuple[int, str]  # step, text
MAX_LISTED: Final = 12  # folders that an error names
MAX_VALUE_LENGTH: Final = 160  # characters of an option's value
# What a reader wants to know of the Trainer
TRAINER_OPTIONS: Final = (
    *("max_steps", "max_epochs", "precision", "accelerator", "devices", "num_nodes", "strategy"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as its logs tell it; made by `read_run`."""

    folder: Path  # where its logs lie
    scalars: Mapping[str, Series]  # by tag, in the order of appearance
    texts: Mapping[str, Sequence[Text]] = field(default_factory=dict)  # by tag, as written
    config: Mapping[str, Any] = field(default_factory=dict)  # of `config.yaml`, else `hparams.yaml`
    config_text: str = ""  # that file as it is
    partition: str = ""  # which parameter got which rule, as a table
    started: datetime | None = None  # the first session; None without a clock
    seconds: float | None = None  # up to the last point, without pauses between stop and resume
    notes: tuple[str, ...] = ()  # what a reader should know about the logs

    @property
    def name(self) -> str:
        """The folder and the one above it: `quickstart/version_0`."""
        return "/".join(self.folder.absolute().parts[-2:]).lstrip("/")

    @property
    def last_step(self) -> int:
        """The last step of any curve."""
        return max(int(series.last.step) for series in self.scalars.values())


@dataclass
class Session:
    """Logs of one process: one event file, or the CSV file, which has no clock."""

    start: float | None = None  # Unix time
    # By tag, in the order of writing: (step, Unix time or NaN, value) and (step, text).
    scalars: defaultdict[str, list[Scalar]] = field(default_factory=lambda: defaultdict(list))
    texts: defaultdict[str, list[Text]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)


def log_files(folder: Path) -> list[Path]:
    """Return the log files that lie in a folder itself, oldest first."""
    return [path for path in (*sorted(folder.glob(EVENTS)), folder / METRICS) if path.is_file()]


def find_run(folder: Path) -> Path:
    """Return this folder, or the only one below it that holds logs; ValueError unless it is one."""
    advice = "give the `log folder` that the run's summary names"
    if not folder.is_dir():
        raise ValueError(f"`RUN_DIR` must be a folder, got '{folder}'; {advice}")
    if log_files(folder):
        return folder
    found = {path.parent for pattern in (EVENTS, METRICS) for path in folder.rglob(pattern)}
    if not found:
        raise ValueError(
            f"`RUN_DIR` must hold TensorBoard event files or a {METRICS}, found none in or below "
            f"'{folder}'; {advice}"
        )
    if len(found) > 1:
        raise ValueError(
            f"`RUN_DIR` must hold one run, found {len(found)} below '{folder}'; give one of "
            f"{_list_folders(found)}"
        )
    return found.pop()


def _list_folders(folders: Iterable[Path]) -> str:
    """List some names, version_2 before version_10."""

    def natural(name: str) -> list[str | int]:  # text and numbers in turn
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]

    names = sorted(map(str, folders), key=natural)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def read_run(folder: Path) -> Run:
    """Read the logs in a folder and what lies beside them; ValueError if they hold no scalar."""
    every = [_read_session(path) for path in log_files(folder)]
    notes = [note for session in every for note in session.notes]
    sessions = [session for session in every if session.scalars]
    if not sessions:
        raise ValueError(
            f"`RUN_DIR` must hold scalars, found none in '{folder}': {'; '.join(notes)}. A run "
            "logs its first ones after `log_every_n_steps` steps"
        )
    scalars = _join_curves(sessions)
    ends = [series.last.seconds for series in scalars.values()]
    starts = [session.start for session in sessions if session.start is not None]
    texts: dict[str, list[Text]] = {}
    for tag, found in [pair for session in sessions for pair in session.texts.items()]:
        texts.setdefault(tag, []).extend(found)
    in_log = texts.get("root/partition", [(0, "")])[-1][1]
    config, config_text, config_notes = _read_config(folder)
    return Run(
        folder=folder,
        scalars=scalars,
        texts=texts,
        config=config,
        config_text=config_text,
        partition=_read_text(folder / "partition.txt").strip("\n") or in_log,
        started=datetime.fromtimestamp(min(starts)) if starts else None,
        seconds=max((end for end in ends if not math.isnan(end)), default=None),
        notes=(*notes, *config_notes),
    )


def _read_session(path: Path) -> Session:
    """Read one log file, as far as it is whole."""
    session = _read_csv(path) if path.name == METRICS else _read_events(path)
    if not session.scalars and not session.notes:
        session.notes.append(f"{path.name} holds no scalars")
    return session


def _read_events(path: Path) -> Session:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.tensorflow_stub import errors  # type: ignore[import-untyped]
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (  # type: ignore[import-untyped]
        PyRecordReader_New,
    )

    session, reader, records = Session(), PyRecordReader_New(str(path)), 0
    try:
        while True:
            reader.GetNext()
            records += 1
            event = Event.FromString(reader.record())
            if session.start is None:
                session.start = event.wall_time
            for value in event.summary.value:
                _add_value(session, event, value)
    except errors.OutOfRangeError:
        pass  # the end
    except errors.DataLossError:
        session.notes.append(
            f"{path.name} is damaged or was cut off: read up to record {records:,}"
        )
    return session


def _add_value(session: Session, event: Any, value: Any) -> None:
    """Add a scalar, in the old form or the new, or a text; other kinds are not for reports."""
    from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

    kind = value.WhichOneof("value")
    plugin = value.metadata.plugin_data.plugin_name if kind == "tensor" else ""
    if kind == "simple_value" or plugin == "scalars":
        number = float(make_ndarray(value.tensor)) if plugin else value.simple_value
        session.scalars[value.tag].append((event.step, event.wall_time, number))
    elif plugin == "text":
        text = b"\n".join(value.tensor.string_val).decode("utf-8", errors="replace")
        tag = value.tag.removesuffix("/text_summary")  # which torch's writer adds
        # Without the indentation that makes TensorBoard show it as it is.
        session.texts[tag].append((event.step, textwrap.dedent(text).strip("\n")))


def _read_csv(path: Path) -> Session:
    session = Session()
    text = _read_text(path)
    if text and not text.endswith("\n"):
        session.notes.append(f"the last line of {path.name} was cut off and is left out")
        text = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(text)):
        step = _parse_number(row.pop("step", None))
        if step is not None and step.is_integer():
            for tag, cell in row.items():
                value = _parse_number(cell)
                if tag and value is not None:
                    session.scalars[tag].append((int(step), math.nan, value))
    return session


def _parse_number(cell: Any) -> float | None:
    """Return a cell's number; None for what is empty or no number."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _join_curves(sessions: Sequence[Session]) -> dict[str, Series]:
    """Join curves over all sessions, with a clock that stands still between them."""
    # A session goes on where the last point before its first step left the clock: what a crashed
    # session did after the checkpoint was done once more, and counts once.
    points: dict[str, list[Scalar]] = {}
    for session in sessions:
        first = min(found[0][0] for found in session.scalars.values())
        earlier = (p[1] for known in points.values() for p in known if p[0] < first)
        elapsed = max((time for time in earlier if not math.isnan(time)), default=0.0)
        start = math.nan if session.start is None else session.start - elapsed
        # A logger of another kind beside the event files says the same again, without a clock.
        known = set() if session.start is not None else set(points)
        for tag, found in session.scalars.items():
            if tag not in known:
                moved = [(step, time - start, value) for step, time, value in found]
                points.setdefault(tag, []).extend(moved)
    return {tag: Series.of(found) for tag, found in points.items()}


def _read_text(path: Path) -> str:
    """Return the text of a file, as far as it is text; "" without a file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_config(folder: Path) -> tuple[Mapping[str, Any], str, list[str]]:
    """Return values, text, and a note if the file cannot be read as YAML."""
    paths = [folder / name for name in ("config.yaml", "hparams.yaml")]
    path = next((path for path in paths if path.is_file()), paths[0])
    text = _read_text(path).strip()
    if text in ("", "{}"):
        return {}, "", []
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return {}, text, [f"{path.name} is not plain YAML ({str(error).splitlines()[0]})"]
    return (values if isinstance(values, dict) else {}), text, []


def label_of(run: Run) -> str:
    """Return optimizer and learning rate, or the folder if no configuration tells."""
    optimizer = _mapping(run.config.get("optimizer"))
    if "class_path" not in optimizer:
        return run.name
    options = options_of(optimizer)
    words = []
    coefficients = options.get("coefficients", "adaptive")
    if coefficients != "adaptive":
        words.append(coefficients if isinstance(coefficients, str) else "coefficients")
    quantile = options.get("outlier_quantile", 0.9)
    if quantile is None or quantile == "auto":
        words.append("no threshold" if quantile is None else "automatic threshold")
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
    return [
        str(run.folder) if named.count(name) > 1 else name
        for name, run in zip(named, runs, strict=True)
    ]


def setup_of(run: Run) -> dict[str, str]:
    """Return what the run was set up with, as far as the configuration tells, by what it is."""
    config = run.config
    parts = {"Model": "model", "Data": "data", "Optimizer": "optimizer", "Schedule": "lr_scheduler"}
    rows = {name: _describe(config.get(key)) for name, key in parts.items()}
    if not {"model", "optimizer", "trainer"} & config.keys():
        rows["Hyperparameters"] = _describe(config)
    trainer = _mapping(config.get("trainer"))
    rows["Trainer"] = _describe({key: trainer[key] for key in TRAINER_OPTIONS if key in trainer})
    if isinstance(config.get("seed_everything"), int):
        rows["Seed"] = str(config["seed_everything"])
    # LightningCLI writes its version into a comment at the top.
    versions = re.findall(r"^# ([\w.]+)==(\S+)$", run.config_text, flags=re.MULTILINE)
    rows["Software"] = ", ".join(map(" ".join, versions))
    return {name: text for name, text in rows.items() if text}


def options_of(part: Any) -> Mapping[str, Any]:
    """Return the options of a `class_path` with its `init_args`, or of a plain mapping."""
    values = _mapping(part)
    return _mapping(values.get("init_args")) if "class_path" in values else values


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return options in which configurations differ: a value for each run, "-" where none is."""
    flat = [_flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for options in flat for key in options)
    return {
        key: [options.get(key, "-") for options in flat]
        for key in keys
        if len({options.get(key) for options in flat}) > 1 and not key.startswith("trainer.logger")
    }


def _describe(part: Any) -> str:
    """Return a part of a configuration in words: its class, and the options that are set."""
    text = ", ".join(
        f"{key} {_value_text(value)}"
        for key, value in options_of(part).items()
        # None means "not set" but for one option, which it switches off.
        if (value is not None or key == "outlier_quantile") and not str(key).startswith("_")
    )
    path = _mapping(part).get("class_path")
    return ": ".join(str(words) for words in (path, text) if words)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the values of nested options by their dotted names."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= _flatten(value, f"{name}.")
        else:
            found[name.replace(".init_args.", ".")] = _value_text(value)
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
