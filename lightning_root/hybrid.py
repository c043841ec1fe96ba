"""FSDP2 in several replicas (HSDP): a strategy for Lightning."""

from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor_parallel"


class HybridMesh(DeviceMesh):
    """A mesh (replicate, shard, tensor_parallel) whose "data_parallel" is the first two."""

    def __getitem__(self, mesh_dim_names: str | tuple[str, ...]) -> DeviceMesh:
        names = (mesh_dim_names,) if isinstance(mesh_dim_names, str) else mesh_dim_names
        both = [(REPLICATE, SHARD) if name == "data_parallel" else (name,) for name in names]
        return super().__getitem__(tuple(name for part in both for name in part))


class HSDPStrategy(ModelParallelStrategy):
    """FSDP2 over the devices of a replica, plain data parallelism between replicas.

    Weights travel within a replica alone, gradients between replicas too, so a replica is best what
    a fast network connects: a machine. The model is one for `ModelParallelStrategy`, unchanged: its
    `configure_model` takes `self.device_mesh["data_parallel"]`, which has two dimensions here. ROOT
    shares the matrices out within each replica.

    Args:
        replicas: How many copies of the model there are; must divide the number of devices. "auto"
            is one for each machine.
        tensor_parallel_size: Devices among which the model itself cuts its layers.
        save_distributed_checkpoint: Whether each rank writes its shards to a folder, or rank 0 all
            to one file, which resumes anywhere.
        process_group_backend: Default: the device's.
        timeout: For collectives.

    Raises:
        ValueError: If `replicas` does not fit the number of devices.

    Example:
        >>> import lightning as L
        >>> from lightning_root import HSDPStrategy
        >>> trainer = L.Trainer(strategy=HSDPStrategy(replicas=2), devices=4, accelerator="cpu")
    """

    def __init__(
        self,
        replicas: Literal["auto"] | int = "auto",
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            1, tensor_parallel_size, save_distributed_checkpoint, process_group_backend, timeout
        )
        self._replicas = replicas

    def setup_environment(self) -> None:
        """Join the processes, and lay the mesh out."""
        devices = self.num_nodes * self.num_processes
        tensor_parallel = int(self._tensor_parallel_size)
        replicas = self.num_nodes if self._replicas == "auto" else self._replicas
        if replicas < 1 or devices % (replicas * tensor_parallel):
            raise ValueError(
                f"`replicas` ({replicas}) times `tensor_parallel_size` ({tensor_parallel}) must "
                f"divide the number of devices, got {devices}"
            )
        self._data_parallel_size = devices // tensor_parallel
        super().setup_environment()
        layout = torch.arange(devices).view(replicas, -1, tensor_parallel)
        mesh = HybridMesh(self.root_device.type, layout, mesh_dim_names=(REPLICATE, SHARD, TENSOR))
        self._device_mesh = mesh
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Each rank of every replica has data of its own, but for those that share layers."""
        shards = self.device_mesh[SHARD]
        first = self.device_mesh[REPLICATE].get_local_rank() * shards.size()
        size = self.device_mesh["data_parallel"].size()
        return {"num_replicas": size, "rank": first + shards.get_local_rank()}
