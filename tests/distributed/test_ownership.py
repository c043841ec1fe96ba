"""Who orthogonalizes what: one owner each, near the optimum, whatever the order, at any size."""

import random
import sys
import tracemalloc
from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from torch.utils.flop_counter import FlopCounterMode

from lightning_root.distributed import (
    COSTS,
    Matrices,
    bytes_bound,
    cheapest_operations,
    matrices_in,
    plan_ownership,
    standard_operations,
)
from lightning_root.functional import newton_schulz
from lightning_root.partition import MatrixView

# Shapes of one layer's matrices, from the published configurations.


def gpt2(width):
    return [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]


def llama(width, kv, inner, q=None):
    q = q or width
    attention = [(q, width), (kv, width), (kv, width), (width, q)]
    return [*attention, (inner, width), (inner, width), (width, inner)]


def moe(layer, experts=384, width=7168):
    """Multi-head latent attention with 64 heads; one dense layer, then 384 experts and one more."""
    attention = [(1536, width), (12288, 1536), (576, width), (16384, 512), (width, 8192)]
    if layer == 0:
        return attention + [(18432, width)] * 2 + [(width, 18432)]
    return attention + ([(2048, width)] * 2 + [(width, 2048)]) * (experts + 1)


def layers(depth, shapes):
    """A parameter for each matrix."""
    return [
        Matrices(f"layers.{layer}.{index}", 0, shape)
        for layer in range(depth)
        for index, shape in enumerate(shapes(layer) if callable(shapes) else shapes)
    ]


@cache
def model(name):
    return {
        "gpt2-small": lambda: layers(12, gpt2(768)),
        "gpt2-medium": lambda: layers(24, gpt2(1024)),
        "gpt2-large": lambda: layers(36, gpt2(1280)),
        "gpt2-xl": lambda: layers(48, gpt2(1600)),
        "qwen3-0.6b": lambda: layers(28, llama(1024, 1024, 3072, q=2048)),
        "llama-3.2-1b": lambda: layers(16, llama(2048, 512, 8192)),
        "llama-3-8b": lambda: layers(32, llama(4096, 1024, 14336)),
        "llama-3-70b": lambda: layers(80, llama(8192, 1024, 28672)),
        "moe-1t": lambda: layers(61, moe),
    }[name]()


# Any matrices: stacks in parameters, of few shapes and of many.

