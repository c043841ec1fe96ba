"""A run as its folder tells it: curves and texts from its log files, configuration beside them."""

import csv
import io
import math
import re
import struct
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from lightning_root.diagnostics.report.curves import Series

EVENTS: Final = "events.out.tfevents.*"
METRICS: Final = "metrics.csv"
_MAX_LISTED: Final = 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run.

    Args:
        folder: Where its logs lie.
        scalars: Curves by tag, in the order of appearance.
        texts: (step, text) in the order of writing, by tag.
        config: What the command line saved as `config.yaml`, else `hparams.yaml`; may be empty.
        config_text: That file as it is.
        partition: Which parameter got which rule, as a table; may be empty.
        started: When the first session began; None without a clock.
        seconds: Duration of training up to the last point, without pauses between a stop and a
            resume; None without a clock.
        notes: What a reader should know about the logs.
    """

    folder: Path
    scalars: Mapping[str, Series]
    texts: Mapping[str, Sequence[tuple[int, str]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    partition: str = ""
    started: datetime | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder and the one above it: `quickstart/version_0`."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}".lstrip("/")

    @property
    def last_step(self) -> int:
        """The last step of any curve."""
        return max(int(series.last.step) for series in self.scalars.values())


@dataclass
class Session:
    """What one process wrote: one event file, or the CSV file, which has no clock."""

    start: float | None = None  # Unix time
    scalars: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    """(step, Unix time or NaN, value) in the order of writing, by tag."""
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def log_files(folder: Path) -> list[Path]:
    """Return the log files that lie in a folder itself, oldest first."""
    found = sorted(path for path in folder.glob(EVENTS) if path.is_file())
    return found + [path for path in [folder / METRICS] if path.is_file()]


def find_run(folder: Path) -> Path:
    """The folder of the run: this one, or the only one below it that holds logs.

    Raises:
        ValueError: If there is none, or more than one.
    """
    if not folder.is_dir():
        raise ValueError(
            f"`RUN_DIR` must be a folder, got '{folder}'; give the `log folder` that the run's "
            "summary names"
        )
    if log_files(folder):
        return folder
    found = {path.parent for pattern in (EVENTS, METRICS) for path in folder.rglob(pattern)}
    if not found:
        raise ValueError(
            f"`RUN_DIR` must hold TensorBoard event files or a {METRICS}, found none in or below "
            f"'{folder}'; give the `log folder` that the run's summary names"
        )
    if len(found) > 1:
        raise ValueError(
            f"`RUN_DIR` must hold one run, found {len(found)} below '{folder}'; give one of "
            f"{_list_folders(found)}"
        )
    return found.pop()


def read_run(folder: Path) -> Run:
    """Read the logs of a run and what lies beside them.

    Args:
        folder: From `find_run`.

    Raises:
        ValueError: If no log file in it holds a scalar.
    """
    sessions = [_read_session(path) for path in log_files(folder)]
    notes = [note for session in sessions for note in session.notes]
    sessions = [session for session in sessions if session.scalars]
    if not sessions:
        raise ValueError(
            f"`RUN_DIR` must hold scalars, found none in '{folder}': {'; '.join(notes)}. A run "
            "logs its first ones after `log_every_n_steps` steps"
        )
    scalars, seconds = _join_curves(sessions)
    config, config_text, config_notes = _read_config(folder)
    texts: dict[str, list[tuple[int, str]]] = {}
    for session in sessions:
        for tag, found in session.texts.items():
            # Without the indentation that makes TensorBoard show them as they are.
            plain = [(step, textwrap.dedent(text).strip("\n")) for step, text in found]
            texts.setdefault(tag, []).extend(plain)
    starts = [session.start for session in sessions if session.start is not None]
    return Run(
        folder=folder,
        scalars=scalars,
        texts=texts,
        config=config,
        config_text=config_text,
        partition=_read_partition(folder, texts),
        started=datetime.fromtimestamp(min(starts)) if starts else None,
        seconds=seconds,
        notes=(*notes, *config_notes),
    )


def _read_session(path: Path) -> Session:
    """Read one log file, as far as it is whole."""
    session = _read_csv(path) if path.name == METRICS else _read_events(path)
    if not session.scalars and not session.notes:
        session.notes.append(f"{path.name} holds no scalars")
    return session


def _read_events(path: Path) -> Session:
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )

    session = Session()
    records = 0
    for event in LegacyEventFileLoader(str(path)).Load():
        records += 1
        if session.start is None:
            session.start = event.wall_time
        for value in event.summary.value:
            _add_value(session, event, value)
    whole, rest = _count_records(path)
    if rest or records < whole:
        session.notes.append(
            f"{path.name} is damaged or was cut off: read up to record {records:,}"
        )
    return session


def _add_value(session: Session, event: Any, value: Any) -> None:
    """Add a scalar, in the old form or the new, or a text; other kinds are not for reports."""
    kind = value.WhichOneof("value")
    plugin = value.metadata.plugin_data.plugin_name
    if kind == "simple_value":
        point = (event.step, event.wall_time, value.simple_value)
        session.scalars.setdefault(value.tag, []).append(point)
    elif kind == "tensor" and plugin == "scalars":
        from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

        point = (event.step, event.wall_time, float(make_ndarray(value.tensor)))
        session.scalars.setdefault(value.tag, []).append(point)
    elif kind == "tensor" and plugin == "text":
        text = b"\n".join(value.tensor.string_val).decode("utf-8", errors="replace")
        tag = value.tag.removesuffix("/text_summary")  # which torch's writer adds
        session.texts.setdefault(tag, []).append((event.step, text))


def _count_records(path: Path) -> tuple[int, int]:
    """Count whole records, and bytes after the last; TensorBoard's reader tells neither.

    A record is its length as eight bytes, four of a check sum, the event, four of a check sum.
    """
    count, place, size = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        while place + 12 <= size:
            file.seek(place)
            (length,) = struct.unpack("<Q", file.read(8))
            if place + length + 16 > size:
                break
            place += length + 16
            count += 1
    return count, size - place


def _read_csv(path: Path) -> Session:
    session = Session()
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        session.notes.append(f"the last line of {path.name} was cut off and is left out")
        text = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(text)):
        step = _parse_number(row.pop("step", None))
        if step is None or not step.is_integer():
            continue
        for tag, cell in row.items():
            value = _parse_number(cell)
            if tag and value is not None:
                session.scalars.setdefault(tag, []).append((int(step), math.nan, value))
    return session


def _parse_number(cell: Any) -> float | None:
    """Return a cell's number; None for what is empty or no number."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _join_curves(sessions: Sequence[Session]) -> tuple[dict[str, Series], float | None]:
    """Join curves over all sessions, with a clock that stands still between them.

    A session goes on where the last point before its first step left the clock: what a crashed
    session did after the checkpoint was done once more, and counts once.
    """
    points: dict[str, list[tuple[int, float, float]]] = {}
    for session in sessions:
        first = min(found[0][0] for found in session.scalars.values())
        earlier = (p[1] for known in points.values() for p in known if p[0] < first)
        elapsed = max((time for time in earlier if not math.isnan(time)), default=0.0)
        # A logger of another kind beside the event files says the same again, without a clock.
        new = {
            tag: found
            for tag, found in session.scalars.items()
            if session.start is not None or tag not in points
        }
        start = math.nan if session.start is None else session.start - elapsed
        for tag, found in new.items():
            moved = [(step, time - start, value) for step, time, value in found]
            points.setdefault(tag, []).extend(moved)
    scalars = {tag: Series.of(found) for tag, found in points.items()}
    ends = [series.last.seconds for series in scalars.values()]
    known = [end for end in ends if not math.isnan(end)]
    return scalars, max(known) if known else None


def _read_partition(folder: Path, texts: Mapping[str, Sequence[tuple[int, str]]]) -> str:
    path = folder / "partition.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace").strip("\n")
    found = texts.get("root/partition")
    return found[-1][1] if found else ""


def _read_config(folder: Path) -> tuple[Mapping[str, Any], str, list[str]]:
    """Return values, text, and a note if the file cannot be read as YAML."""
    path = next(
        (folder / n for n in ("config.yaml", "hparams.yaml") if (folder / n).is_file()), None
    )
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
    if path is None or text in ("", "{}"):
        return {}, "", []
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return {}, text, [f"{path.name} is not plain YAML ({str(error).splitlines()[0]})"]
    return (values if isinstance(values, dict) else {}), text, []


def _list_folders(folders: Iterable[Path]) -> str:
    """List some names, version_2 before version_10."""

    def natural(text: str) -> list[tuple[int, str]]:
        return [
            (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)
        ]

    names = sorted(map(str, folders), key=natural)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
