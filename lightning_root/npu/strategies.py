"""Strategies for NPUs: classes without bases, for both of Lightning's packages, and on theirs."""

import os
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_root.npu.runtime import npu
from lightning_root.strategies import Mixin, ShardedState


def on_npu(plugin: Any) -> Any:
    """Turn the autocast and loss scaling of Lightning's precision plugin to NPUs, in place."""
    # Lightning makes `precision: bf16-mixed` an autocast of CUDA, which on an NPU is none at all:
    # the forward pass would run in float32 and nobody would say so. Raises ValueError if the chip
    # has no bfloat16 and the plugin needs it, or if it needs float64.
    precision = getattr(plugin, "precision", "32-true")
    if precision == "64-true":
        raise ValueError(
            "`precision` must not be 64-true on an NPU: casts to float64 give float32 there; use "
            "32-true"
        )
    # Ascend 910B and newer have bfloat16, 910A and 310P do not.
    if precision in ("bf16-mixed", "bf16-true") and not npu().is_bf16_supported():
        name = npu().get_device_name()
        raise ValueError(
            f"`precision` must not be {precision} on {name}, which has no bfloat16 and would "
            f"compute in float32; use {precision.replace('bf16', '16')}"
        )
    if getattr(plugin, "device", "npu") != "npu":  # only mixed precision has a device
        plugin.device = "npu"
        if plugin.scaler is not None:
            npu()
            plugin.scaler = torch.amp.GradScaler(device="npu")
    return plugin


class OnNPU(Mixin):  # type: ignore[misc]
    """Mixin of all of them: no other accelerator, and precision on `npu`."""

    @property
    def accelerator(self) -> Any:
        """The Trainer's accelerator, None before there is one."""
        return self._accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Any) -> None:
        if accelerator is not None and accelerator.name() != "npu":
            raise ValueError(
                f"`{type(self).__name__}` trains on NPUs only, but the Trainer's accelerator is "
                f"`{accelerator.name()}`; set `accelerator: npu` (auto never chooses it)"
            )
        self._accelerator = accelerator

    @property
    def precision_plugin(self) -> Any:
        """The precision plugin, its autocast and loss scaling on `npu`."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Any) -> None:
        self._check_precision(getattr(plugin, "precision", None))
        self._precision_plugin = None if plugin is None else on_npu(plugin)

    def _check_precision(self, precision: str | None) -> None:
        """Refuse what this strategy cannot do on top of what the chip cannot."""


class OneNPU(OnNPU):
    """One device, which `devices` chooses."""

    def __init__(
        self,
        device: int | None = None,
        accelerator: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
    ) -> None:
        # Nothing can be computed on `meta` by mistake, as it could on a CPU.
        super().__init__("meta", accelerator, checkpoint_io, precision_plugin)
        if device is not None:
            npu()
            self._root_device = torch.device("npu", device)

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The device, once it is known; Lightning sets it from `devices`."""
        return [self._root_device] if self._root_device.type == "npu" else None

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        if len(devices) != 1:
            raise ValueError(
                f"`npu_single` trains on one NPU, but `devices` gives {len(devices)}; set "
                "`devices: 1`, or `strategy: npu_ddp` to use all of them"
            )
        self._root_device = devices[0]