SHAPES = st.one_of(
    st.sampled_from([(4, 4), (4, 16), (16, 4), (8, 8)]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
STACKS = st.lists(st.tuples(SHAPES, st.integers(1, 5)), min_size=1, max_size=12)
FORMS = st.sampled_from(sorted(COSTS))


def given_as(stacks):
    """Two stacks follow each other in every parameter."""
    found, start = [], 0
    for index, (shape, count) in enumerate(stacks):
        start = start if index % 2 else 0
        found.append(Matrices(f"p{index // 2}", start, shape, count))
        start += count
    return found


def one_by_one(matrices):
    return [
        Matrices(entry.name, entry.number + i, entry.shape)
        for entry in matrices
        for i in range(entry.count)
    ]


def owners(plan, matrices):
    return {(m.name, m.number): plan.owner(m.name, m.number) for m in one_by_one(matrices)}


@given(STACKS, st.integers(1, 9), FORMS, st.integers(1, 6))
def test_every_matrix_has_one_owner_whose_operations_are_counted(stacks, ranks, form, steps):
    matrices = given_as(stacks)
    plan = plan_ownership(matrices, ranks, steps=steps, cost=COSTS[form])
    owned = [
        (rank, m) for rank in range(ranks) for e in plan.owned_by(rank) for m in one_by_one([e])
    ]
    assert sorted(m for _, m in owned) == sorted(one_by_one(matrices))
    assert {(m.name, m.number): rank for rank, m in owned} == owners(plan, matrices)
    operations = Counter()
    for rank, matrix in owned:
        operations[rank] += COSTS[form](matrix.shape, steps)
    assert list(plan.operations) == [operations[rank] for rank in range(ranks)]
    assert plan.matrices == len(owned)
    assert plan.balance == pytest.approx(max(operations.values()) / (operations.total() / ranks))


@given(STACKS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_plan_depends_on_the_set_of_matrices_alone(stacks, ranks, shuffler):
    """Not on their order, nor on whether a stack comes as one entry or matrix by matrix."""
    matrices = given_as(stacks)
    plan = plan_ownership(matrices, ranks)
    shuffled = shuffler.sample(matrices, len(matrices))
    assert plan_ownership(shuffled, ranks) == plan
    singly = plan_ownership(one_by_one(shuffled), ranks)
    assert owners(singly, matrices) == owners(plan, matrices)
    assert singly.operations == plan.operations


def optimum(costs, ranks):
    """The least that the busiest rank can have, by trying everything."""
    states = {(0,) * ranks}
    for cost in costs:
        states = {
            tuple(sorted((*state[:r], state[r] + cost, *state[r + 1 :])))
            for state in states
            for r in range(ranks)
        }
    return min(map(max, states))


@given(
    st.lists(
        st.sampled_from([(2, 2), (2, 3), (3, 3), (3, 5), (4, 4), (4, 7)]), min_size=1, max_size=9
    ),
    st.integers(1, 4),
)
def test_grahams_guarantee_holds_against_the_optimum(shapes, ranks):
    """R. L. Graham, 1969: longest first is at most 4/3 - 1/(3 N) of the optimum."""
    matrices = [Matrices(f"p{index}", 0, shape) for index, shape in enumerate(shapes)]
    plan = plan_ownership(matrices, ranks)
    best = optimum([cheapest_operations(shape, 5) for shape in shapes], ranks)
    assert plan.lower_bound <= best <= plan.busiest
    assert 3 * ranks * plan.busiest <= (4 * ranks - 1) * best


@given(STACKS, st.integers(1, 9))
def test_nobody_waits_for_more_than_one_matrix(stacks, ranks):
    """Graham's other inequality, of any list: at most the mean and (1 - 1 / N) of the largest."""
    plan = plan_ownership(given_as(stacks), ranks)
    total = sum(plan.operations)
    assert ranks * plan.busiest <= total + (ranks - 1) * plan.largest
    assert plan.busiest >= plan.lower_bound >= max(plan.largest, total / ranks)


def test_what_longest_first_misses_is_found():
    """3 + 3 and 2 + 2 + 2, where the longest first would end at 3 + 2 + 2."""
    cost = {(3, 3): 3, (2, 2): 2}
    matrices = [Matrices("a", 0, (3, 3), 2), Matrices("b", 0, (2, 2), 3)]
    plan = plan_ownership(matrices, 2, cost=lambda shape, steps: cost[shape])
    assert plan.operations == (6, 6)
    assert [entry.name for entry in plan.owned_by(0)] == ["a"]


# The bounds that are promised.


@pytest.mark.parametrize("form", sorted(COSTS))
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(
    "name",
    [
        *("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"),
        *("qwen3-0.6b", "llama-3.2-1b", "llama-3-8b", "llama-3-70b"),
    ],
)
def test_up_to_8_ranks_the_busiest_has_at_most_a_tenth_more_than_its_share(name, ranks, form):
    plan = plan_ownership(model(name), ranks, cost=COSTS[form])
    assert plan.share <= 1.1 / ranks


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_fused_projections_and_stacks_count_block_by_block(ranks):
    """GPT-2 small with its fused qkv is the model whose q, k and v are parameters."""
    fused = [
        entry
        for layer in range(12)
        for name, view, shape in [
            ("qkv", MatrixView(rows=(768,) * 3), (2304, 768)),
            ("out", MatrixView(), (768, 768)),
            ("mlp", MatrixView(), (3072, 768)),
            ("proj", MatrixView(), (768, 3072)),
        ]
        for entry in matrices_in(f"h.{layer}.{name}", view.matrices(shape))
    ]
    plan = plan_ownership(fused, ranks)
    assert plan.matrices == 72
    assert sorted(plan.operations) == sorted(plan_ownership(model("gpt2-small"), ranks).operations)
    assert plan.share <= 1.1 / ranks


def test_a_stack_of_experts_is_shared_out():
    plan = plan_ownership([Matrices("experts", 0, (64, 256), 100)], 8)
    assert [sum(e.count for e in plan.owned_by(r)) for r in range(8)] == [13] * 4 + [12] * 4
    assert plan.owned_by(1) == [Matrices("experts", 13, (64, 256), 13)]


def fewest_ranks(matrices, form, capacity):
    """How many ranks of some capacity hold the matrices: an integer program over fillings."""
    classes = Counter(COSTS[form](entry.shape, 5) for entry in matrices)
    costs = np.array(sorted(classes, reverse=True))
    most = [range(min(classes[c], int(capacity // c)) + 1) for c in costs[:-1]]
    fillings = []
    for filling in product(*most):
        room = capacity - sum(n * int(c) for n, c in zip(filling, costs[:-1], strict=True))
        if room >= 0:
            fillings.append((*filling, min(classes[costs[-1]], int(room // costs[-1]))))
    enough = LinearConstraint(np.array(fillings).T, lb=[classes[c] for c in costs])
    ones = np.ones(len(fillings))
    result = milp(ones, constraints=enough, bounds=Bounds(0), integrality=ones)
    assert result.success
    return round(result.fun)


@pytest.mark.parametrize("form", sorted(COSTS))
@pytest.mark.parametrize(
    ("name", "ranks"), [("llama-3-8b", 16), ("llama-3-8b", 32), ("llama-3-70b", 64), ("moe-1t", 64)]
)
def test_on_up_to_64_ranks_large_models_are_within_a_twentieth(name, ranks, form):
    assert plan_ownership(model(name), ranks, cost=COSTS[form]).share <= 1.05 / ranks


@pytest.mark.parametrize(("form", "balance"), [("cheapest", 1.094), ("standard", 1.057)])
def test_8b_on_64_ranks_is_as_even_as_whole_matrices_can_be(form, balance):
    """It has 1.5 MLP matrices a rank: a twentieth over the share is out of reach for any plan."""
    plan = plan_ownership(model("llama-3-8b"), 64, cost=COSTS[form])
    assert plan.balance == pytest.approx(balance, abs=5e-4)
    assert fewest_ranks(model("llama-3-8b"), form, plan.busiest) <= 64
    assert fewest_ranks(model("llama-3-8b"), form, plan.busiest - 1) > 64


@pytest.mark.parametrize("form", sorted(COSTS))
@pytest.mark.parametrize("ranks", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize(
    "name", ["gpt2-small", "gpt2-xl", "qwen3-0.6b", "llama-3.2-1b", "llama-3-8b", "llama-3-70b"]
)
def test_no_plan_of_whole_matrices_is_a_twentieth_better(name, ranks, form):
    plan = plan_ownership(model(name), ranks, cost=COSTS[form])
    better = int(plan.busiest / 1.05)
    assert better < plan.lower_bound or fewest_ranks(model(name), form, better) > ranks


def test_cheap_matrices_are_not_left_in_heaps():
    """Who has many cheap matrices would have many bytes to exchange: 560 on 64 ranks are 9 each."""
    plan = plan_ownership(model("llama-3-70b"), 64, placement="rows")
    assert plan.balance == pytest.approx(1.027, abs=5e-4)
    assert max(len(plan.owned_by(rank)) for rank in range(64)) < 2 * 560 / 64
    assert max(plan.received) < 1.1 * plan.bytes_bound


# Any size.


def calls_within(function):
    """What a function returns, and how many calls it takes: a clock would judge the machine."""
    calls, before = 0, sys.getprofile()

    def counted(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        return function(), calls
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("ranks", [8, 64, 1024, 8192])
@pytest.mark.parametrize(
    ("name", "parameters"), [("llama-3-8b", 7.0e9), ("llama-3-70b", 68.5e9), ("moe-1t", 1.02e12)]
)
def test_large_models_take_some_calls_for_each_matrix_and_each_rank(name, parameters, ranks):
    matrices = model(name)
    assert sum(m.shape[0] * m.shape[1] for m in matrices) == pytest.approx(parameters, rel=0.01)
    plan, calls = calls_within(lambda: plan_ownership(matrices, ranks, placement="rows"))
    assert calls < 50 * (len(matrices) + ranks)
    total = sum(plan.operations)
    assert plan.limited_by_largest == (plan.busiest == plan.largest > total / ranks)
    assert plan.busiest <= 1.1 * plan.lower_bound
    if ranks > len(matrices):
        assert plan.limited_by_largest
        assert plan.operations.count(0) == ranks - len(matrices)


def test_a_plan_takes_little_memory():
    matrices = model("moe-1t")
    tracemalloc.start()
    plan = plan_ownership(matrices, 8192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.matrices == len(matrices) == 69_608
    assert peak < 100e6


def test_as_stacks_half_a_million_matrices_are_no_more_work():
    stacks = [Matrices(f"layers.{i + 10}.experts", 0, (512, 1024), 8192) for i in range(61)]
    plan, calls = calls_within(lambda: plan_ownership(stacks, 8192))
    assert calls < 50 * (len(stacks) + 8192)
    assert plan.balance == 1.0
    assert plan.owner("layers.70.experts", 8191) == 8191


# Bytes.


@given(STACKS, st.integers(1, 7), st.sampled_from([2, 4]))
def test_every_update_reaches_every_rank(stacks, ranks, element_bytes):
    """Plain data parallelism, message by message."""
    matrices = given_as(stacks)
    plan = plan_ownership(matrices, ranks, element_bytes=element_bytes)
    sent, received = [0] * ranks, [0] * ranks
    for matrix in one_by_one(matrices):
        owner = plan.owner(matrix.name, matrix.number)
        for rank in set(range(ranks)) - {owner}:
            size = element_bytes * matrix.shape[0] * matrix.shape[1]
            sent[owner] += size
            received[rank] += size
    assert (list(plan.sent), list(plan.received)) == (sent, received)
    assert plan.bytes_bound == pytest.approx(sum(received) / ranks)


@given(STACKS, st.integers(1, 7), st.sampled_from([2, 4]))
def test_rows_travel_to_the_owner_and_back(stacks, ranks, element_bytes):
    """FSDP2, message by message, with torch's own chunks."""
    matrices = given_as(stacks)
    plan = plan_ownership(matrices, ranks, placement="rows", element_bytes=element_bytes)
    sent, received = [0] * ranks, [0] * ranks
    for matrix in one_by_one(matrices):
        owner = plan.owner(matrix.name, matrix.number)
        for rank, part in enumerate(torch.empty(matrix.shape, device="meta").chunk(ranks)):
            if rank != owner:
                for source, target in ((rank, owner), (owner, rank)):
                    sent[source] += element_bytes * part.numel()
                    received[target] += element_bytes * part.numel()
    assert (list(plan.sent), list(plan.received)) == (sent, received)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20)), min_size=1, max_size=8),
    st.integers(1, 6),
)
def test_the_bound_is_what_ranks_receive_on_average_where_rows_divide(sizes, ranks):
    matrices = [Matrices(f"p{i}", 0, (m * ranks, n)) for i, (m, n) in enumerate(sizes)]
    plan = plan_ownership(matrices, ranks, placement="rows")
    assert sum(plan.received) / ranks == pytest.approx(plan.bytes_bound)
    total = 4 * sum(m * ranks * n for m, n in sizes)
    assert plan.bytes_bound == pytest.approx(2 * (ranks - 1) / ranks * total / ranks)


def test_one_rank_exchanges_nothing():
    for placement in ("replicated", "rows"):
        plan = plan_ownership(model("gpt2-small"), 1, placement=placement)
        assert plan.sent == plan.received == (0,)
        assert bytes_bound(100, 1, placement) == plan.bytes_bound == 0


# Operations.


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_standard_form_takes_the_operations_that_torch_counts(shape, steps):
    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.randn(shape), (2.0, -1.5, 0.5), steps)
    assert standard_operations(shape, steps) == counter.get_total_flops()


def test_the_cheapest_form_iterates_on_the_gram_matrix_where_that_is_small():
    assert cheapest_operations((100, 1000), 5) == 3 * 100**2 * 1000 + 17 * 100**3
    assert cheapest_operations((1000, 100), 5) == cheapest_operations((100, 1000), 5)
    assert cheapest_operations((100, 100), 5) == 20 * 100**3
    assert cheapest_operations((100, 1000), 1) == 3 * 100**2 * 1000 + 100**3


# Words.


def test_fewer_matrices_than_ranks_leave_ranks_idle():
    plan = plan_ownership([Matrices("a", 0, (8, 32)), Matrices("b", 0, (8, 8), 2)], 5)
    assert plan.limited_by_largest
    assert plan.busiest == plan.lower_bound == plan.largest == cheapest_operations((8, 32), 5)
    assert plan.operations.count(0) == 2


def test_equal_matrices_one_each_are_a_fair_share():
    plan = plan_ownership([Matrices("a", 0, (8, 8), 4)], 4)
    assert plan.balance == 1.0
    assert not plan.limited_by_largest


@pytest.mark.parametrize(("name", "number"), [("a", 2), ("b", 0), ("", 0)])
def test_a_matrix_that_is_not_planned_has_no_owner(name, number):
    plan = plan_ownership([Matrices("a", 0, (8, 8), 2)], 2)
    with pytest.raises(KeyError, match=f"no matrix {number} of `{name}`"):
        plan.owner(name, number)


def test_empty_matrices_are_left_out():
    found = matrices_in("p", [(4, 4), (0, 4), (4, 4)])
    assert [(entry.number, entry.count) for entry in found] == [(0, 1), (2, 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranks": 0}, "`ranks` must be a whole number >= 1, got 0"),
        ({"steps": 1.5}, "`steps` must be a whole number >= 1, got 1.5"),
        ({"element_bytes": 0}, "`element_bytes` must be"),
        ({"placement": "columns"}, "`placement` must be one of .*'rows'.*, got 'columns'"),
        ({"matrices": []}, "`matrices` must hold at least one"),
        ({"cost": lambda shape, steps: 0.5}, "`cost` must return a whole number >= 1, got 0.5"),
        (
            {"matrices": [Matrices("a", 0, (8, 8), 3), Matrices("a", 2, (4, 4))]},
            "got 2 of `a` twice",
        ),
    ],
)
def test_wrong_arguments_are_named(change, words):
    arguments = {"matrices": [Matrices("a", 0, (8, 8))], "ranks": 2, **change}
    with pytest.raises(ValueError, match=words):
        plan_ownership(arguments.pop("matrices"), arguments.pop("ranks"), **arguments)


@pytest.mark.parametrize("entry", [("a", 0, (0, 8)), ("a", -1, (8, 8)), ("a", 0, (8, 8), 0)])
def test_matrices_have_sizes(entry):
    with pytest.raises(ValueError, match="`shape` and `count` must be >= 1"):
        Matrices(*entry)


def owner_of_everything(rank, ranks):
    matrices = model("llama-3.2-1b")
    shuffled = random.Random(rank).sample(matrices, len(matrices))
    return owners(plan_ownership(shuffled, ranks), matrices)


def test_every_process_computes_the_same_plan(gloo_pool):
    """Hashes of strings differ between processes; nothing in a plan may follow them."""
    first, second = gloo_pool.run(owner_of_everything)
    assert first == second
    assert Counter(first.values()) == {0: 56, 1: 56}
