"""`python -m lightning_root convert-checkpoint`: a run's optimizer state, made ROOT's."""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import torch

from lightning_root._files import atomic_write
from lightning_root.cli.convert.checkpoints import check_output, read_run
from lightning_root.cli.convert.naming import name_states, parameter_names
from lightning_root.cli.convert.states import (
    FRESH,
    ConvertedState,
    convert_states,
    convert_training,
    find_roles,
    rekey,
)
from lightning_root.cli.lightning import read_model
from lightning_root.cli.output import render
from lightning_root.optim.checkpoint import is_roots

DEFAULT_MOMENTUM: Final = 0.95
_NOT_OPTIONS: Final = ("name", "role", "params", "param_names")


def run(options: argparse.Namespace) -> int:
    """Convert, write the checkpoint, and print what became of the states."""
    check_output(options.output, overwrite=options.overwrite)
    model, chosen = read_model(options.model) if options.model else (None, {})
    found = read_run(options.files)
    weights = found.weights
    if model is not None:
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    known = parameter_names(weights or {})
    order = options.names.read_text("utf-8").split() if options.names else None
    groups = [
        group for each in found.optimizers for group in each["param_groups"] if group["params"]
    ]
    from_root = all(map(is_roots, groups))
    states = name_states(found.optimizers, None if from_root or weights is None else known, order)
    if options.rekey or from_root:
        shapes = {e.name: e.shape for e in states if e.shape is not None} | dict(known)
        bare = [each._replace(state={}) for each in states if each.name in shapes]
        roles = find_roles(bare, shapes, model, chosen.get("rules")) if from_root else {}
        optimizers = rekey(found.optimizers, states, known, roles)
        report = f"{len(states)} parameters: their state is kept as it was, under their names"
    else:
        converted = convert_states(
            states,
            find_roles(states, known, model, chosen.get("rules")),
            known,
            start=options.momentum,
            buffer=options.buffer,
            momentum=chosen.get("momentum", DEFAULT_MOMENTUM),
        )
        optimizers = [converted.state_dict]
        schedules = None
        if found.checkpoint is not None:
            schedules = convert_training(found.checkpoint, found.optimizers, converted.sources)
        report = _report(converted, schedules)
    content: Any = optimizers[0] if len(optimizers) == 1 else optimizers
    if found.checkpoint is not None:
        content = {**found.checkpoint, "optimizer_states": optimizers}
    check_output(options.output, overwrite=options.overwrite)  # again: it took a while
    with atomic_write(options.output) as temporary:
        torch.save(content, temporary)
    print(f"{report}\n\nwritten to {options.output}")
    return 0


def _report(converted: ConvertedState, schedules: str | None) -> str:
    """Say what each rule has of which parameters, with options, schedules and notes."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in converted.parameters:
        found[each.role, each.origin].append(each.name)
    rows = []
    for (role, origin), names in sorted(found.items(), key=lambda entry: entry[0][0] != "root"):
        which = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
        rows.append(("ROOT" if role == "root" else "AdamW", str(len(names)), origin, which))
    fresh = [each.name for each in converted.parameters if each.origin.startswith(FRESH)]
    groups = converted.state_dict["param_groups"]
    texts = {"schedules": schedules, "notes": converted.notes, "fresh": fresh}
    return render("convert", rows=rows, groups=groups, options=_options, **texts)


def _options(group: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        return f"{float(value):g}" if isinstance(value, float | torch.Tensor) else str(value)

    return ", ".join(f"{key} {short(group[key])}" for key in group if key not in _NOT_OPTIONS)
