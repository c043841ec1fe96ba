"""The Ascend NPU as an accelerator of Lightning, and which NPUs a run takes."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch
from lightning.pytorch.accelerators import Accelerator

from lightning_root.npu.runtime import VISIBLE_DEVICES, device_count, npu, problem
from lightning_root.npu.strategies import OnNPU

_RULE: Final = '`devices` must be a number of NPUs, -1 for all, or indices such as [0, 2] or "0,2"'


class NPUDevices:
    """`NPUAccelerator` without a base class: Lightning's packages have one each."""

    def __init__(self) -> None:
        npu()  # raises: Lightning's own message would not say why there is none
        # For `16-mixed` Lightning makes a loss scaler of CUDA before a strategy can replace it.
        warnings.filterwarnings("ignore", "torch.cuda.amp.GradScaler is enabled, but CUDA is not")

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one; refuse the CPU, which a strategy for others takes."""
        if device.type != "npu":
            raise ValueError(
                f"with `accelerator: npu` this strategy would train on the device `{device}`, not "
                "on an NPU (`strategy: auto` knows none); set `strategy: npu_single`, npu_ddp or "
                "npu_fsdp2"
            )
        npu().set_device(device)

    def setup(self, trainer: Any) -> None:
        """Refuse Lightning's own strategies, which use CUDA's streams and autocast."""
        if not isinstance(trainer.strategy, OnNPU):
            raise ValueError(
                f"`{type(trainer.strategy).__name__}` does not know NPUs; set `strategy: "
                "npu_single` for one device, npu_ddp or npu_fsdp2 for several"
            )

    def teardown(self) -> None:
        """Return cached memory to the device."""
        npu().empty_cache()

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Return what `DeviceStatsMonitor` logs, all in bytes or counts."""
        # The allocator's statistics, by torch's names (`allocated_bytes.all.current`, ...), and the
        # device's `memory.free` and `memory.total`.
        module = npu()
        free, total = module.mem_get_info(device)
        return {**module.memory_stats(device), "memory.free": free, "memory.total": total}

    @staticmethod
    def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
        """Return the indices, in their order, that `devices` means, as Lightning reads it for GPUs.

        A number n is the first n; -1, "-1" and "auto" are all; a sequence, or "0,2", has indices.
        "2" is two devices, "2," the one with index 2. Raises TypeError for other kinds, ValueError
        if there is no device, one twice, or one that is not there.
        """
        visible = device_count()
        indices = _indices(devices, visible)
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"{_RULE}, each once and at least one, got {devices!r}")
        if not all(0 <= index < visible for index in indices):
            setting = os.environ.get(VISIBLE_DEVICES)
            setting = "not set" if setting is None else repr(setting)
            raise ValueError(
                f"`devices` must name NPUs that are there, got {devices!r}, which means {indices}, "
                f"but this process sees {visible}, numbered from 0 ({VISIBLE_DEVICES} is {setting})"
            )
        return indices

    @staticmethod
    def get_parallel_devices(devices: Sequence[int]) -> list[torch.device]:
        """Return the devices of these indices."""
        return [torch.device("npu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """Return how many NPUs are visible; `devices: auto` takes them all."""
        return device_count()

    @staticmethod
    def is_available() -> bool:
        """Return whether there is an NPU that can be used; never raises."""
        return problem() is None

    @staticmethod
    def name() -> str:
        """Return what `accelerator` is set to."""
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


def _indices(devices: object, visible: int) -> list[int]:
    if isinstance(devices, str):
        text = devices.strip()
        try:
            if "," in text:
                return [int(index) for index in text.split(",") if index.strip()]
            return list(range(visible if text in ("auto", "-1") else int(text)))
        except ValueError:
            raise ValueError(f"{_RULE}, got {text!r}") from None
    if isinstance(devices, Sequence) and all(_is_whole(index) for index in devices):
        return list(devices)
    if isinstance(devices, int) and _is_whole(devices):
        return list(range(visible if devices == -1 else devices))
    raise TypeError(f"{_RULE}, got {devices!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
