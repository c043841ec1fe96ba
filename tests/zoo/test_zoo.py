"""The split of real architectures: against golden files read by a person, and against its laws.

The models are those of transformers in tiny sizes, and some written by hand in the manner of
diffusers, timm and PEFT. What is no hidden matrix is listed by hand in each specimen's `aside`, so
that a golden file that was rewritten without being read cannot hide a mistake about roles.
"""

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_root import ROOT
from lightning_root.partition import Partition
from tests.zoo.catalogue import ZOO
from tests.zoo.golden import FOLDER, golden_file, render
from tests.zoo.specimen import KEY_BIASES, covered


@cache
def split(name: str) -> Partition:
    """Partition an architecture once for all tests that only read."""
    return ZOO[name].partition(ZOO[name].made())


def blocks(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Everything with parameters that stands in a list, and where."""
    for parent in [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]:
        for name, child in list(parent.named_children()):
            if any(True for _ in child.parameters()):
                yield parent, name, child


@pytest.fixture
def lone_process_group() -> None:
    """A group of one, for what asks for a group; the next test finds none."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_every_architecture_has_a_golden_file_and_no_other_has():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.txt" for name in ZOO}
    assert len(ZOO) >= 50


@pytest.mark.parametrize("name", ZOO)
def test_split_equals_the_golden_file(name: str):
    assert render(split(name)) == golden_file(name).read_text()


@pytest.mark.parametrize("name", ZOO)
def test_root_takes_the_hidden_matrices_and_nothing_else(name: str):
    routes = [route for route in split(name).routes if len(route.shape) > 1]
    hidden = {route.name for route in routes if not covered(route.name, ZOO[name].aside)}
    assert {route.name for route in split(name).routes if route.role == "root"} == hidden
    for pattern in ZOO[name].aside:  # a glob that matches nothing would allow nothing
        assert any(covered(route.name, [pattern]) for route in routes), pattern


@pytest.mark.parametrize("name", ZOO)
def test_matrices_make_up_their_parameter(name: str):
    for route in split(name).routes:
        if route.role == "root":
            assert sum(map(math.prod, route.matrices)) == math.prod(route.shape), route.name
            assert all(min(matrix) > 1 for matrix in route.matrices), route.name


@pytest.mark.parametrize("name", ZOO)
def test_every_trainable_parameter_is_in_exactly_one_group(name: str):
    model = ZOO[name].made()
    groups = ZOO[name].partition(model).groups()
    grouped = [id(parameter) for group in groups for _, parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ZOO)
def test_one_step_moves_every_parameter_that_has_a_gradient(name: str):
    specimen = ZOO[name]
    model = specimen.made()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    # Decay alone would move everything.
    optimizer = ROOT(model.parameters(), weight_decay=0.0, rules=specimen.preset)
    specimen.loss(model).backward()
    optimizer.step()
    assert not optimizer.skipped
    moved = {name for name, parameter in trainable.items() if not parameter.equal(before[name])}
    sure = {name for name in trainable if not covered(name, [*KEY_BIASES, *specimen.blind])}
    assert moved & sure == {name for name in sure if not covered(name, specimen.idle)}
    for pattern in (*specimen.idle, *specimen.blind):
        assert any(covered(name, [pattern]) for name in trainable), pattern


@pytest.mark.parametrize("name", ZOO)
def test_compiling_changes_nothing(name: str):
    compiled = torch.compile(ZOO[name].made(), backend="eager")
    assert all(key.startswith("_orig_mod.") for key, _ in compiled.named_parameters())
    assert ZOO[name].partition(compiled) == split(name)


@pytest.mark.parametrize("name", ZOO)
def test_checkpointing_the_blocks_changes_nothing(name: str):
    model = ZOO[name].made()
    for parent, child_name, child in blocks(model):
        parent.register_module(child_name, checkpoint_wrapper(child))
    assert ZOO[name].partition(model) == split(name)


@pytest.mark.parametrize("name", ZOO)
def test_ddp_changes_nothing(name: str, lone_process_group: None):
    ddp = DistributedDataParallel(ZOO[name].made())
    assert ZOO[name].partition(ddp) == ZOO[name].partition(ddp.module) == split(name)


def sharded_splits(rank: int, world_size: int, names: tuple[str, ...]) -> list[Partition]:
    """Partition models after `fully_shard`; runs on every rank of the pool."""
    found = []
    for name in names:
        model = ZOO[name].made()
        for _, _, block in reversed([*blocks(model)]):  # from the inside out
            if not isinstance(block, nn.ModuleList | nn.ModuleDict):  # these have no forward
                fully_shard(block)
        fully_shard(model)
        found.append(Partition(ZOO[name].partition(model).routes, ()))
    return found


def test_sharding_changes_nothing(gloo_pool):
    pytest.importorskip("transformers", reason="the zoo needs transformers")
    # FSDP2 itself refuses scalars, such as CLIP's temperature.
    names = tuple(name for name in ZOO if all(p.ndim for p in ZOO[name].made().parameters()))
    assert len(names) > 50
    for splits in gloo_pool.run(sharded_splits, names):
        for name, found in zip(names, splits, strict=True):
            assert found == split(name), name
