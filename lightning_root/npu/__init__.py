"""Ascend NPUs: an accelerator and three strategies, known to Lightning by name."""

from lightning_root.npu.accelerator import NPUAccelerator
from lightning_root.npu.registration import register
from lightning_root.npu.strategies import (
    NPUDDPStrategy,
    NPUModelParallelStrategy,
    SingleNPUStrategy,
)

__all__ = ["NPUAccelerator", "NPUDDPStrategy", "NPUModelParallelStrategy", "SingleNPUStrategy"]

register()