class SeveralNPUs(OnNPU):
    """Processes that talk over HCCL."""

    def _get_process_group_backend(self) -> str:
        return self._process_group_backend or "hccl"

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce as Lightning does, also to the mean of whole numbers, such as batch sizes."""
        # HCCL has no mean: torch_npu divides the sum in place, which whole numbers do not allow.
        is_mean = reduce_op in ("mean", "avg", dist.ReduceOp.AVG) and dist.is_initialized()
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or not is_mean:
            return super().reduce(tensor, group, reduce_op)
        total = super().reduce(tensor, group, "sum")
        return tensor.copy_(total / dist.get_world_size(group))


class DataParallelNPUs(SeveralNPUs):
    """The whole model on each device."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """Wrap the model as Lightning does, but for the stream of CUDA that it opens for that."""
        # A communication hook, which Lightning would leave out in silence, is refused.
        if self._ddp_comm_hook is not None:
            raise ValueError(
                "`ddp_comm_hook` is not supported on NPUs; leave it out: gradients are then "
                "averaged by HCCL in their own dtype"
            )
        # The stream is for capturing graphs; without one, a backward pass needs no waiting for it.
        device_ids = [self.root_device.index]
        return DistributedDataParallel(model, device_ids=device_ids, **self._ddp_kwargs)


class ShardedNPUs(SeveralNPUs):
    """The model and the optimizer's state in shards."""

    _data_parallel_size: Any
    _tensor_parallel_size: Any

    def _check_precision(self, precision: str | None) -> None:
        if precision == "16-mixed":
            raise ValueError(
                "`precision` must not be 16-mixed with `NPUModelParallelStrategy`: the loss "
                "scaling does not see shards; use bf16-mixed, bf16-true or 32-true"
            )

    def setup_environment(self) -> None:
        """Make "auto" shards on all NPUs; Lightning's is tensor parallelism within a machine."""
        if self._tensor_parallel_size == "auto":
            self._tensor_parallel_size = 1
        if self._data_parallel_size == "auto":
            total = self.num_nodes * self.num_processes
            self._data_parallel_size = total // self._tensor_parallel_size
        super().setup_environment()

    def _setup_distributed(self) -> None:
        """Make the process group without a device, then go on as Lightning does."""
        # HCCL's groups cannot be split, and torch splits one with a device to make a mesh of it.
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        if not dist.is_initialized():
            environment = self.cluster_environment
            os.environ["MASTER_ADDR"] = environment.main_address
            os.environ["MASTER_PORT"] = str(environment.main_port)
            dist.init_process_group(
                self._get_process_group_backend(),
                rank=environment.global_rank(),
                world_size=environment.world_size(),
                timeout=self._timeout,
            )
        super()._setup_distributed()  # finds the group and keeps it


class SingleNPUStrategy(OneNPU, SingleDeviceStrategy):
    """Train on one Ascend NPU: `accelerator: npu`, `strategy: npu_single`.

    Lightning's `strategy: auto` would put the work on the CPU; `NPUAccelerator` refuses that.

    Args:
        device: Index of the NPU. Default: the one that the Trainer's `devices` gives.
        accelerator: Given by the Trainer.
        checkpoint_io: How checkpoints are written. Default: Lightning's.
        precision_plugin: Default: what the Trainer's `precision` says.

    Raises:
        ValueError: If `devices` gives more than one, the accelerator is another one, or the chip
            cannot compute in the precision asked for.
        RuntimeError: If `device` is given and there is no NPU that can be used.
    """


class NPUDDPStrategy(DataParallelNPUs, DDPStrategy):
    """Data parallel on Ascend NPUs over HCCL: `accelerator: npu`, `strategy: npu_ddp`.

    Options are those of Lightning's `DDPStrategy`, less communication hooks. The process group's
    backend is `hccl`; `process_group_backend: "cpu:gloo,npu:hccl"` also moves tensors of the CPU.

    Raises:
        ValueError: If the accelerator is another one, or the chip cannot compute in the precision
            asked for.
    """


class NPUShardedDDPStrategy(ShardedState, DataParallelNPUs, DDPStrategy):
    """`NPUDDPStrategy` with 1/N of ROOT's state on each NPU: `strategy: npu_ddp_sharded_state`.

    See `ShardedDDPStrategy`.

    Raises:
        TypeError: If an optimizer is not ROOT.
        ValueError: As the two strategies that it is made of.
    """


class NPUModelParallelStrategy(ShardedNPUs, ModelParallelStrategy):
    """FSDP2 on Ascend NPUs over HCCL: `accelerator: npu`, `strategy: npu_fsdp2`.

    Options are those of Lightning's `ModelParallelStrategy`: `data_parallel_size` (default: all
    NPUs), `tensor_parallel_size` (default: 1) and `save_distributed_checkpoint`, by which a
    checkpoint is a folder of shards or one file. The model says in its `configure_model` what is
    sharded. The process group's backend is `hccl`.

    Raises:
        ValueError: If the accelerator is another one, or the precision is `16-mixed` or one that
            the chip cannot compute in.
    """
