"""What heat maps show: statistics by layer and step, in bounded memory."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

MOST_COLUMNS: Final = 128
"""Beyond, neighbouring points share a column: memory is bounded, however long the run."""


class History:
    """Columns of values by label, each the mean of `width` points in a row.

    When `MOST_COLUMNS` are full, neighbours are averaged and every later column covers twice as
    many points, so all columns stay of one width. A label that was missing at all points of a
    column, or not finite, has a NaN.

    Args:
        rows: Number of statistics of each label.

    Attributes:
        labels: In order of appearance.
        steps: Last step of each column.
        width: Points in a column.
        points: Number of points taken in.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.labels: list[str] = []
        self.steps: list[int] = []
        self.width = 1
        self.points = 0
        self._columns: list[Tensor] = []
        self._pending = torch.empty(2, rows, 0)  # sums and counts of an unfinished column
        self._pending_points = 0
        self._pending_step = 0

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take in a point.

        Args:
            step: Of the point; greater than those before.
            values: (rows,) for each label.
        """
        known = set(self.labels)
        self.labels += [label for label in values if label not in known]
        missing = torch.full((self.rows,), torch.nan)
        point = torch.stack([values.get(label, missing).float() for label in self.labels], dim=1)
        there = point.isfinite()
        self._pending = self._padded(self._pending, 0.0)
        self._pending[0] += point.where(there, 0.0)
        self._pending[1] += there
        self.points += 1
        self._pending_points += 1
        self._pending_step = step
        if self._pending_points == self.width:
            self._close()

    def values(self) -> Tensor:
        """(rows, labels, columns), the unfinished column included."""
        columns = [self._padded(column, torch.nan) for column in self._columns]
        if self._pending_points:
            columns.append(self._mean())
        if not columns:
            return torch.empty(self.rows, 0, 0)
        return torch.stack(columns, dim=2)

    def column_steps(self) -> list[int]:
        """Last step of each column of `values()`."""
        return [*self.steps, *([self._pending_step] if self._pending_points else [])]

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        names = ("labels", "steps", "width", "points", "_pending", "_pending_points")
        state = {name: getattr(self, name) for name in (*names, "_pending_step")}
        columns = [self._padded(column, torch.nan) for column in self._columns]
        return {
            **state,
            "_pending": self._pending.clone(),
            "labels": list(self.labels),
            "steps": list(self.steps),
            "_columns": torch.stack(columns) if columns else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: If it is something else; nothing has changed then.
        """
        labels = [str(label) for label in state_dict["labels"]]
        steps = [int(step) for step in state_dict["steps"]]
        width, points, pending_points, pending_step = (
            int(state_dict[name])
            for name in ("width", "points", "_pending_points", "_pending_step")
        )
        columns, pending = state_dict["_columns"], state_dict["_pending"]
        _check_tensor(pending, (2, self.rows, None))
        if columns is not None:
            _check_tensor(columns, (len(steps), self.rows, len(labels)))
        self.labels, self.steps, self.width, self.points = labels, steps, width, points
        self._columns = [] if columns is None else [column.clone() for column in columns]
        self._pending = pending.clone()
        self._pending_points, self._pending_step = pending_points, pending_step

    def _mean(self) -> Tensor:
        """(rows, labels) of the unfinished column; 0 / 0 is the NaN of a label that was missing."""
        padded = self._padded(self._pending, 0.0)
        return padded[0] / padded[1]

    def _close(self) -> None:
        self._columns.append(self._mean())
        self.steps.append(self._pending_step)
        self._pending = torch.zeros(2, self.rows, len(self.labels))
        self._pending_points = 0
        if len(self._columns) == MOST_COLUMNS:
            columns = torch.stack([self._padded(c, torch.nan) for c in self._columns])
            pairs = columns.reshape(MOST_COLUMNS // 2, 2, *columns.shape[1:])
            self._columns = list(pairs.nanmean(dim=1))
            self.steps = self.steps[1::2]
            self.width *= 2

    def _padded(self, values: Tensor, fill: float) -> Tensor:
        """With a place for the labels that came later."""
        new = len(self.labels) - values.shape[-1]
        return torch.nn.functional.pad(values, (0, new), value=fill) if new else values


def _check_tensor(values: Any, shape: tuple[int | None, ...]) -> None:
    """Refuse what is no tensor of that shape; None stands for any size."""
    if not isinstance(values, Tensor):
        raise TypeError(f"the history needs a tensor, got {values!r:.60}")
    fits = len(shape) == values.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"the history needs a tensor of {shape}, got {tuple(values.shape)}")
