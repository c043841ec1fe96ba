"""The names of our accelerator and strategies in Lightning's registries.

Lightning has no entry point for accelerators, so importing lightning_root registers them.
`pytorch_lightning` has registries and base classes of its own: it gets classes on these when it is
imported, before or after, and costs nothing where it is not.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from lightning_root.npu.accelerator import NPUAccelerator, NPUDevices
from lightning_root.npu.strategies import (
    DataParallelNPUs,
    NPUDDPStrategy,
    NPUModelParallelStrategy,
    NPUShardedDDPStrategy,
    OneNPU,
    ShardedNPUs,
    SingleNPUStrategy,
)
from lightning_root.strategies import ShardedDDPStrategy, ShardedState

_TWIN: Final = "pytorch_lightning"


def register() -> None:
    """Register with `lightning.pytorch`, and with `pytorch_lightning` once that is imported."""
    strategies: dict[str, type] = {
        "npu_single": SingleNPUStrategy,
        "npu_ddp": NPUDDPStrategy,
        "npu_fsdp2": NPUModelParallelStrategy,
        "npu_ddp_sharded_state": NPUShardedDDPStrategy,
        "ddp_sharded_state": ShardedDDPStrategy,
    }
    _register(AcceleratorRegistry, NPUAccelerator, StrategyRegistry, strategies)
    if _TWIN in sys.modules:
        _register_twin()
    else:
        sys.meta_path.insert(0, _TwinFinder())


def _register(
    accelerators: Any, accelerator: type, strategies: Any, named: dict[str, type]
) -> None:
    if "npu" not in accelerators:  # where another package was first, its own stays
        accelerators.register("npu", accelerator, description=accelerator.__name__)
    for name, strategy in named.items():
        if name not in strategies:
            strategies.register(name, strategy, description=strategy.__name__)


def _register_twin() -> None:
    """The same classes on the bases of `pytorch_lightning`, under the same names."""
    accelerators = importlib.import_module(f"{_TWIN}.accelerators")
    strategies = importlib.import_module(f"{_TWIN}.strategies")
    single = _twin(SingleNPUStrategy, OneNPU, strategies.SingleDeviceStrategy)
    ddp = _twin(NPUDDPStrategy, DataParallelNPUs, strategies.DDPStrategy)
    sharded = _twin(NPUModelParallelStrategy, ShardedNPUs, strategies.ModelParallelStrategy)
    parts = _twin(ShardedDDPStrategy, ShardedState, strategies.DDPStrategy)
    npu_parts = _twin(NPUShardedDDPStrategy, ShardedState, ddp)
    _register(
        accelerators.AcceleratorRegistry,
        _twin(NPUAccelerator, NPUDevices, accelerators.Accelerator),
        strategies.StrategyRegistry,
        {
            "npu_single": single,
            "npu_ddp": ddp,
            "npu_fsdp2": sharded,
            "npu_ddp_sharded_state": npu_parts,
            "ddp_sharded_state": parts,
        },
    )


def _twin(of: type, ours: type, base: type) -> type:
    return type(of.__name__, (ours, base), {"__doc__": of.__doc__, "__module__": __name__})


class _TwinFinder(MetaPathFinder):
    """Waits for `import pytorch_lightning`, and registers when it is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _TWIN:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                # Not before: many only ask whether the package is there.
                sys.meta_path.remove(self)
                execute(module)
                _register_twin()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
