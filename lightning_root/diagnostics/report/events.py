"""What the log files of a run hold: TensorBoard's event files, or Lightning's metrics.csv."""

import csv
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

EVENTS: Final = "events.out.tfevents.*"
METRICS: Final = "metrics.csv"

_TEXT: Final = "/text_summary"  # what torch's writer adds to the tag of a text


@dataclass
class Session:
    """What one process wrote: one event file, or the CSV file.

    Args:
        path: The file.
        start: Unix time at which it was opened; None for a CSV file, which has no clock.
        scalars: (step, Unix time or NaN, value) in the order of writing, by tag.
        texts: (step, text) in the order of writing, by tag.
        notes: What a reader should know about the file.
    """

    path: Path
    start: float | None = None
    scalars: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def first_step(self) -> int:
        """The least step of any scalar."""
        return min(points[0][0] for points in self.scalars.values())


def log_files(folder: Path) -> list[Path]:
    """The log files that lie in a folder itself, oldest first."""
    found = sorted(path for path in folder.glob(EVENTS) if path.is_file())
    return found + [path for path in [folder / METRICS] if path.is_file()]


def read_session(path: Path) -> Session:
    """Read one log file, as far as it is whole.

    Args:
        path: From `log_files`.
    """
    session = _read_csv(path) if path.name == METRICS else _read_events(path)
    if not session.scalars and not session.notes:
        session.notes.append(f"{path.name} holds no scalars")
    return session


def _read_events(path: Path) -> Session:
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
        LegacyEventFileLoader,
    )

    session = Session(path)
    records = 0
    for event in LegacyEventFileLoader(str(path)).Load():
        records += 1
        if session.start is None:
            session.start = event.wall_time
        for value in event.summary.value:
            _take(session, event, value)
    whole, rest = _records(path)
    if rest or records < whole:
        session.notes.append(
            f"{path.name} is damaged or was cut off: read up to record {records:,}"
        )
    return session


def _take(session: Session, event: Any, value: Any) -> None:
    """Keep a scalar, in the old form or the new, or a text; other kinds are not for reports."""
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
        tag = value.tag.removesuffix(_TEXT)
        session.texts.setdefault(tag, []).append((event.step, text))


def _records(path: Path) -> tuple[int, int]:
    """Number of whole records, and of bytes after the last; TensorBoard's reader tells neither.

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
    session = Session(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    if text and not text.endswith("\n"):
        session.notes.append(f"the last line of {path.name} was cut off and is left out")
        text = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(text)):
        step = _number(row.get("step"))
        if step is None or not step.is_integer():
            continue
        for tag, value in _numbers(row):
            session.scalars.setdefault(tag, []).append((int(step), float("nan"), value))
    return session


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for tag, cell in row.items():
        value = _number(cell)
        if tag and tag != "step" and value is not None:
            yield tag, value


def _number(cell: Any) -> float | None:
    """A cell's number; None for what is empty or no number."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
