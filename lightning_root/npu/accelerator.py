"""The Ascend NPU as an accelerator of Lightning."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator

from lightning_root.npu import devices as device_list
from lightning_root.npu.runtime import device_count, npu, problem
from lightning_root.npu.strategies import OnNPU


class NPUDevices:
    """`NPUAccelerator` without Lightning's base class, of which there are two."""

    def __init__(self) -> None:
        npu()  # raises: Lightning's own message would not say why there is none
        # For `16-mixed` Lightning makes a loss scaler of CUDA before a strategy can replace it.
        warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled, but CUDA is not")

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one.

        Raises:
            ValueError: If it is not an NPU: a strategy that does not know NPUs takes the CPU.
        """
        if device.type != "npu":
            raise ValueError(
                f"with `accelerator: npu` this strategy would train on the device `{device}`, not "
                "on an NPU (`strategy: auto` knows none); set `strategy: npu_single`, npu_ddp or "
                "npu_fsdp2"
            )
        npu().set_device(device)

    def setup(self, trainer: Any) -> None:
        """Check that the strategy is one for NPUs.

        Raises:
            ValueError: If it is one of Lightning's own, which use CUDA's streams and autocast.
        """
        if not isinstance(trainer.strategy, OnNPU):
            raise ValueError(
                f"`{type(trainer.strategy).__name__}` does not know NPUs; set `strategy: "
                "npu_single` for one device, npu_ddp or npu_fsdp2 for several"
            )

    def teardown(self) -> None:
        """Return cached memory to the device."""
        npu().empty_cache()

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """What `DeviceStatsMonitor` logs.

        Args:
            device: An NPU.

        Returns:
            The allocator's statistics, by torch's names (`allocated_bytes.all.current`, ...), and
            the device's `memory.free` and `memory.total`, all in bytes or counts.
        """
        module = npu()
        free, total = module.mem_get_info(device)
        return {**module.memory_stats(device), "memory.free": free, "memory.total": total}

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """The indices of the NPUs that `devices` stands for; see `npu.devices.parse_devices`."""
        return device_list.parse_devices(devices)

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """The devices of these indices."""
        return [torch.device("npu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """How many NPUs are visible; `devices: auto` takes them all."""
        return device_count()

    @staticmethod
    def is_available() -> bool:
        """Whether there is an NPU that can be used; never raises."""
        return problem() is None

    @staticmethod
    def name() -> str:
        """What `accelerator` is set to."""
        return "npu"


class NPUAccelerator(NPUDevices, Accelerator):
    """Ascend NPUs, through torch_npu: `Trainer(accelerator="npu", strategy="npu_single")`.

    Known to Lightning as `npu` once `lightning_root` is imported, which any class path that begins
    with it does. torch_npu is imported when the first accelerator is made.

    Raises:
        RuntimeError: If there is no NPU that can be used; the message says why and what to do.

    Example:
        >>> from lightning_root import NPUAccelerator
        >>> NPUAccelerator.name()
        'npu'
    """
