"""What the search for matrices in a parameter answers, and how it asks modules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lightning_root.partition.views import MatrixView

Parts = tuple[int, ...]  # sizes that are certain
Hint = str | Mapping[str, int | Parts]  # the value of a rule


class Doubt(NamedTuple):
    """What a weight may hold, and the parts that would be right if it does."""

    what: str
    guess: int | Parts | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a parameter is cut, as far as its module tells.

    Args:
        view: The cut, None for the whole parameter.
        note: What is left open, as the end of a reason; "" for nothing.
        hint: The value of the rule that would settle it, None when there is nothing to propose.
    """

    view: MatrixView | None = None
    note: str = ""
    hint: Hint | None = None


WHOLE = Cut()


def doubtful(doubt: Doubt, *, stack: int = 0, transposed: bool = False) -> Cut:
    """Leave the matrices of a parameter whole, and propose the rule that would cut them."""
    view = MatrixView(stack=stack, transposed=transposed) if stack or transposed else None
    axis = "columns" if transposed else "rows"
    if doubt.guess is None:
        return Cut(view=view, note=f'; {doubt.what}, whole: a rule with "{axis}" would cut it')
    hint: dict[str, int | Parts] = {axis: doubt.guess}
    if stack:
        hint = {"stack": stack, **hint}
    if transposed:
        hint["transposed"] = True
    return Cut(view=view, note=f"; {doubt.what}, whole: {written(hint)} would cut it", hint=hint)


def written(hint: Hint) -> str:
    """Write the value of a rule as JSON, which is YAML too."""
    return json.dumps(hint if isinstance(hint, str) else dict(hint))


def equal(parts: int, extent: int) -> Parts:
    """Return the sizes of equal parts."""
    return (extent // parts,) * parts


def told(module: nn.Module | None, names: Sequence[str]) -> int | None:
    """Return the first positive integer under one of these names, on a module or its `config`."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if type(value) is int and value > 0:
                return value
    return None


def child(parent: nn.Module | None, name: str) -> nn.Module | None:
    """Return a module's child by its name in lower case, None when there is none."""
    children = parent.named_children() if parent is not None else ()
    return next((module for own, module in children if own.lower() == name), None)


def fan_out_of(module: nn.Module | None) -> int | None:
    """Return the output features of a Linear or of transformers' Conv1D."""
    return told(module, ("out_features", "nf"))
