"""FSDP1's and ZeRO's flat vectors are refused, and the way out is named."""

import warnings
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_root import ROOT


def net():
    return nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 4))


def step(model, optimizer):
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()


def bound_inside(model, wrapped):
    """As in Lightning: the strategy wraps, and the module within is bound."""
    optimizer = ROOT([])
    optimizer.bind(model)
    return optimizer


def bound_outside(model, wrapped):
    return ROOT(wrapped.parameters())


def named_after(model, wrapped):
    return ROOT([pair for pair in wrapped.named_parameters() if pair[1].numel()])


WAYS = {"inside": bound_inside, "outside": bound_outside, "named": named_after}


def fsdp1(rank, ranks, way, use_orig_params):
    warnings.simplefilter("ignore")
    model = net()
    early = ROOT(list(model.named_parameters())) if way == "before" else None
    wrapped = FullyShardedDataParallel(
        model, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    try:
        step(wrapped, early or WAYS[way](model, wrapped))
    except RuntimeError as error:
        return str(error)
    return "it trained"


@pytest.mark.parametrize(
    ("way", "use_orig_params"), [*product(WAYS, (True, False)), ("before", True)]
)
def test_fsdp1_is_refused(gloo_pool, way, use_orig_params):
    for message in gloo_pool.run(fsdp1, way, use_orig_params):
        assert "FSDP1" in message
        assert "ModelParallelStrategy" in message and "configs/fsdp2.yaml" in message


def test_zeros_partitions_are_refused():
    """ZeRO 1 and 2 put a piece of one flat vector in the place of each group's parameters."""
    model = net()
    optimizer = ROOT(model.named_parameters())
    for group in optimizer.param_groups:
        flat = torch.cat([p.detach().flatten() for p in group["params"]])
        group["params"] = [nn.Parameter(flat[: len(flat) // 2])]
        group["params"][0].grad = torch.ones_like(group["params"][0])
    for use in (optimizer.step, lambda: optimizer.bind(model)):
        with pytest.raises(RuntimeError, match=r"ZeRO.*ModelParallelStrategy"):
            use()


def test_zero_3s_empty_parameters_are_refused():
    """ZeRO 3 takes the data out of every parameter and gives it a number, `ds_id`."""
    model = net()
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
        parameter.data = torch.empty(0)
    with pytest.raises(RuntimeError, match=r"ZeRO 3.*ModelParallelStrategy"):
        ROOT(model.parameters())


def test_a_matrix_that_becomes_a_vector_is_refused():
    model = net()
    optimizer = ROOT(model.named_parameters())
    weight = optimizer.param_groups[0]["params"][0]
    weight.data = weight.data.flatten()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="flat vector"):
        optimizer.step()
