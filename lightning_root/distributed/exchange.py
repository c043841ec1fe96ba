"""One code path for one rank and for many: plain tensors pass through, DTensors are exchanged.

Orthogonalization needs the whole matrix. A shard is gathered, every rank computes the same update,
and each keeps its own part: correct for every placement, uneven and empty shards included.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, whose local part may be less than the whole."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank has of a DTensor; a plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank; a plain tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Put the sharded parameters of FSDP2 back where a forward pass has left whole ones.

    Without a backward pass, as in validation, `module.parameters()` yields the whole parameters
    until the next step; the sharded ones are those that are trained.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def scatter_like(whole: Tensor, like: Tensor) -> Tensor:
    """Lay `whole`, equal on all ranks, out as `like` is, without communication.

    Args:
        whole: The full tensor, shape of `like`.
        like: A DTensor or a plain tensor.

    Returns:
        A DTensor with the placements of `like`, or `whole` itself.
    """
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def shard_like(local: Tensor, like: Tensor) -> Tensor:
    """Take `local` for this rank's part of a tensor that is placed as `like` is.

    Args:
        local: Shape of the local part of `like`.
        like: A DTensor or a plain tensor.

    Returns:
        A DTensor with the placements of `like`, or `local` itself.
    """
    if not isinstance(like, DTensor):
        return local
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Exchange the parts of a DTensor until they lie as those of `like`; others are unchanged."""
    if not isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    return tensor.redistribute(like.device_mesh, like.placements)


def all_ranks_agree(flags: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The logical and of `flags` over all ranks that hold a part of one of `tensors`.

    Ranks see different shards, but must skip the same matrices. Plain tensors need no exchange:
    data parallelism has already made their gradients equal.

    Args:
        flags: Shape (k,), bool.
        tensors: Whatever the flags were computed from; DTensors among them name the ranks.
    """
    meshes = {tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)}
    if not meshes:
        return flags
    votes = flags.to(torch.int32)
    for mesh in meshes:
        for dimension in range(mesh.ndim):
            dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=mesh.get_group(dimension))
    return votes.bool()
