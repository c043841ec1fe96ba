"""Rows of parameters on several ranks: two exchanges a step, and every matrix on one rank."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_root import ROOT
from lightning_root.distributed import gather, replicas
from lightning_root.distributed.collectives import RowShards, overlap
from tests.distributed.test_sharded_optimizer import MODELS, set_gradients

STEPS = 6


class Fused(nn.Module):
    """Blocks of rows and of columns that no shard's edge meets, and a stack of experts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Linear(6, 14, bias=False)
        self.columns = nn.Linear(9, 5, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 4, 7))
        self.plain = nn.Linear(4, 3, bias=False)

    def groups(self):
        rules = {
            "rows.weight": {"rows": [3, 4, 7]},
            "columns.weight": {"columns": [4, 5]},
            "experts": {"stack": 1},
            "*": "root",
        }
        return {"rules": rules}


class Aligned(nn.Module):
    """Rows of 128 entries, as the blocks of momentum in 8 bits, so that no shard cuts a block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Linear(128, 7, bias=False)
        self.fused = nn.Linear(128, 12, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 6, 128))

    def groups(self):
        rules = {"fused.weight": {"rows": [3, 4, 5]}, "experts": {"stack": 1}, "*": "root"}
        return {"rules": rules}


ALL_MODELS = {**MODELS, "fused": Fused, "aligned": Aligned}


def trained(model, dtype, options):
    """The weights after some steps, and the matrices that were orthogonalized here at each."""
    if hasattr(model, "groups"):
        options = {**options, **model.groups()}
    optimizer = ROOT(list(model.named_parameters()), lr=1e-2, **options)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen[-1].extend(stack.names))
    for step in range(STEPS):
        set_gradients(model, step)
        seen.append([])
        optimizer.step()
    return {n: gather(p.detach()).clone() for n, p in model.named_parameters()}, seen


def on_ranks(rank, ranks, name, mesh_shape, dtype, bucket, options):
    torch.set_num_threads(1)
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = dist.device_mesh.init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    model = fully_shard(ALL_MODELS[name]().to(dtype), mesh=mesh)
    calls, gathered = [], []
    to_all, whole = dist.all_to_all_single, torch.distributed.tensor.DTensor.full_tensor
    before, replicas.EXCHANGE_ELEMENTS = replicas.EXCHANGE_ELEMENTS, bucket

    def counted(output, part, *rest, **further):
        calls.append(part.numel())
        return to_all(output, part, *rest, **further)

    def counted_gather(tensor, **further):
        gathered.append(tuple(tensor.shape))
        return whole(tensor, **further)

    dist.all_to_all_single = counted
    torch.distributed.tensor.DTensor.full_tensor = counted_gather
    try:
        weights, seen = trained(model, dtype, options)
    finally:
        dist.all_to_all_single = to_all
        torch.distributed.tensor.DTensor.full_tensor = whole
        replicas.EXCHANGE_ELEMENTS = before
    return weights, seen, calls, gathered


def compare(gloo_pool, name, mesh_shape=(2,), dtype=torch.float32, bucket=1 << 25, **options):
    """Run both; the weights of all ranks must be those of one process, bit for bit.

    But for experts: a rank with one of three multiplies it alone, one process all in a batch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, alone = trained(ALL_MODELS[name]().to(dtype), dtype, options)
    results = gloo_pool.run(on_ranks, name, mesh_shape, dtype, bucket, options)
    for weights, *_ in results:
        for n, weight in weights.items():
            rounding = 1e-6 if n == "experts" else 0.0
            torch.testing.assert_close(weight, expected[n], rtol=rounding, atol=rounding)
    return alone, results


