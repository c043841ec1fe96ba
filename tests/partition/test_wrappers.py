"""Names under wrappers: those of the bare model, so that rules and states find what they mean."""

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_root.partition import partition_all, partition_parameters
from lightning_root.partition.parameters import canonical_parameters
from tests.models import GPT, mlp
from tests.partition.reading import Children, Wrapper, linear, split


@pytest.fixture
def lone_process_group() -> None:
    """A group of one; the next test finds none."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Forward(nn.Module):
    """Fabric's wrapper as it is under DDP: the wrapped model and the bare one, side by side."""

    def __init__(self, forward_module: nn.Module, original_module: nn.Module):
        super().__init__()
        self._forward_module = forward_module
        self._original_module = original_module


def fabric(model: nn.Module) -> nn.Module:
    return Fabric(accelerator="cpu", devices=1).setup(model)


WRAPPERS = {
    "fabric": fabric,
    "ddp": DistributedDataParallel,
    "data parallel": DataParallel,
    "fabric over ddp": lambda model: Forward(DistributedDataParallel(model), model),
    "ddp over compile": lambda model: DistributedDataParallel(
        torch.compile(model, backend="eager")
    ),
    "fabric over ddp over compile": lambda model: Forward(
        DistributedDataParallel(torch.compile(model, backend="eager")), model
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_changes_neither_names_nor_reasons(
    wrapper: str, tied: bool, lone_process_group: None
):
    model = GPT(tied=tied)
    wrapped = WRAPPERS[wrapper](model)
    assert partition_parameters(wrapped) == partition_parameters(model)
    assert partition_all(wrapped) == partition_all(model)
    names = [(name, id(parameter)) for name, parameter in canonical_parameters(wrapped)]
    assert names == [(name, id(parameter)) for name, parameter in model.named_parameters()]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_rule_by_the_bare_name_matches_under_every_wrapper(
    wrapper: str, lone_process_group: None
):
    wrapped = WRAPPERS[wrapper](Children(up=linear(), down=linear()))
    routes = partition_parameters(wrapped, rules={"up.weight": "adamw"}).routes
    assert (routes[0].name, routes[0].role) == ("up.weight", "adamw")


def test_a_wrapper_deep_in_a_model_leaves_no_trace(lone_process_group: None):
    bare = Wrapper(Children(body=mlp(4, 8, 4), head=linear()))
    wrapped = Wrapper(Children(body=DistributedDataParallel(bare.model.body), head=bare.model.head))
    assert partition_parameters(wrapped) == partition_parameters(bare)


def test_a_child_called_module_keeps_its_name():
    model = Children(module=Children(module=linear()), head=linear())
    assert split(partition_parameters(model))[0][0] == "module.module.weight"
    assert canonical_parameters(model)[0][0] == "module.module.weight"
