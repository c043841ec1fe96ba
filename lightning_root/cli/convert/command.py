"""`python -m lightning_root convert-checkpoint`: a run's optimizer state, made ROOT's."""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import torch

from lightning_root.cli.convert.files import Source, check_output, read_source, write
from lightning_root.cli.convert.naming import Entry, Shape, StateDict, entries_of, parameter_names
from lightning_root.cli.convert.takeover import (
    FRESH,
    BufferKind,
    MomentumStart,
    Takeover,
    fresh_state,
    roles_as_they_were,
    shape_in,
    take_over,
)
from lightning_root.cli.convert.training import count_steps_once, merged_schedules
from lightning_root.cli.parser import ModelParser, run_or_help
from lightning_root.cli.plan_model import read_model
from lightning_root.cli.terminal import text_table, wrapped
from lightning_root.optim.checkpoint import keyed_by_names
from lightning_root.optim.groups import ROLES
from lightning_root.partition import partition_named, partition_parameters

DESCRIPTION: Final = """\
Make the optimizer state of a checkpoint load into ROOT.

A checkpoint of AdamW, of torch.optim.Muon with AdamW (as two optimizers or in one) becomes one that
ROOT goes on from: AdamW's averages stay as they are, momentum is brought into ROOT's units, and
matrices that were AdamW's start with the momentum that its averages tell. A checkpoint of ROOT
keeps its numbers, under the names of the parameters instead of numbers, so that it resumes under
every strategy: when Lightning reads numbers under FSDP2 it takes them for the order of the model,
and ROOT's follow its groups. The folder of a distributed checkpoint becomes one file.

FILE is a Lightning checkpoint (a file, or a folder of shards), or what torch.save wrote of
`optimizer.state_dict()`; several files, one of them the model's weights, if they are apart. Nothing
in a file can run code: tensors and plain values are read, other objects refused.

Parameters are told apart by names that the optimizer kept, or by the model's order and all shapes,
if just one assignment fits. The model itself, given as for `fit`, decides which matrices are ROOT's
as the run will; without it those are that had a momentum, or names and shapes decide."""

EXAMPLES: Final = """\
examples:
  {program} adamw.ckpt --output root.ckpt --config configs/quickstart.yaml
  {program} muon_adamw.ckpt --output root.ckpt
  {program} model.pt muon.pt adamw.pt --output root.pt
  {program} last.ckpt --output last.ckpt --overwrite
"""

DEFAULT_MOMENTUM: Final = 0.95
"""ROOT's."""

_NOT_OPTIONS: Final = ("name", "role", "params", "param_names")


def run(arguments: Sequence[str]) -> int:
    """Convert what the arguments after `convert-checkpoint` name; the help, with status 2, if none.

    Raises:
        SystemExit: With status 2 and the reason on stderr if it cannot be done.
    """
    return run_or_help(make_parser(), arguments)


