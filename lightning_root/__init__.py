"""ROOT, the robust orthogonalized optimizer, for PyTorch Lightning."""

import torch.serialization

try:
    from lightning_root import recipes as recipes
    from lightning_root.binder import ROOTBinder
    from lightning_root.checkpoint_io import AtomicCheckpointIO
    from lightning_root.cli import ROOTCLI
    from lightning_root.coefficients import Coefficients, fit_coefficients, lookup
    from lightning_root.diagnostics import (
        OrthogonalizationError,
        OutlierFraction,
        ROOTMonitor,
        ROOTRefit,
        UpdateRMS,
    )
    from lightning_root.hybrid import HSDPStrategy
    from lightning_root.module import ROOTMixin, configure_optimizers
    from lightning_root.npu import (
        NPUAccelerator,
        NPUDDPStrategy,
        NPUModelParallelStrategy,
        NPUShardedDDPStrategy,
        SingleNPUStrategy,
    )
    from lightning_root.optim import ROOT, WarmupDecayLR
    from lightning_root.partition import MatrixView, Partition, Route, partition_parameters
    from lightning_root.strategies import ShardedDDPStrategy
except Exception as error:
    from lightning_root.versions import explain

    explain(error)
    raise

# Checkpoints that hold these load with `weights_only=True`; none runs code that a file gives it.
torch.serialization.add_safe_globals([ROOT, WarmupDecayLR, MatrixView])

__all__ = [
    "ROOT",
    "ROOTCLI",
    "AtomicCheckpointIO",
    "Coefficients",
    "HSDPStrategy",
    "MatrixView",
    "NPUAccelerator",
    "NPUDDPStrategy",
    "NPUModelParallelStrategy",
    "NPUShardedDDPStrategy",
    "OrthogonalizationError",
    "OutlierFraction",
    "Partition",
    "ROOTBinder",
    "ROOTMixin",
    "ROOTMonitor",
    "ROOTRefit",
    "Route",
    "ShardedDDPStrategy",
    "SingleNPUStrategy",
    "UpdateRMS",
    "WarmupDecayLR",
    "configure_optimizers",
    "fit_coefficients",
    "lookup",
    "partition_parameters",
]
