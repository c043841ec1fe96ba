"""Our accelerator and strategies in the registries of `lightning` and of `pytorch_lightning`."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from lightning_root.npu.accelerator import NPUAccelerator
from lightning_root.npu.strategies import (
    NPUDDPStrategy,
    NPUModelParallelStrategy,
    NPUShardedDDPStrategy,
    SingleNPUStrategy,
)
from lightning_root.strategies import ShardedDDPStrategy

STRATEGIES: Final[Mapping[str, type]] = {
    "npu_single": SingleNPUStrategy,
    "npu_ddp": NPUDDPStrategy,
    "npu_fsdp2": NPUModelParallelStrategy,
    "npu_ddp_sharded_state": NPUShardedDDPStrategy,
    "ddp_sharded_state": ShardedDDPStrategy,
}

OTHER_PACKAGE: Final = "pytorch_lightning"


def register() -> None:
    """Register with `lightning.pytorch`, and with `pytorch_lightning` once that is imported."""
    _register("lightning.pytorch")
    if OTHER_PACKAGE in sys.modules:
        _register(OTHER_PACKAGE)
    else:
        sys.meta_path.insert(0, _OtherPackageFinder())


def _register(package: str) -> None:
    """Register the classes, on the package's own bases, but for names that are taken."""
    accelerators = importlib.import_module(f"{package}.accelerators")
    strategies = importlib.import_module(f"{package}.strategies")
    known: list[tuple[Any, Any, str, type]]
    known = [(accelerators, accelerators.AcceleratorRegistry, "npu", NPUAccelerator)]
    known += [(strategies, strategies.StrategyRegistry, *named) for named in STRATEGIES.items()]
    for module, registry, name, ours in known:
        if name not in registry:
            registry.register(name, _on_bases_of(module, ours), description=ours.__name__)


def _on_bases_of(module: ModuleType, ours: type) -> type:
    """Return the class, made anew if its last base, Lightning's, is not that of the module."""
    *mixins, base = ours.__bases__
    other = getattr(module, base.__name__)
    if other is base:
        return ours
    return type(ours.__name__, (*mixins, other), {"__doc__": ours.__doc__, "__module__": __name__})


class _OtherPackageFinder(MetaPathFinder):
    """Waits for `import pytorch_lightning`, and registers when it is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != OTHER_PACKAGE:
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
                _register(OTHER_PACKAGE)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