def make_parser() -> ModelParser:
    """The parser of what LightningCLI's does not know."""
    usage = "FILE [FILE ...] --output FILE [--config FILE | --model CLASS] [options]"
    parser = ModelParser("convert-checkpoint", usage, DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="of one run")
    add("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    add("--overwrite", action="store_true", help="replace the output if it is there")
    add(
        "--momentum",
        choices=get_args(MomentumStart),
        default="from-averages",
        help="of matrices that were AdamW's: its first moment as a sum of gradients, or none "
        "(default: from-averages)",
    )
    add(
        "--buffer",
        choices=get_args(BufferKind),
        default="average",
        help="what `momentum_buffer` is: torch.optim.Muon's and Keller Jordan's is an average of "
        "gradients, that of torch.optim.SGD and Moonlight's Muon a sum (default: average)",
    )
    add(
        "--names",
        type=Path,
        metavar="FILE",
        help="parameter names, one a line, in the order of the optimizers' groups",
    )
    add(
        "--rekey",
        action="store_true",
        help="keep the optimizers that are in it, only put names in the place of numbers",
    )
    parser.set_defaults(run=_convert)
    return parser


def _convert(options: argparse.Namespace) -> int:
    check_output(options.output, overwrite=options.overwrite)
    model, chosen = read_model(options.model) if options.model else (None, {})
    source = read_source(options.files)
    known: dict[str, Shape] | None = None
    if model is not None:
        known = parameter_names({n: p for n, p in model.named_parameters() if p.requires_grad})
    elif source.weights is not None:
        known = parameter_names(source.weights)
    order = options.names.read_text("utf-8").split() if options.names else None
    is_roots = all(_is_roots(optimizer) for optimizer in source.optimizers)
    entries = entries_of(source.optimizers, None if is_roots else known, order)
    if options.rekey or is_roots:
        states = _by_names(source.optimizers, entries, known or {})
        write(options.output, _content(source, states), overwrite=options.overwrite)
        print(f"{len(entries)} parameters: their state is kept as it was, under their names")
    else:
        roles = _roles(model, chosen, entries, known or {})
        momentum = chosen.get("momentum", DEFAULT_MOMENTUM)
        _take_over(options, source, roles, entries, known, momentum)
    print(f"\nwritten to {options.output}")
    return 0


def _is_roots(optimizer: StateDict) -> bool:
    groups = optimizer["param_groups"]
    return all(group.get("role") in ROLES for group in groups if group.get("params"))


def _by_names(
    optimizers: Sequence[StateDict], entries: Sequence[Entry], shapes: Mapping[str, Shape]
) -> list[StateDict]:
    """The same states with names for keys, which every reader passes on as they are."""
    found = []
    for number, optimizer in enumerate(optimizers):
        groups = optimizer["param_groups"]
        own = [entry for entry in entries if entry.optimizer == number]
        names = [[e.name for e in own if e.group == place] for place in range(len(groups))]
        state = keyed_by_names(optimizer, names)
        for entry in own:
            role = groups[entry.group].get("role")
            if not entry.state and role in ROLES and entry.name in shapes:
                state["state"][entry.name] = fresh_state(role, shapes[entry.name])
        for group in state["param_groups"]:
            group["param_names"] = list(group["params"])
        found.append(state)
    return found


def _roles(
    model: torch.nn.Module | None,
    chosen: Mapping[str, Any],
    entries: Sequence[Entry],
    known: Mapping[str, Shape],
) -> dict[str, str]:
    """The rule of each parameter: the model's split, or that of before, or by names and shapes."""
    if model is not None:
        partition = partition_parameters(model, rules=chosen.get("rules"))
    elif (before := roles_as_they_were(entries)) is not None:
        return before
    else:
        shapes = {entry.name: shape_in(known, entry) for entry in entries}
        partition = partition_named(
            (name, torch.empty(shape, device="meta")) for name, shape in shapes.items()
        )
    return {route.name: route.role for route in partition.routes}


def _take_over(
    options: argparse.Namespace,
    source: Source,
    roles: Mapping[str, str],
    entries: Sequence[Entry],
    known: Mapping[str, Shape] | None,
    momentum: float,
) -> None:
    takeover = take_over(
        entries,
        source.optimizers,
        roles,
        known or {},
        start=options.momentum,
        buffer=options.buffer,
        momentum=momentum,
    )
    schedules = _training(source, takeover)
    write(options.output, _content(source, [takeover.state_dict]), overwrite=options.overwrite)
    _print(takeover, schedules)


def _training(source: Source, takeover: Takeover) -> str | None:
    """Bring schedules and counters of a Lightning checkpoint along; what became of the former."""
    if source.checkpoint is None:
        return None
    count_steps_once(source.checkpoint, len(source.optimizers))
    schedules, words = merged_schedules(
        source.checkpoint.get("lr_schedulers", []),
        [len(optimizer["param_groups"]) for optimizer in source.optimizers],
        takeover.sources,
    )
    source.checkpoint["lr_schedulers"] = schedules
    return words


def _content(source: Source, states: Sequence[StateDict]) -> Any:
    """A Lightning checkpoint, or the bare state if there was none."""
    if source.checkpoint is not None:
        return {**source.checkpoint, "optimizer_states": list(states)}
    return states[0] if len(states) == 1 else list(states)


def _print(takeover: Takeover, schedules: str | None) -> None:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in takeover.taken:
        found[each.role, each.origin].append(each.name)
    labels = {"root": "ROOT", "adamw": "AdamW"}
    rows = [
        [labels[role], str(len(names)), origin, ", ".join(names[:2]) + (", ..." * (len(names) > 2))]
        for (role, origin), names in sorted(found.items(), key=lambda entry: entry[0][0] != "root")
    ]
    print(text_table(("rule", "parameters", "state", "which"), rows))
    print()
    for group in takeover.state_dict["param_groups"]:
        text = ", ".join(f"{key} {_short(group[key])}" for key in group if key not in _NOT_OPTIONS)
        print(wrapped(f"options of `{group['name']}` from the file: {text}"))
    if schedules is not None:
        print(f"learning rate schedule: {schedules}")
    fresh = [each.name for each in takeover.taken if each.origin.startswith(FRESH)]
    for note in takeover.notes:
        print(wrapped(f"note: {note}"))
    if len(fresh) > 2:
        print(wrapped(f"started anew: {', '.join(fresh)}"))


def _short(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, float | torch.Tensor) else str(value)
