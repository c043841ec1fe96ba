"""The optimizers that are compared, as data: ours, the baseline, and what can be installed."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from examples.benchmarks.speed.graph import GraphedROOT
from examples.benchmarks.speed.muon import FairMuon, PlainMuon
from lightning_root import ROOT

Build: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]

COMMON: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
BASELINE, PLAIN, TORCHS = "muon", "muon-plain", "torch-muon"
DEFAULT, WITHOUT_THRESHOLD = "root", "root-no-threshold"

OURS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    WITHOUT_THRESHOLD: {"outlier_quantile": None},
    "root-auto-threshold": {"outlier_quantile": "auto"},
    "root-bfloat16-momentum": {"momentum_dtype": "bfloat16"},
    "root-float8-momentum": {"momentum_dtype": "float8"},
    "root-standard": {"ns_form": "standard"},
    "root-gram": {"ns_form": "gram"},
    "root-eigh": {"ns_form": "eigh"},
    "root-float32": {"ns_dtype": "float32"},
    "root-bfloat16": {"ns_dtype": "bfloat16"},
}
"""Options of ROOT by the name of the column; one line each."""

OURS_ON_GPUS: dict[str, dict[str, Any]] = {
    "root-torch": {"kernels": "torch"},
    "root-triton": {"kernels": "triton"},
    "root-capturable": {"capturable": True},
}
"""The same for what needs a GPU."""

GRAPH = "root-graph"


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Args:
        title: On the page.
        build: Makes it from its own copies of the parameters.
        about: What it does, where that is not its default.
        matrices: Whether it can only take 2-D parameters: convolutions are flattened for it.
        products: Whether it orthogonalizes.
        package: What has to be installed, and what its version is asked of.
    """

    title: str
    build: Build
    about: str = ""
    matrices: bool = False
    products: bool = True
    package: str = "torch"


def ours(options: dict[str, Any], kind: type[ROOT] = ROOT) -> Entry:
    """ROOT with some options; all parameters are hidden matrices."""

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        named = [(f"hidden.{number}.weight", p) for number, p in enumerate(parameters)]
        return kind([{"params": named, "role": "root"}], **COMMON, **options)

    words = ", ".join(f"{name}={value!r}" for name, value in options.items())
    title = f"ROOT, {words}" if words else "ROOT"
    return Entry(title, build, about="this project", package="lightning-root")


def _torch_muon(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.Muon(parameters, **COMMON, adjust_lr_fn="match_rms_adamw")


def _adamw(**options: Any) -> Build:
    return lambda parameters: torch.optim.AdamW(parameters, **COMMON, **options)


def _pytorch_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
    muon: Callable[..., Optimizer] = importlib.import_module("pytorch_optimizer").Muon
    return muon([{"params": parameters, "use_muon": True}], **COMMON, use_adjusted_lr=True)


def _heavyball(parameters: list[nn.Parameter]) -> Optimizer:
    muon: Callable[..., Optimizer] = importlib.import_module("heavyball").Muon
    return muon(parameters, **COMMON, betas=(0.95, 0.99))  # the first is the momentum


_FAIR = "float32 on a CPU, bfloat16 on a GPU; fused sums, stacks where they help"

_PLAIN = "the same dtypes, one matrix after the other, sums fused into the products by `addmm`"

OPTIMIZERS: dict[str, Entry] = {
    BASELINE: Entry("Muon, fair baseline", FairMuon, about=_FAIR),
    "muon-again": Entry("the same once more", FairMuon, about="what differs from 1 is noise"),
    PLAIN: Entry("Muon, a plain loop", PlainMuon, about=_PLAIN),
    **{name: ours(options) for name, options in (OURS | OURS_ON_GPUS).items()},
    GRAPH: replace(
        ours({"capturable": True}, GraphedROOT), title="ROOT, a CUDA graph", about="replayed"
    ),
    TORCHS: Entry("torch.optim.Muon", _torch_muon, about="iterates in bfloat16", matrices=True),
    "pytorch-optimizer": Entry(
        "pytorch-optimizer's Muon",
        _pytorch_optimizer,
        about="iterates in bfloat16",
        package="pytorch-optimizer",
    ),
    "heavyball": Entry(
        "HeavyBall's Muon",
        _heavyball,
        about="iterates in bfloat16, compiled",
        package="heavyball",
    ),
    "adamw-foreach": Entry("torch.optim.AdamW, foreach", _adamw(foreach=True), products=False),
    "adamw-fused": Entry("torch.optim.AdamW, fused", _adamw(fused=True), products=False),
}


def usual(device: torch.device) -> list[str]:
    """All that run on a device, but the column whose dtype is the default there."""
    on_cpu = device.type == "cpu"
    left_out = {"root-float32", *on_gpus()} if on_cpu else {"root-bfloat16"}
    return [name for name in OPTIMIZERS if name not in left_out]


def on_gpus() -> list[str]:
    """Columns that need a GPU."""
    return [*OURS_ON_GPUS, GRAPH]
