"""Ascend NPUs: an accelerator and four strategies, known to Lightning by name."""

from lightning_root.npu.accelerator import NPUAccelerator
from lightning_root.npu.registration import register
from lightning_root.npu.strategies import (
    NPUDDPStrategy,
    NPUModelParallelStrategy,
    NPUShardedDDPStrategy,
    SingleNPUStrategy,
)

__all__ = [
    "NPUAccelerator",
    "NPUDDPStrategy",
    "NPUModelParallelStrategy",
    "NPUShardedDDPStrategy",
    "SingleNPUStrategy",
]

register()
