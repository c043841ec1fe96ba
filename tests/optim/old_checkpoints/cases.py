"""The runs behind the checkpoints: models, gradients, options, on one process and on two ranks."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_root import ROOT

FOLDER = Path(__file__).parent
BEFORE, AFTER = 4, 3
"""Steps before a checkpoint is written, and from it to what the old code ended with."""
LATER = range(BEFORE, BEFORE + AFTER)

FULL = StateDictOptions(full_state_dict=True)


# ---- the same numbers everywhere ----


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return numbers between -1 and 1, from whole numbers and one division, which is exact."""
    mixed = torch.arange(math.prod(shape), dtype=torch.int64) + 7919 * (seed + 1)
    for factor in (1103515245, 69069):
        mixed = (mixed * factor + 12345) % 2**31
        mixed ^= mixed >> 11
    return (mixed % 2001 - 1000).to(torch.float32).div(1000).view(shape)


def machine() -> str:
    """Return what decides the last bits of a matrix product: processor, its instructions, torch."""
    name, flags = platform.processor(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        key, _, value = line.partition(":")
        name = value.strip() if key.strip() == "model name" else name
        flags = value.strip() if key.strip() == "flags" else flags
    limits = sorted(v for v in os.environ.items() if v[0].startswith(("MKL_", "ONEDNN_", "DNNL_")))
    known = hashlib.sha256(f"{flags} {limits}".encode()).hexdigest()[:12]
    return f"{name} {known}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


# ---- models ----


class Small(nn.Module):
    """Two matrices for ROOT, one of them tall, and what AdamW takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6, bias=False)
        self.head = nn.Linear(6, 9, bias=False)


class Rows(nn.Module):
    """Rows of 128 entries, as many as share an exponent where momentum is kept in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 3, bias=False)
        self.second = nn.Linear(128, 4)


class Attention(nn.Module):
    """Queries, keys and values in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv = nn.Linear(6, 18, bias=False)


class Experts(nn.Module):
    """A matrix for each of three experts, in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.weight = nn.Parameter(torch.empty(3, 4, 6))


class Views(nn.Module):
    """Parameters that hold several matrices, and convolutions in both memory orders."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 3, bias=False)
        self.filters = nn.Conv2d(2, 4, 3, bias=False).to(memory_format=torch.channels_last)
        self.groups = nn.Conv2d(4, 4, 2, groups=2, bias=False)
        self.attention = Attention()
        self.experts = Experts()
        self.norm = nn.LayerNorm(6)


def model_of(case: Case) -> nn.Module:
    """Return the model of a case before the first step."""
    model = case.model().to(case.dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(tuple(parameter.shape), seed))
    return model


def give_gradients(model: nn.Module, step: int) -> None:
    """Give every parameter the gradient of a step: heavy tails, and at times none at all."""
    for index, parameter in enumerate(model.parameters()):
        values = numbers(tuple(parameter.shape), 100 * (step + 1) + index)
        gradient = (values * values * values).to(parameter.dtype)
        if isinstance(parameter.data, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = None if (index + step) % 7 == 6 else gradient


# ---- optimizers ----


def named(model: nn.Module, **options: Any) -> ROOT:
    """Return an optimizer of (name, tensor) pairs."""
    return ROOT(list(model.named_parameters()), **options)


def bound(model: nn.Module, **options: Any) -> ROOT:
    """Return an optimizer that knows the module, and from it how parameters are cut."""
    return ROOT(model.parameters(), **options)


def numbered(model: nn.Module, **options: Any) -> ROOT:
    """Return an optimizer of tensors without names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says that they are split by shape
        return ROOT(list(model.parameters()), **options)