@pytest.mark.parametrize("name", ALL_MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharded_rows_end_where_one_process_ends(gloo_pool, name, dtype):
    compare(gloo_pool, name, dtype=dtype)


@pytest.mark.parametrize("mesh_shape", [(1, 2), (2, 1)])
def test_replicas_of_shards_end_there_too(gloo_pool, mesh_shape):
    """A mesh of two dimensions, as for HSDP."""
    compare(gloo_pool, "gpt", mesh_shape)


def test_rows_of_updates_in_bfloat16_are_those_of_one_process_rounded(gloo_pool):
    """The path of each weight differs by less than bfloat16 rounds at most."""
    torch.manual_seed(0)
    start = {n: p.detach().clone() for n, p in ALL_MODELS["gpt"]().named_parameters()}
    expected, _ = trained(ALL_MODELS["gpt"](), torch.float32, {})
    options = {"share_dtype": "bfloat16"}
    for weights, *_ in gloo_pool.run(on_ranks, "gpt", (2,), torch.float32, 1 << 25, options):
        differs = False
        for n, weight in weights.items():
            path = (expected[n] - start[n]).norm()
            assert (weight - expected[n]).norm() <= 0.01 * path
            differs |= not torch.equal(weight, expected[n])
        assert differs


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_is_made_whole_on_one_rank(gloo_pool, name):
    alone, results = compare(gloo_pool, name)
    for step, expected in enumerate(alone):
        shared = [matrix for _, seen, _, _ in results for matrix in seen[step]]
        assert sorted(shared) == sorted(expected)


@pytest.mark.parametrize("name", MODELS)
def test_two_exchanges_carry_all_matrices_of_a_step(gloo_pool, name):
    """None is gathered for itself, but the weights once at the end, by this test."""
    _, results = compare(gloo_pool, name)
    for weights, _, calls, gathered in results:
        assert len(calls) == 2 * STEPS
        assert len(gathered) == len(weights)


def test_experts_are_updated_where_they_are(gloo_pool):
    """Three of them on two ranks: each has its own, without any exchange of theirs."""
    alone, results = compare(gloo_pool, "fused")
    for rank, numbers in enumerate(({0, 1}, {2})):
        _, seen, _, gathered = results[rank]
        present = [step for step in range(STEPS) if ("experts", 0) in alone[step]]
        assert present
        for step in present:
            assert {number for name, number in seen[step] if name == "experts"} == numbers
        assert len(gathered) == 4  # the weights at the end


@pytest.mark.parametrize("bucket", [1, 200])
def test_smaller_exchanges_change_nothing(gloo_pool, bucket):
    _, results = compare(gloo_pool, "gpt", bucket=bucket)
    assert all(len(calls) > 2 * STEPS for _, _, calls, _ in results)


@pytest.mark.parametrize(
    "options",
    [
        *({"nesterov": False}, {"maximize": True}, {"momentum": 0.0}),
        *({"momentum_dtype": "bfloat16"}, {"weight_decay_mode": "cautious"}),
        {"lr_scales": {"hidden": 0.5, "vector": 3.0}, "weight_decays": {"hidden": 0.3}},
    ],
)
def test_options_hold_for_shards(gloo_pool, options):
    compare(gloo_pool, "cnn", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_in_8_bits_is_rounded_alike_where_no_block_is_cut(gloo_pool, dtype):
    compare(gloo_pool, "aligned", dtype=dtype, momentum_dtype="float8")


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_rows_are_cut_as_torch_cuts_them(total, ranks):
    """The oracle is `torch.chunk`, which leaves late ranks out where there is nothing for them."""

    class Group:
        def size(self):
            return ranks

    chunks = [chunk.tolist() for chunk in torch.arange(total).chunk(ranks)]
    chunks += [[]] * (ranks - len(chunks))
    found = [list(range(start, stop)) for start, stop in RowShards(Group()).rows(total)]
    assert found == chunks


@pytest.mark.parametrize(
    ("rows", "block", "expected"),
    [
        ((0, 4), (2, 9), (2, 4)),
        ((4, 8), (0, 4), []),
        ((0, 0), (0, 3), []),
        ((2, 3), (0, 9), (2, 3)),
    ],
)
def test_the_rows_that_two_ranges_share(rows, block, expected):
    start, stop = overlap(rows, block)
    assert ((start, stop) if stop > start else []) == expected


def clipped_on_ranks(rank, ranks):
    model = Aligned()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (ranks,)))
    optimizer = ROOT(model.parameters(), gradient_clip_entries=4.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(ValueError, match="`gradient_clip_entries` must be None") as caught:
        optimizer.step()
    return str(caught.value)


def test_a_clip_of_entries_is_refused_for_shards(gloo_pool):
    assert "sharded" in gloo_pool.run(clipped_on_ranks)[0]
