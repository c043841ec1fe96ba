"""Ranks that share the orthogonalization of equal parameters end where one process ends."""

import warnings

import pytest
import torch
import torch.distributed as dist

from lightning_root import ROOT
from lightning_root.distributed import Matrices, Replicas, replicas
from lightning_root.distributed.collectives import pieces_of
from lightning_root.optim import ddp
from tests.distributed.test_sharded_optimizer import MODELS, set_gradients

STEPS = 20
OPTIONS = [{}, {"nesterov": False, "outlier_quantile": None, "maximize": True}]


def trained(name, share=False, steps=STEPS, dtype=torch.float32, poison=None, **options):
    """A model after some steps, its optimizer, and what was orthogonalized here at each step."""
    model = MODELS[name]().to(dtype)
    optimizer = ROOT(model.parameters(), lr=1e-2, **options)
    if share:
        optimizer.share(dist.group.WORLD)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen[-1].extend(stack.names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the poisoned gradient
        for step in range(steps):
            set_gradients(model, step, poison)
            seen.append([])
            optimizer.step()
    return model, optimizer, seen


def on_ranks(rank, ranks, name, dtype, poison, bucket, options):
    torch.set_num_threads(1)
    before, replicas.BUCKET_ELEMENTS = replicas.BUCKET_ELEMENTS, bucket
    calls, original = [], ddp.all_gather

    def counted(part, whole, group):
        calls.append(whole.numel())
        return original(part, whole, group)

    ddp.all_gather = counted
    try:
        model, optimizer, seen = trained(name, True, dtype=dtype, poison=poison, **options)
    finally:
        ddp.all_gather = original
        replicas.BUCKET_ELEMENTS = before
    weights = {n: p.detach() for n, p in model.named_parameters()}
    return weights, optimizer.state_dict()["state"], seen, calls


def compare(gloo_pool, name, dtype=torch.float32, poison=None, bucket=1 << 25, options=None):
    """Run both, check that all ranks hold the same, return both sides."""
    model, optimizer, seen = trained(name, dtype=dtype, poison=poison, **(options or {}))
    ranks = gloo_pool.run(on_ranks, name, dtype, poison, bucket, options or {})
    first = ranks[0]
    for other in ranks[1:]:
        assert all(torch.equal(first[0][n], other[0][n]) for n in first[0])  # bit for bit
        for key, state in first[1].items():
            assert all(torch.equal(state[k], other[1][key][k]) for k in state)
    return (model, optimizer, seen), ranks


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "changed"])
def test_ranks_that_share_end_where_one_process_ends(gloo_pool, name, options):
    """To float32 rounding after 20 steps, with fused, convolutional and missing gradients."""
    (model, optimizer, _), ranks = compare(gloo_pool, name, options=options)
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(ranks[0][0][n], parameter.detach(), rtol=1e-5, atol=2e-6)
    for key, state in optimizer.state_dict()["state"].items():
        for k, value in state.items():  # momentum does not pass through an exchange at all
            assert torch.equal(ranks[0][1][key][k], value)


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_is_orthogonalized_once(gloo_pool, name):
    (_, _, alone), ranks = compare(gloo_pool, name)
    for step, expected in enumerate(alone):
        shared = [matrix for _, _, seen, _ in ranks for matrix in seen[step]]
        assert sorted(shared) == sorted(expected)


def test_the_work_is_shared_evenly(gloo_pool):
    """The GPT's matrices come in pairs: neither rank has more than 0.55 of them."""
    _, ranks = compare(gloo_pool, "gpt")
    counts = [len(seen[1]) for _, _, seen, _ in ranks]
    assert max(counts) <= 0.55 * sum(counts) + 1


def test_one_collective_carries_all_updates_of_a_step(gloo_pool):
    """Of half the elements and a little more from each of two ranks."""
    (_, optimizer, _), ranks = compare(gloo_pool, "gpt")
    matrices = sum(p.numel() for g in optimizer.param_groups[:1] for p in g["params"])
    for _, _, _, calls in ranks:
        assert len(calls) == STEPS
        assert max(calls) <= 1.2 * matrices


@pytest.mark.parametrize("bucket", [1, 300, 1000])
def test_small_buckets_change_nothing(gloo_pool, bucket):
    """Also where a rank has no matrix left for a bucket."""
    _, large = compare(gloo_pool, "uneven")
    _, small = compare(gloo_pool, "uneven", bucket=bucket)
    assert all(torch.equal(large[0][0][n], small[0][0][n]) for n in large[0][0])