def grouped(model: nn.Module, **options: Any) -> ROOT:
    """Return an optimizer with three groups of the user's, the second with options of its own."""
    pairs = dict(model.named_parameters())
    own = {"lr": 3e-3, "nesterov": False, "momentum": 0.5, "outlier_quantile": None}
    groups = [
        {"role": "root", "params": [("up.weight", pairs.pop("up.weight"))]},
        {"role": "root", "name": "slow", "params": [("down.weight", pairs.pop("down.weight"))]},
        {"role": "adamw", "name": "others", "params": list(pairs.items())},
    ]
    if options.pop("own", False):
        groups[1] |= own
        groups[2]["betas"] = (0.8, 0.9)
    return ROOT(groups, **options)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Args:
        model: Makes the model, whose weights are overwritten.
        make: Makes the optimizer.
        options: Of the optimizer; a state takes them along, so that none is needed to load it.
        dtype: Of the parameters.
        ranks: "one" process, "parts" of the state on two under DDP, or "fsdp" on two.
    """

    model: Callable[[], nn.Module] = Small
    make: Callable[..., ROOT] = named
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    ranks: str = "one"

    @property
    def rounds(self) -> bool:
        """Whether weights or momentum are rounded to fewer bits than float32 has."""
        return self.dtype == torch.bfloat16 or "momentum_dtype" in self.options


_PLAIN = {"lr": 1e-2, "ns_form": "standard"}  # other forms may be chosen by the machine's speed
_GRAM = {**_PLAIN, "coefficients": "muon", "ns_form": "gram"}
_BY_SHAPE = {"6x10": [(2.0, -1.5, 0.5)] * 3, "otherwise": "cans"}
_FLOAT8 = {**_PLAIN, "momentum_dtype": "float8"}

CASES = {
    "plain": Case(options=_PLAIN),
    "gram": Case(options={**_GRAM, "nesterov": False, "adjust_lr_fn": "original"}),
    "momentum_float8": Case(options=_FLOAT8, model=Rows),
    "momentum_bfloat16": Case(options={**_PLAIN, "momentum_dtype": "bfloat16"}),
    "bfloat16": Case(options=_PLAIN, dtype=torch.bfloat16),
    "numbered": Case(options=_GRAM, make=numbered),
    "bound": Case(options={**_PLAIN, "outlier_quantile": "auto"}, make=bound),
    "views": Case(options=_PLAIN, model=Views, make=bound),
    "by_shape": Case(options={**_PLAIN, "coefficients": _BY_SHAPE, "ns_steps": 3}),
    "groups": Case(options={**_PLAIN, "own": True}, make=grouped),
    "tensor_lr": Case(options={**_GRAM, "lr": torch.tensor(1e-2), "maximize": True}),
    "parts": Case(options=_PLAIN, model=Views, make=bound, ranks="parts"),
    "parts_float8": Case(options=_FLOAT8, model=Rows, make=bound, ranks="parts"),
    "fsdp": Case(options=_PLAIN, make=bound, ranks="fsdp"),
    "fsdp_float8": Case(options=_FLOAT8, model=Rows, make=bound, ranks="fsdp"),
}

ON_RANKS = [name for name, case in CASES.items() if case.ranks != "one"]

FOLDERS = ("fsdp",)
"""Cases that are written as distributed checkpoints too, which are large for what they hold."""


# ---- runs ----


@dataclass
class Run:
    """A model and its optimizer, wherever they are."""

    case: Case
    model: nn.Module
    optimizer: ROOT

    def steps(self, steps: range) -> None:
        """Take these steps."""
        for step in steps:
            give_gradients(self.model, step)
            self.optimizer.step()

    def saved(self) -> dict[str, Any]:
        """Return weights and state, whole, as they are saved; on all ranks together."""
        if self.case.ranks == "fsdp":
            weights = get_model_state_dict(self.model, options=FULL)
            state = get_optimizer_state_dict(self.model, self.optimizer, options=FULL)
        else:
            weights = self.model.state_dict()
            state = self.optimizer.consolidated_state_dict()
        return copy.deepcopy({"model": weights, "optimizer": state})

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what has been saved; the same on all ranks."""
        if self.case.ranks == "fsdp":
            set_model_state_dict(self.model, saved["model"], options=FULL)
            state = copy.deepcopy(saved["optimizer"])
            set_optimizer_state_dict(self.model, self.optimizer, state, options=FULL)
        else:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def save_folder(self, folder: str) -> None:
        """Write a distributed checkpoint, a file of each rank's own."""
        dcp.save(self._in_folder(), checkpoint_id=folder)

    def load_folder(self, folder: str) -> None:
        """Go on from a distributed checkpoint."""
        found = self._in_folder()
        dcp.load(found, checkpoint_id=folder)
        set_model_state_dict(self.model, found["model"])
        set_optimizer_state_dict(self.model, self.optimizer, found["optimizer"])

    def _in_folder(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }


def begun(case: Case, options: dict[str, Any] | None = None) -> Run:
    """Return a run before its first step, on every rank of the default group where there are some.

    Args:
        case: Which.
        options: Of the optimizer, in place of the case's.
    """
    model = model_of(case)
    if case.ranks == "fsdp":
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        model = fully_shard(model, mesh=mesh)
    optimizer = case.make(model, **(case.options if options is None else options))
    if case.ranks == "parts":
        optimizer.share(dist.group.WORLD, shard_state=True)
    return Run(case, model, optimizer)


def written(case: Case, folder: str | None = None) -> dict[str, Any]:
    """Return what the file of a case holds; write the folder of a distributed checkpoint too."""
    torch.set_num_threads(1)
    run = begun(case)
    run.steps(range(BEFORE))
    saved = run.saved()
    if folder is not None:
        run.save_folder(folder)
    run.steps(LATER)
    return {**saved, "later": run.saved()}


def written_on_ranks(rank: int, ranks: int, name: str, folder: str | None) -> dict[str, Any]:
    """Do the same as one of several ranks."""
    return written(CASES[name], folder)


# ---- comparison ----


def read(name: str) -> dict[str, Any]:
    """Return what the file of a case holds."""
    found: dict[str, Any] = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    return found


def entries(saved: dict[str, Any]) -> dict[str, Any]:
    """Return weights, state and options, each under a name with its parameter in it.

    By parameter, whatever groups, with whatever names, and numbers there are.
    """
    found = {f"weight of {name}": weight for name, weight in saved["model"].items()}
    for group in saved["optimizer"]["param_groups"]:
        for key, name in zip(group["params"], group["param_names"], strict=True):
            for entry, value in saved["optimizer"]["state"].get(key, {}).items():
                found[f"{entry} of {name}"] = value
            for option in sorted(group.keys() - {"params", "param_names", "name", "role"}):
                found[f"`{option}` of {name}"] = group[option]
    return found


def unlike(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Name what of `old` is missing in `new` or differs in a bit; options may have been added."""
    before, after = entries(old), entries(new)
    return [name for name in before if name not in after or not _same(before[name], after[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):  # which torch exchanges
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def far(case: Case, old: dict[str, Any], new: dict[str, Any]) -> dict[str, float]:
    """Return the relative distance of every tensor that is too far from what the old code had.

    A processor with other instructions adds up the terms of a product in another order, and may
    round once where another rounds twice: in float32 that stays below 1e-5. Where something is
    rounded to bfloat16 or to 8 bits, a last bit may decide between two neighbours, which are 2^-8
    or 2^-5 apart; if half of the entries went the other way it would be about as much in all.
    """
    allowed = 1e-5
    if case.rounds:
        allowed = 2.0**-5 if case.options.get("momentum_dtype") == "float8" else 2.0**-8
    before, after = entries(old), entries(new)
    distances = {
        name: float((after[name].double() - value.double()).norm() / value.double().norm())
        for name, value in before.items()
        if isinstance(value, Tensor) and value.any()
    }
    return {name: distance for name, distance in distances.items() if not distance <= allowed}


def check_end(name: str, new: dict[str, Any], *, exact: bool = True) -> None:
    """Check weights and state after the last step against what the old code had.

    Args:
        name: Of the case.
        new: What today's code has.
        exact: Whether it must be the same on the same machine, bit for bit.
    """
    old = read(name)
    assert far(CASES[name], old["later"], new) == {}
    if exact and old["machine"] == machine():
        assert unlike(old["later"], new) == []
