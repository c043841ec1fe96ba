"""Ranks that keep a part of the state each end where ranks that keep all of it end."""

import copy
import io
import pickle
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_root import ROOT
from lightning_root.distributed import Matrices, Replicas, StateOwners, replicas
from tests.distributed.test_sharded_optimizer import set_gradients
from tests.distributed.test_sharding import ALL_MODELS as OTHERS
from tests.distributed.test_sharding import Aligned
from tests.distributed.threads import on_threads

STEPS = 8
EXACT = {"rtol": 0, "atol": 0}
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


class Tied(nn.Module):
    """An embedding that is the head too, convolutions in another memory order, a scalar."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(33, 10)
        self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.patches = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.hidden = nn.Linear(10, 10)
        self.head = nn.Linear(10, 33, bias=False)
        self.head.weight = self.embedding.weight

    def groups(self):
        return {"rules": {"patches.weight": "adamw", "empty": "adamw"}}


ALL_MODELS = {**OTHERS, "tied": Tied}


class Result(NamedTuple):
    weights: dict
    state: dict
    keys: list
    bytes: int
    skipped: dict
    seen: list


def made(name, dtype=torch.float32, **options):
    model = ALL_MODELS[name]().to(dtype)
    if hasattr(model, "groups"):
        options = {**options, **model.groups()}
    options = {"lr": 1e-2, "coefficients": "muon", **options}  # which need no fit
    return model, ROOT(list(model.named_parameters()), **options)


def step_(model, optimizer, steps, poison=None, every=False):
    for step in steps:
        set_gradients(model, step, poison)
        for index, parameter in enumerate(model.parameters()):
            if every and parameter.grad is None:
                parameter.grad = torch.full_like(parameter, (index % 7 - 3.0) / 10)
        optimizer.step()


def bytes_of(optimizer):
    """Of all tensors of state but the step counters."""
    tensors = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def trained(group, pairs, shard, begin=None, steps=range(STEPS), *rest):
    """What one of the ranks has after some steps, with a model of its own."""
    model, optimizer = pairs[group.rank() if group is not None else 0]
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.extend(stack.names))
    optimizer.share(group, shard_state=shard)
    if begin is not None:
        model.load_state_dict(begin.weights, strict=False)
        optimizer.load_state_dict(begin.state)
    step_(model, optimizer, steps, *rest)
    return Result(
        {n: p.detach().clone() for n, p in model.named_parameters()},
        copy.deepcopy(optimizer.consolidated_state_dict()),
        [sorted(optimizer.state.get(p, {})) for p in model.parameters()],
        bytes_of(optimizer),
        dict(optimizer.skipped),
        seen,
    )


def on_ranks(ranks, name, shard, begin=None, steps=range(STEPS), poison=None, every=False, **made_):
    pairs = [made(name, **made_) for _ in range(ranks)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the poisoned gradient
        results = on_threads(ranks, trained, pairs, shard, begin, steps, poison, every)
    for other in results[1:]:
        assert all(torch.equal(results[0].weights[n], other.weights[n]) for n in other.weights)
        assert results[0].keys == other.keys
        assert results[0].skipped == other.skipped
        assert not shard or other.state["state"] == {}  # the whole is on the first rank alone
    return results


def assert_same(first, second, **rounding):
    """Weights, and the consolidated states, tensor by tensor."""
    for name, weight in first.weights.items():
        torch.testing.assert_close(second.weights[name], weight, **rounding, msg=name)
    assert first.state["param_groups"] == second.state["param_groups"]
    assert list(first.state["state"]) == list(second.state["state"])
    for key, state in first.state["state"].items():
        assert list(state) == list(second.state["state"][key])
        for entry, value in state.items():
            other = second.state["state"][key][entry]
            assert other.stride() == value.stride()
            torch.testing.assert_close(other, value, **rounding, msg=f"{entry} {key}")


# ---- training ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "ranks"), [(name, 4) for name in ALL_MODELS] + [("uneven", 9)])
def test_parts_end_where_the_whole_state_ends_bit_for_bit(name, ranks, dtype):
    """Nine ranks have nothing to do with four matrices, and must not wait for each other."""
    whole = on_ranks(ranks, name, False, dtype=dtype, every=True)
    parts = on_ranks(ranks, name, True, dtype=dtype, every=True)
    assert_same(whole[0], parts[0], **EXACT)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_parameters_without_a_gradient_on_some_steps(name):
    """To rounding: one process multiplies other matrices in one batch."""
    (alone,) = trained_alone(name)
    for ranks in (2, 3):
        assert_same(alone, on_ranks(ranks, name, True)[0], **ROUNDING)


def trained_alone(name, **options):
    return [trained(None, [made(name, **options)], False)]


@pytest.mark.parametrize(
    "options",
    [
        {"nesterov": False, "outlier_quantile": None, "maximize": True},
        {"lr": torch.tensor(1e-2)},
        {"foreach": False},
        {"fused": True},
        {"momentum_dtype": "bfloat16"},
        {"lr_scales": {"hidden": 0.5, "head": 3.0}, "weight_decays": {"vector": 0.0}},
        {"weight_decay_mode": "cautious"},
        {"gradient_clip_entries": 1.5},
    ],
)
def test_options_hold_for_parts(options):
    (alone,) = trained_alone("gpt", **options)
    assert_same(alone, on_ranks(2, "gpt", True, **options)[0], **ROUNDING)


@pytest.mark.parametrize("elements", [20, 300])
def test_small_buffers_change_nothing(monkeypatch, elements):
    expected = on_ranks(3, "tied", True)
    monkeypatch.setattr(replicas, "BUCKET_ELEMENTS", elements)
    assert_same(expected[0], on_ranks(3, "tied", True)[0], **EXACT)


def test_a_gradient_that_is_not_finite_is_skipped_by_all():
    for poisoned in ("a.weight", "a.bias"):
        whole = on_ranks(2, "uneven", False, poison=poisoned, every=True)
        parts = on_ranks(2, "uneven", True, poison=poisoned, every=True)
        assert set(parts[0].skipped) == {poisoned}
        assert_same(whole[0], parts[0], **EXACT)


def test_hooks_see_every_matrix_once():
    (alone,) = trained_alone("fused")
    results = on_ranks(3, "fused", True)
    assert sorted(m for result in results for m in result.seen) == sorted(alone.seen)


def with_a_later_group(group, models, shard):
    """Matrices and others that join after some steps, with options of their own."""
    model = models[group.rank()]
    first = [(n, p) for n, p in model.named_parameters() if not n.startswith("b.")]
    optimizer = ROOT(first, lr=1e-2, coefficients="muon")
    optimizer.share(group, shard_state=shard)
    step_(model, optimizer, range(3), every=True)
    new = [(n, p) for n, p in model.named_parameters() if n.startswith("b.")]
    matrix, bias = new
    optimizer.add_param_group({"params": [matrix], "role": "root", "lr": 3e-3, "momentum": 0.5})
    optimizer.add_param_group({"params": [bias], "role": "adamw", "betas": (0.5, 0.5)})
    step_(model, optimizer, range(3, 6), every=True)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    return Result(weights, optimizer.consolidated_state_dict(), [], 0, {}, [])


def test_groups_that_are_added_later_are_kept_in_parts_too():
    models = [[ALL_MODELS["uneven"]() for _ in range(2)] for _ in range(2)]
    whole = on_threads(2, with_a_later_group, models[0], False)
    parts = on_threads(2, with_a_later_group, models[1], True)
    assert_same(whole[0], parts[0], **ROUNDING)


# ---- memory ----


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_rank_keeps_its_share_of_the_bytes(ranks):
    (alone,) = trained_alone("gpt")
    shares = [result.bytes / alone.bytes for result in on_ranks(ranks, "gpt", True)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    assert max(shares) <= 1.1 / ranks


def test_even_parts_of_an_embedding_are_even():
    owners = StateOwners(7)
    owners.include({"embedding": 1_000_003, "norm": 768, "bias": 768}, steps=5)
    parts = owners.parts("embedding")
    assert sum(parts.sizes) == 1_000_003
    assert max(parts.sizes) - min(parts.sizes) <= 7 * 64
    assert sorted(parts.owners) == list(range(7))


def test_what_is_decided_stays_when_others_come():
    owners = StateOwners(2)
    owners.include({"a": ((4, 4),), "b": 100}, steps=5)
    before = owners.parts("a"), owners.parts("b")
    owners.include({"c": ((64, 64),), "a": ((4, 4),), "d": 7, "b": 100}, steps=5)
    assert (owners.parts("a"), owners.parts("b")) == before
    with pytest.raises(KeyError):
        owners.parts("e")


def test_buckets_follow_the_owners_of_the_state():
    class Group:
        def size(self):
            return 2

    owners = StateOwners(2)
    owners.include({f"m{i}": ((4, 4),) for i in range(4)}, steps=5)
    some = [Matrices(f"m{i}", 0, (4, 4)) for i in (1, 3)]
    plan = Replicas(Group(), owners).buckets(some, [16, 16], 5, torch.device("cpu"), 1 << 20)
    for bucket in plan:
        for rank, places in enumerate(bucket.members):
            assert all(owners.parts(some[i].name).owners == (rank,) for i in places)


# ---- checkpoints ----


@pytest.mark.parametrize("name", ["tied", "fused"])
def test_the_whole_state_goes_through_any_number_of_ranks_unchanged(name):
    """Saved by one process, taken apart by 3, saved, taken apart by 2 with the whole, saved."""
    (alone,) = trained_alone(name)
    three = on_ranks(3, name, True, alone, ())
    two = on_ranks(2, name, False, three[0], ())
    four = on_ranks(4, name, True, two[0], ())
    for result in (three, two, four):
        assert_same(alone, result[0], **EXACT)


@pytest.mark.parametrize(("save", "resume"), [(1, 4), (4, 1), (4, 3), (2, 4)])
def test_a_run_goes_on_with_another_number_of_ranks(save, resume):
    (whole,) = trained_alone("gpt")
    first, rest = range(STEPS // 2), range(STEPS // 2, STEPS)
    half = on_ranks(save, "gpt", True, steps=first)
    assert_same(whole, on_ranks(resume, "gpt", True, half[0], rest)[0], **ROUNDING)


@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
def test_the_same_ranks_go_on_exactly(kept):
    options = {"momentum_dtype": kept}
    whole = on_ranks(2, "tied", True, **options)
    half = on_ranks(2, "tied", True, steps=range(STEPS // 2), **options)
    rest = on_ranks(2, "tied", True, half[0], range(STEPS // 2, STEPS), **options)
    assert_same(whole[0], rest[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_in_8_bits_ends_where_the_whole_state_ends(dtype):
    """Bit for bit where every matrix begins with a block, as 128 entries share an exponent."""
    options = {"dtype": dtype, "momentum_dtype": "float8"}
    whole = on_ranks(3, "aligned", False, every=True, **options)
    parts = on_ranks(3, "aligned", True, every=True, **options)
    assert_same(whole[0], parts[0], **EXACT)


def saved_twice(group, pairs):
    model, optimizer = pairs[group.rank()]
    optimizer.share(group, shard_state=True)
    step_(model, optimizer, range(3))
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        torch.save(optimizer.consolidated_state_dict(), file)
    return [file.getvalue() for file in files]


def test_saving_twice_gives_the_same_bytes():
    for first, second in on_threads(2, saved_twice, [made("tied") for _ in range(2)]):
        assert first == second


def test_a_parameter_without_any_gradient_so_far_is_in_the_state_with_zeros():
    model, optimizer = made("uneven")
    assert optimizer.state_dict()["state"] == {}
    model.a.weight.grad = torch.ones_like(model.a.weight)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    assert list(state) == list(range(8))
    assert sum(bool(v.any()) for entry in state.values() for v in entry.values()) == 1
    assert len(optimizer.state) == 1  # nothing is made for it


@pytest.mark.parametrize(("kept", "bytes_each"), [("auto", 4), ("bfloat16", 2), ("float8", 1)])
def test_rounded_momentum_takes_fewer_bytes_in_parts(kept, bytes_each):
    results = on_ranks(2, "aligned", True, every=True, momentum_dtype=kept)
    entries = sum(p.numel() for p in Aligned().parameters())
    exponents = entries // 128 if kept == "float8" else 0
    assert sum(result.bytes for result in results) == entries * bytes_each + exponents


def begun_late(group, pairs):
    """The state is there before the ranks begin to keep parts of it."""
    model, optimizer = pairs[group.rank()]
    step_(model, optimizer, range(3), every=True)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.share(group, shard_state=True)
    after = optimizer.consolidated_state_dict()
    optimizer.share(group, shard_state=True)  # again, as a second `fit` does
    again = optimizer.consolidated_state_dict()
    return before["state"], after["state"], again["state"], bytes_of(optimizer)


def test_rounded_momentum_that_is_there_is_cut():
    pairs = [made("tied", momentum_dtype="float8") for _ in range(2)]
    results = on_threads(2, begun_late, pairs)
    before, *others, _ = results[0]
    for other in others:
        assert all(torch.equal(before[key][k], v) for key in other for k, v in other[key].items())
    tensors = [v for s in before.values() for k, v in s.items() if k != "step"]
    rounded = [value for value in tensors if value.dtype == torch.bfloat16]
    entries = sum(value.numel() for value in rounded)
    exact = sum(value.nbytes for value in tensors) - 2 * entries
    exponents = sum(own for *_, own in results) - exact - entries
    assert 0 < exponents <= entries / 128 + 2 * len(rounded)


def test_a_state_that_is_there_is_cut():
    results = on_threads(2, begun_late, [made("tied") for _ in range(2)])
    before, *others, own = results[0]
    for other in others:
        assert all(torch.equal(before[key][k], v) for key in other for k, v in other[key].items())
    assert own + results[1][3] == sum(
        v.numel() * 4 for s in before.values() for k, v in s.items() if k != "step"
    )


# ---- refusals ----


def refused(group, pairs):
    model, optimizer = pairs[group.rank()]
    optimizer.share(group, shard_state=True)
    step_(model, optimizer, range(2), every=True)
    attempts = [
        optimizer.state_dict,
        lambda: copy.deepcopy(optimizer),
        lambda: pickle.dumps(optimizer),
        lambda: optimizer.share(None),
        lambda: optimizer.share(group),
    ]
    messages = []
    for attempt in attempts:
        with pytest.raises(RuntimeError) as info:
            attempt()
        messages.append(str(info.value))
    state = optimizer.consolidated_state_dict()
    if group.rank() == 0:
        state["state"][0] = {"momentum_buffer": torch.ones(2, 2)}
        with pytest.raises(ValueError, match=r"`momentum_buffer` of `a.weight` has shape \(2, 2\)"):
            optimizer.load_state_dict(state)
    return messages


def test_what_needs_the_whole_state_names_the_way_to_it():
    for messages in on_threads(2, refused, [made("uneven") for _ in range(2)]):
        assert all("consolidated_state_dict()" in message for message in messages)


def refused_shards(rank, ranks):
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    model = fully_shard(ALL_MODELS["uneven"](), mesh=mesh)
    optimizer = ROOT(model.parameters())
    with pytest.raises(ValueError) as info:
        optimizer.share(dist.group.WORLD, shard_state=True)
    return str(info.value), optimizer.shards_state


def test_sharded_parameters_are_refused(gloo_pool):
    for message, shards_state in gloo_pool.run(refused_shards):
        assert "`shard_state` must be False for `a.weight`, which is sharded" in message
        assert not shards_state


def test_a_rank_alone_keeps_everything():
    model, optimizer = made("uneven")
    pairs = [(model, optimizer)]
    (result,) = on_threads(1, trained, pairs, True)
    assert not optimizer.shards_state
    assert_same(trained_alone("uneven")[0], result, **EXACT)
