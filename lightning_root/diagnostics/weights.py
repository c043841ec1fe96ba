"""How large the weights are that a step is about to move: what updates are compared with."""

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from lightning_root.diagnostics.spectrum import Matrix
from lightning_root.distributed import gather
from lightning_root.optim import ROOT
from lightning_root.partition import MatrixView


@torch.no_grad()
def weight_norms(optimizer: ROOT) -> dict[Matrix, Tensor]:
    """Frobenius norms of all matrices that ROOT updates, as their weights are now.

    0-dim tensors on the device of the parameter, in float32 or better; nothing waits for the
    device. Every rank that holds parts of the parameters must call this. Plain tensors are cut into
    their matrices on the spot. Of a sharded parameter that is one matrix, every rank takes the norm
    of its part, and one sum over the ranks puts those of all such parameters together. One that
    holds several matrices is gathered, one at a time, as the step itself gathers its momentum: a
    part knows nothing of where a matrix ends.

    Args:
        optimizer: With its parameters bound.
    """
    assert optimizer.partition is not None
    views = {route.name: route.view or MatrixView() for route in optimizer.partition.routes}
    shards: defaultdict[object, dict[Matrix, DTensor]] = defaultdict(dict)
    blocks: dict[Matrix, Tensor] = {}
    found: dict[Matrix, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if group["role"] != "root":
                continue
            if not isinstance(parameter, DTensor):
                blocks |= _numbered(name, views[name].cut(parameter))
            elif len(views[name].matrices(parameter.shape)) == 1:
                layout = (parameter.device_mesh, parameter.placements)
                shards[layout][name, 0] = parameter
            else:
                cut = _numbered(name, views[name].cut(gather(parameter)))
                found |= dict(zip(cut, _norms(list(cut.values())), strict=True))
    for part in shards.values():
        found |= dict(zip(part, _of_shards(list(part.values())), strict=True))
    return found | dict(zip(blocks, _norms(list(blocks.values())), strict=True))


def _numbered(name: str, blocks: Sequence[Tensor]) -> dict[Matrix, Tensor]:
    return {(name, number): block for number, block in enumerate(blocks)}


def _norms(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All at once; what is of low precision is added up in float32."""
    if not tensors:
        return ()
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(torch._foreach_norm(list(tensors), dtype=dtype))


def _of_shards(parameters: Sequence[DTensor]) -> tuple[Tensor, ...]:
    """Norms of whole parameters of one layout. A collective; copies of a part count once."""
    local = torch.stack(_norms([parameter.to_local() for parameter in parameters]))
    placements = [
        Replicate() if placement.is_replicate() else Partial()
        for placement in parameters[0].placements
    ]
    mesh = parameters[0].device_mesh
    energies = DTensor.from_local(local.square(), mesh, placements, run_check=False)
    return energies.full_tensor().sqrt().unbind()
