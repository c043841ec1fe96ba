"""Statistics by layer and step for heat maps, in bounded memory."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_COLUMNS: Final = 128  # columns beyond which neighbouring points share one, however long the run
_NUMBERS: Final = ("width", "points", "_pending_points", "_pending_step")  # of a state


class History:
    """Columns of values by label, each the mean of `width` points in a row."""

    # When `MAX_COLUMNS` are full, neighbours are averaged and every later column covers twice as
    # many points. A label that was missing at all points of a column, or not finite, has a NaN.

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.labels: list[str] = []  # in order of appearance
        self.steps: list[int] = []  # the last of each column
        self.width = 1
        self.points = 0  # in all columns
        self._columns: list[Tensor] = []
        self._pending = torch.empty(2, rows, 0)  # sums and counts of an unfinished column
        self._pending_points = 0
        self._pending_step = 0

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Add a point, at a greater step than those before: (rows,) values for each label."""
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
        """Return (rows, labels, columns), the unfinished column included."""
        columns = [self._padded(column, torch.nan) for column in self._columns]
        if self._pending_points:
            columns.append(self._mean())
        if not columns:
            return torch.empty(self.rows, 0, 0)
        return torch.stack(columns, dim=2)

    def column_steps(self) -> list[int]:
        """Return the last step of each column of `values()`."""
        return [*self.steps, *([self._pending_step] if self._pending_points else [])]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        columns = [self._padded(column, torch.nan) for column in self._columns]
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "_pending": self._pending.clone(),
            "labels": list(self.labels),
            "steps": list(self.steps),
            "_columns": torch.stack(columns) if columns else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; if damaged, raise Key-, Type- or ValueError and change nothing."""
        labels = [str(label) for label in state_dict["labels"]]
        steps = [int(step) for step in state_dict["steps"]]
        numbers = {name: int(state_dict[name]) for name in _NUMBERS}
        columns, pending = state_dict["_columns"], state_dict["_pending"]
        _check_tensor(pending, (2, None, None))
        rows = min(pending.shape[1], self.rows)  # statistics that are new since come last
        _check_tensor(pending, (2, rows, None))
        if columns is not None:
            _check_tensor(columns, (len(steps), rows, len(labels)))
        self.labels, self.steps = labels, steps
        vars(self).update(numbers)
        new = (0, 0, 0, self.rows - rows)
        self._columns = [pad(c, new, value=torch.nan) for c in (() if columns is None else columns)]
        self._pending = pad(pending, new).clone()

    def _mean(self) -> Tensor:
        """Return (rows, labels) of the unfinished column; 0 / 0 is the NaN of a missing label."""
        padded = self._padded(self._pending, 0.0)
        return padded[0] / padded[1]

    def _close(self) -> None:
        """Begin a new column, and halve the number of columns when they are full."""
        self._columns.append(self._mean())
        self.steps.append(self._pending_step)
        self._pending = torch.zeros(2, self.rows, len(self.labels))
        self._pending_points = 0
        if len(self._columns) == MAX_COLUMNS:
            columns = torch.stack([self._padded(c, torch.nan) for c in self._columns])
            pairs = columns.reshape(MAX_COLUMNS // 2, 2, *columns.shape[1:])
            self._columns = list(pairs.nanmean(dim=1))
            self.steps = self.steps[1::2]
            self.width *= 2

    def _padded(self, values: Tensor, fill: float) -> Tensor:
        """Return values with a place for the labels that came later."""
        new = len(self.labels) - values.shape[-1]
        return pad(values, (0, new), value=fill) if new else values


def _check_tensor(values: Any, shape: tuple[int | None, ...]) -> None:
    """Raise unless it is a tensor of that shape; None stands for any size."""
    if not isinstance(values, Tensor):
        raise TypeError(f"the history needs a tensor, got {values!r:.60}")
    fits = len(shape) == values.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"the history needs a tensor of {shape}, got {tuple(values.shape)}")
