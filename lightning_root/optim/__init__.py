"""The optimizer: class, stages of a step, options, state by name, schedule."""

from lightning_root.optim.root import ROOT
from lightning_root.optim.schedule import WarmupDecayLR
from lightning_root.optim.step import Stack, StackHook

__all__ = ["ROOT", "Stack", "StackHook", "WarmupDecayLR"]