def test_low_precision_parameters_are_shared_too(gloo_pool):
    (model, _, _), ranks = compare(gloo_pool, "gpt", dtype=torch.bfloat16)
    for n, parameter in model.named_parameters():
        expected = parameter.detach().float()
        torch.testing.assert_close(ranks[0][0][n].float(), expected, rtol=2**-7, atol=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_by_all(gloo_pool):
    name = next(n for n, p in MODELS["gpt"]().named_parameters() if p.ndim == 2)
    (model, _, _), ranks = compare(gloo_pool, "gpt", poison=name)
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(ranks[0][0][n], parameter.detach(), rtol=1e-5, atol=2e-6)


def planned_on_ranks(rank, ranks):
    group = Replicas(dist.group.WORLD)
    matrices = [Matrices(f"layer.{i}", 0, (4 + i % 3, 9)) for i in range(11)]
    sizes = [9 * (4 + i % 3) for i in range(11)]
    buckets = group.buckets(matrices, sizes, 5, torch.device("cpu"), 1 << 20)
    return [bucket.members for bucket in buckets], [bucket.width for bucket in buckets]


def test_all_ranks_make_the_same_plan(gloo_pool):
    plans = gloo_pool.run(planned_on_ranks)
    assert all(plan == plans[0] for plan in plans)
    members, _ = plans[0]
    assert sorted(i for bucket in members for part in bucket for i in part) == list(range(11))


def planned_in(rank, ranks, steps):
    """How often a run of so many steps asks who owns what."""
    calls, original = [], Replicas.buckets

    def counted(self, *about):
        calls.append(about)
        return original(self, *about)

    Replicas.buckets = counted
    try:
        trained("gpt", True, steps=steps)
    finally:
        Replicas.buckets = original
    return len(calls)


def test_who_owns_what_is_planned_once(gloo_pool):
    """For each set of matrices with a gradient, of which there are five."""
    assert gloo_pool.run(planned_in, 5) == gloo_pool.run(planned_in, 15)


def test_pieces_are_views_one_behind_the_other():
    buffer = torch.arange(12.0)
    first, second = pieces_of(buffer, [6, 4])
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    second.zero_()
    assert buffer[6:10].eq(0).all()
    assert buffer[10] == 10


def test_a_group_of_one_shares_nothing(gloo_pool):
    assert gloo_pool.run(alone_in_a_group) == [True, True]


def alone_in_a_group(rank, ranks):
    groups = [dist.new_group([i]) for i in range(ranks)]
    optimizer = ROOT([torch.nn.Parameter(torch.ones(2, 2))], share_updates=False)
    optimizer.share(groups[rank])
    return optimizer._replicas is None


def test_the_option_is_checked():
    with pytest.raises(TypeError, match="`share_updates` must be True or False, got 'yes'"):
        ROOT([torch.nn.Parameter(torch.ones(2, 2))], share_updates="yes")


@pytest.mark.parametrize("name", ["gpt", "cnn"])
def test_updates_that_travel_in_bfloat16_are_rounded_once_and_equal_on_all_ranks(gloo_pool, name):
    """The path of each weight differs by less than bfloat16 rounds at most, on all ranks alike."""
    (model, _, _), ranks = compare(gloo_pool, name, options={"share_dtype": "bfloat16"})
    start = dict(MODELS[name]().named_parameters())
    for n, parameter in model.named_parameters():
        path = (parameter.detach() - start[n].detach()).norm()
        assert (ranks[0][0][n] - parameter.detach()).norm() <= 0.01 * path
    assert any(not torch.equal(ranks[0][0][n], p.detach()) for n, p in model.named_parameters())


@pytest.mark.parametrize("kept", ["bfloat16", "float8"])
def test_rounded_momentum_is_the_same_on_all_ranks_and_in_one_process(gloo_pool, kept):
    (_, optimizer, _), ranks = compare(gloo_pool, "gpt", options={"momentum_dtype": kept})
    for key, state in optimizer.state_dict()["state"].items():
        for k, value in state.items():
            assert torch.equal(ranks[0][1][key][k], value)
            assert k != "momentum_buffer" or value.dtype == torch.bfloat16
