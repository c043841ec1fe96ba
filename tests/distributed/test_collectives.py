"""What one step under FSDP2 says to the other ranks, as torch's profiler counts it."""

import warnings
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile

from lightning_root import ROOT
from lightning_root.distributed import bytes_bound
from tests.helpers import params_by_role
from tests.models import GPT

SHAPES = [(16, 16), (16, 48), (16, 64)]
"""Of a block's four matrices, with the smaller side first; the head is AdamW's."""


def one_step(rank, ranks, depth):
    """The collectives of the second step by name, and the bytes that this rank sends to others."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    model = fully_shard(GPT(tied=False, depth=depth), mesh=mesh)
    # Whole projections, so that there are as many matrices as parameters.
    optimizer = ROOT(model.parameters(), rules={"*.qkv.weight": {"rows": 1}})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as recorded:
        optimizer.step()
    calls = [event for event in recorded.events() if event.name.startswith("c10d::")]
    exchanges = [event for event in calls if event.name == "c10d::alltoall_base_"]
    sent = 0
    for event in exchanges:
        splits = [value for value in event.concrete_inputs if isinstance(value, list)]
        sent += 4 * sum(splits[-1][:rank] + splits[-1][rank + 1 :])  # what each rank is sent
    matrices = sum(parameter.numel() for parameter in params_by_role(optimizer)["root"])
    return Counter(event.name for event in calls), sent, 4 * matrices


@pytest.fixture(scope="module")
def steps(gloo_pool):
    """By the number of blocks, what each rank has counted."""
    return {depth: gloo_pool.run(one_step, depth) for depth in (3, 12)}


def test_collectives_do_not_grow_with_the_number_of_matrices(steps):
    """Two that carry matrices and one on which all agree what is finite, for 12 matrices or 48."""
    for calls, _, _ in [*steps[3], *steps[12]]:
        assert calls["c10d::alltoall_base_"] == 2 <= 2 * len(SHAPES)
        assert calls == {"c10d::alltoall_base_": 2, "c10d::allreduce_": 1}


def test_bytes_are_those_that_no_exchange_can_do_without(steps):
    """The bound is derived at `bytes_bound`; it holds on average over the ranks."""
    ((total,), ranks) = {total for _, _, total in steps[12]}, len(steps[12])
    assert total == 4 * 12 * (3 + 1 + 4 + 4) * 16 * 16
    for _, sent, _ in steps[12]:
        assert 0.9 < sent / bytes_bound(total, ranks, "rows") < 1.1
