"""Meshes of two dimensions, tensor parallelism among them, against one process.

Every rank sees the same batches, so two must do what one does.
"""

import warnings

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lightning_root import ROOT, HSDPStrategy, ROOTMixin
from lightning_root.distributed import gather
from tests.integration.models import PlainNet, ShardedNet, trainer, weights

STEPS = 6


class Net(nn.Module):
    """Two layers that can be cut either way, with what AdamW has around them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(17, 12)
        self.norm = nn.LayerNorm(12)
        self.up = nn.Linear(12, 22)
        self.down = nn.Linear(22, 12)
        self.mix = nn.Linear(12, 12)
        self.head = nn.Linear(12, 17)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.head(torch.tanh(self.mix(x)))


def plans():
    """Ways to cut it; what is not named is on every rank."""
    whole, sequence = Replicate(), Shard(1)
    return {
        "columns": {
            "embedding": ColwiseParallel(output_layouts=whole),
            "up": ColwiseParallel(),
            "down": RowwiseParallel(),
            "head": ColwiseParallel(output_layouts=whole),
        },
        "rows": {
            "embedding": RowwiseParallel(input_layouts=whole),
            "up": ColwiseParallel(),
            "down": RowwiseParallel(),
        },
        "sequence": {
            "embedding": RowwiseParallel(input_layouts=whole, output_layouts=sequence),
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=sequence),
            "down": RowwiseParallel(output_layouts=sequence),
            "mix": ColwiseParallel(input_layouts=sequence),
            "head": RowwiseParallel(),
        },
    }


def train(model, kept="auto"):
    optimizer = ROOT(list(model.named_parameters()), lr=1e-2, momentum_dtype=kept)
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(17, (4, 8), generator=generator)
        logits = model(tokens).flatten(0, 1)
        nn.functional.cross_entropy(logits, (tokens.flatten() + 1) % 17).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: gather(p.detach()).clone() for name, p in model.named_parameters()}


def tensor_parallel(rank, ranks, plan, sharded, kept="auto"):
    torch.set_num_threads(1)
    names = ("data_parallel", "tensor_parallel")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1, ranks), mesh_dim_names=names)
    model = parallelize_module(Net(), mesh["tensor_parallel"], plans()[plan])
    if sharded:
        for part in (model.up, model.down, model.mix, model):
            fully_shard(part, mesh=mesh["data_parallel"])
    return train(model, kept)


@pytest.mark.parametrize("plan", plans())
@pytest.mark.parametrize("sharded", [False, True])
def test_tensor_parallel_layers_end_where_whole_ones_end(plan, sharded, gloo_pool):
    expected = train(Net())
    for found in gloo_pool.run(tensor_parallel, plan, sharded):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("plan", plans())
def test_rounded_momentum_of_tensor_parallel_layers_stays_near(plan, gloo_pool):
    """Each rank rounds what it has by places of its own, so the paths differ by rounding alone."""
    start = {name: p.detach().clone() for name, p in Net().named_parameters()}
    expected, rounded = train(Net()), train(Net(), "float8")
    found, again = gloo_pool.run(tensor_parallel, plan, True, "float8")
    for name, weight in expected.items():
        path = (weight - start[name]).norm()
        assert torch.equal(found[name], again[name])
        assert (found[name] - weight).norm() <= 0.15 * path
        assert (rounded[name] - weight).norm() <= 0.15 * path


def partial_gradients(rank, ranks, kept):
    """A weight on every rank, whose gradient each has a term of, as sequence parallelism leaves."""
    torch.set_num_threads(1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    weight = nn.Parameter(distribute_tensor(torch.eye(6, 4), mesh, [Replicate()]))
    group = {"role": "root", "params": [("weight", weight)]}
    optimizer = ROOT([group], lr=1e-2, momentum_dtype=kept)
    for number in range(STEPS):
        terms = torch.randn(ranks, 6, 4, generator=torch.Generator().manual_seed(number))
        weight.grad = DTensor.from_local(terms[rank], mesh, [Partial()])
        optimizer.step()
    return weight.detach().to_local()


@pytest.mark.parametrize("kept", ["auto", "float8"])
def test_terms_of_a_gradient_are_added_before_momentum(gloo_pool, kept):
    weight = nn.Parameter(torch.eye(6, 4))
    group = {"role": "root", "params": [("weight", weight)]}
    optimizer = ROOT([group], lr=1e-2, momentum_dtype=kept)
    for number in range(STEPS):
        generator = torch.Generator().manual_seed(number)
        weight.grad = torch.randn(2, 6, 4, generator=generator).sum(0)
        optimizer.step()
    for found in gloo_pool.run(partial_gradients, kept):
        torch.testing.assert_close(found, weight.detach(), rtol=1e-5, atol=1e-6)


class MixedNet(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 20}


class MixedShardedNet(ROOTMixin, ShardedNet):
    root_options = MixedNet.root_options


def hybrid(rank, ranks, replicas, path):
    """Train 20 steps on replicas x shards; save half way, and resume there on one more mesh."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    strategy = HSDPStrategy(replicas)
    half = trainer(max_steps=10, strategy=strategy, devices=ranks)
    model = MixedShardedNet()
    half.fit(model)
    data = strategy.distributed_sampler_kwargs
    placements = [str(p.placements) for p in model.parameters()]
    half.save_checkpoint(path)
    other = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=False)
    rest, resumed = trainer(max_steps=20, strategy=other, devices=ranks), MixedShardedNet()
    rest.fit(resumed, ckpt_path=path)
    return data, placements, weights(resumed)


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_of_shards_end_where_one_process_ends(replicas, gloo_pool, tmp_path):
    model = MixedNet()
    trainer(max_steps=20).fit(model)
    results = gloo_pool.run(hybrid, replicas, str(tmp_path / "half.ckpt"))
    for rank, (data, placements, found) in enumerate(results):
        assert data == {"num_replicas": 2, "rank": rank}
        assert set(placements) == {"(Replicate(), Shard(dim=0))"}
        for name, weight in weights(model).items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def too_many(rank, ranks):
    warnings.simplefilter("ignore")
    try:
        trainer(strategy=HSDPStrategy(3), devices=ranks).fit(MixedShardedNet())
    except ValueError as error:
        return str(error)
    return "it trained"


def test_replicas_divide_the_devices(gloo_pool):
    for message in gloo_pool.run(too_many):
        assert "`replicas` (3)" in message
        assert "must divide the number of devices, got 2" in message
