"""The optimizer: class, update rules, options, state by name, schedule."""

from lightning_root.optim.root import ROOT
from lightning_root.optim.schedule import WarmupDecayLR

__all__ = ["ROOT", "WarmupDecayLR"]
