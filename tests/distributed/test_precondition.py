"""Preconditioners on several ranks: whoever computes an update, its roots are where they are due.

Every rank has the same gradients, so that all must end where one process ends: in float64 up to
rounding, as one process multiplies other matrices in one batch than ranks do.
"""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_root.distributed import replicas
from lightning_root.optim.stages.precondition import AGE, KEY
from tests.distributed import test_normalize as normalize
from tests.distributed import test_sharded_state as parts
from tests.distributed import test_sharding as shards
from tests.distributed.test_normalize import (
    Mixed,
    assert_equal_on_ranks,
    by_name,
    from_first_rank,
    values,
)
from tests.optim.old_checkpoints.cases import Case, begun, bound, unlike

EXACT = parts.EXACT
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}  # of eigenvectors and roots, in float64
COVARIANCE = {"precondition": "covariance", "precondition_every": 3}
SOAP = {"precondition": "soap", "precondition_every": 3}
KINDS = {
    "covariance": COVARIANCE,
    "soap": SOAP,
    "of momentum": {**COVARIANCE, "precondition_source": "momentum"},
    "smaller side": {**COVARIANCE, "precondition_sides": "smaller"},
    "not all": {**COVARIANCE, "precondition_max_dim": 6},
    "now and then": {**COVARIANCE, "precondition_statistics_every": 2},
    "beside v of neurons": {**SOAP, "normalize": "neuron"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def assert_all_have_all(results):
    """Each of several ranks has the whole state, bit for bit the same."""
    first = results[0].state["state"]
    assert any(KEY in entry and entry[KEY].any() for entry in first.values())
    for other in results[1:]:
        for key, entry in first.items():
            for k, value in entry.items():
                assert torch.equal(other.state["state"][key][k], value), (key, k)


# ---- ranks that hold the same parameters ----


@pytest.mark.parametrize(
    ("name", "kind"), [*(("fused", kind) for kind in KINDS), ("tied", "covariance")]
)
def test_ranks_that_share_end_where_one_process_ends(name, kind):
    """With the whole state, or in parts; gradients are missing on some steps."""
    options = {**KINDS[kind], "dtype": torch.float64}
    (alone,) = parts.trained_alone(name, **options)
    whole = parts.on_ranks(2, name, False, **options)
    assert_all_have_all(whole)
    in_parts = parts.on_ranks(2, name, True, **options)
    parts.assert_same(alone, whole[0], **ROUNDING)
    parts.assert_same(alone, in_parts[0], **ROUNDING)


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_matrix_at_a_time_is_one_process_bit_for_bit(options, dtype):
    """Matrices of different sizes, which nobody updates in one batch."""
    options = {**options, "dtype": dtype, "every": True}
    pairs = [parts.made("uneven", dtype, **{k: v for k, v in options.items() if k in COVARIANCE})]
    alone = parts.trained(None, pairs, False, None, range(parts.STEPS), None, True)
    for shard in (False, True):
        parts.assert_same(alone, parts.on_ranks(2, "uneven", shard, **options)[0], **EXACT)


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
@pytest.mark.parametrize("name", ["fused", "tied"])
def test_parts_end_where_the_whole_state_ends_bit_for_bit(name, options):
    whole = parts.on_ranks(2, name, False, every=True, **options)
    in_parts = parts.on_ranks(2, name, True, every=True, **options)
    parts.assert_same(whole[0], in_parts[0], **EXACT)


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_travels_bit_for_bit_beside_updates_in_bfloat16(dtype, options):
    """Equal to what it is beside exact updates, as gradients do not depend on weights here."""
    options = {"dtype": dtype, "every": True, **options}
    exact = parts.on_ranks(2, "fused", False, **options)
    rounded = parts.on_ranks(2, "fused", False, share_dtype="bfloat16", **options)
    assert_all_have_all(rounded)
    for key, state in exact[0].state["state"].items():
        assert torch.equal(rounded[0].state["state"][key][KEY], state[KEY])
    weights = exact[0].weights.items()
    assert any(not torch.equal(rounded[0].weights[n], w) for n, w in weights)


@pytest.mark.parametrize("kept", ["bfloat16", "float8"])
@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
def test_state_beside_momentum_in_fewer_bytes(kept, options):
    options = {"momentum_dtype": kept, "every": True, **options}
    whole = parts.on_ranks(2, "aligned", False, **options)
    assert_all_have_all(whole)
    in_parts = parts.on_ranks(2, "aligned", True, **options)
    parts.assert_same(whole[0], in_parts[0], **EXACT)


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
def test_small_buffers_change_nothing(monkeypatch, options):
    options = {**options, "steps": range(4), "every": True}
    expected = parts.on_ranks(2, "tied", False, **options)
    monkeypatch.setattr(replicas, "BUCKET_ELEMENTS", 20)
    for shard in (False, True):
        found = parts.on_ranks(2, "tied", shard, **options)
        parts.assert_same(expected[0], found[0], **EXACT)


@pytest.mark.parametrize("shard", [False, True])
def test_a_gradient_that_is_not_finite_leaves_state_alone_on_all_ranks(shard):
    """It is not finite in any step, so that nothing has ever been counted."""
    results = parts.on_ranks(2, "uneven", shard, poison="a.weight", **COVARIANCE)
    groups = results[0].state["param_groups"]
    names = {key: n for g in groups for key, n in zip(g["params"], g["param_names"], strict=True)}
    for key, state in results[0].state["state"].items():
        if KEY in state:
            assert bool(state[KEY].any()) == bool(state[AGE] > 0) == (names[key] != "a.weight")


def bytes_of_matrices(group, pairs, shard):
    model, optimizer = pairs[group.rank()]
    optimizer.share(group, shard_state=shard)
    parts.step_(model, optimizer, range(2), every=True)
    return sum(state[KEY].untyped_storage().nbytes() for state in optimizer.state.values())


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
def test_each_rank_keeps_the_state_of_its_own_matrices(options):
    whole, in_parts = (
        parts.on_threads(
            2, bytes_of_matrices, [parts.made("fused", **options) for _ in range(2)], shard
        )
        for shard in (False, True)
    )
    assert sum(in_parts) == whole[0] == whole[1]
    assert max(in_parts) < whole[0]


@pytest.mark.parametrize(
    ("resume", "options"), [(1, COVARIANCE), (2, SOAP), (3, COVARIANCE), (3, SOAP)]
)
def test_a_run_in_parts_goes_on_with_any_number_of_ranks(resume, options):
    """Its checkpoint is that of one process, which takes it over bit for bit."""
    options = {**options, "dtype": torch.float64}
    first, rest = range(4), range(4, 8)
    (alone,) = [
        parts.trained(None, [parts.made("fused", **options)], False, None, first),
    ]
    half = parts.on_ranks(2, "fused", True, steps=first, **options)
    parts.assert_same(alone, half[0], **ROUNDING)
    (of_one,) = parts.on_ranks(1, "fused", False, half[0], (), **options)
    parts.assert_same(half[0], of_one, **EXACT)
    whole = parts.on_ranks(2, "fused", True, **options)
    resumed = parts.on_ranks(resume, "fused", resume > 1, half[0], rest, **options)
    parts.assert_same(whole[0], resumed[0], **(EXACT if resume == 2 else ROUNDING))


@pytest.mark.parametrize("shard", [False, True])
def test_a_state_without_the_stage_goes_on_with_it(shard):
    """What an optimizer saved that did not know it, on one process and on ranks."""
    (old,) = parts.trained_alone("fused", dtype=torch.float64)
    options = {**COVARIANCE, "dtype": torch.float64}
    rest = range(4, 6)
    expected = parts.trained(None, [parts.made("fused", **options)], False, old, rest)
    found = parts.on_ranks(2, "fused", shard, old, rest, **options)
    parts.assert_same(expected, found[0], **ROUNDING)
    ages = {int(state[AGE]) for state in found[0].state["state"].values()}
    assert ages <= {1, 2}


def changed_halfway(group, pairs, shard):
    model, optimizer = pairs[group.rank() if group is not None else 0]
    optimizer.share(group, shard_state=shard)
    parts.step_(model, optimizer, range(2), every=True)
    for change in (SOAP, {"precondition_sides": "both"}, COVARIANCE):
        for own in optimizer.param_groups:
            own.update(change)
        parts.step_(model, optimizer, range(2, 4), every=True)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("shard", [False, True])
def test_options_may_change_between_steps_on_all_ranks(shard):
    """With state of another size, whole or in parts."""
    options = {**COVARIANCE, "dtype": torch.float64}
    expected = changed_halfway(None, [parts.made("fused", **options)], False)
    pairs = [parts.made("fused", **options) for _ in range(2)]
    for found in parts.on_threads(2, changed_halfway, pairs, shard):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, **ROUNDING, msg=name)


# ---- sharded parameters ----


trained = partial(normalize.trained, key=KEY)
on_ranks = partial(normalize.on_ranks, key=KEY)


@kinds
@pytest.mark.parametrize("name", ["fused", "uneven"])
def test_sharded_rows_end_where_one_process_ends(gloo_pool, name, kind):
    """Rows, some more on one rank or none at all on the other; experts have state of their own."""
    options = KINDS[kind]
    expected = trained(shards.ALL_MODELS[name]().double(), options)
    results = gloo_pool.run(on_ranks, name, (2,), torch.float64, 1 << 25, options)
    assert_equal_on_ranks(results, expected, **ROUNDING)
    assert results[0][2] == {n for n in expected[1] if n == "experts"}


@pytest.mark.parametrize(
    ("name", "mesh_shape", "options"),
    [
        *(("fused", (1, 2), COVARIANCE), ("fused", (2, 1), SOAP), ("cnn", (2,), COVARIANCE)),
        ("gpt", (2,), {**SOAP, "nesterov": False, "outlier_quantile": None}),
        ("fused", (2,), {**COVARIANCE, "momentum_dtype": "bfloat16"}),
        ("aligned", (2,), {**COVARIANCE, "momentum_dtype": "float8"}),
    ],
    ids=str,
)
def test_meshes_views_and_kinds_of_momentum(gloo_pool, name, mesh_shape, options):
    expected = trained(shards.ALL_MODELS[name]().double(), options)
    results = gloo_pool.run(on_ranks, name, mesh_shape, torch.float64, 1 << 25, options)
    assert_equal_on_ranks(results, expected, **ROUNDING)


def bfloat16_parameters(rank, ranks, options):
    return on_ranks(rank, ranks, "uneven", (2,), torch.bfloat16, 1 << 25, options)


@pytest.mark.parametrize("source", ["gradient", "momentum"])
def test_parameters_in_bfloat16_keep_state_in_float32(gloo_pool, source):
    options = {**COVARIANCE, "precondition_source": source}
    expected = trained(shards.ALL_MODELS["uneven"]().bfloat16(), options)
    results = gloo_pool.run(bfloat16_parameters, options)
    assert_equal_on_ranks(results, expected, **EXACT)
    assert {value.dtype for value in results[0][1].values()} == {torch.float32}


@pytest.mark.parametrize("options", [COVARIANCE, SOAP], ids=lambda o: o["precondition"])
def test_smaller_exchanges_change_nothing(gloo_pool, options):
    large = gloo_pool.run(on_ranks, "fused", (2,), torch.float32, 1 << 25, options)
    small = gloo_pool.run(on_ranks, "fused", (2,), torch.float32, 1, options)
    assert_equal_on_ranks(small, large[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_travels_bit_for_bit_beside_rows_in_bfloat16(gloo_pool, dtype):
    exact = gloo_pool.run(on_ranks, "fused", (2,), dtype, 1 << 25, COVARIANCE)
    options = {**COVARIANCE, "share_dtype": "bfloat16"}
    rounded = gloo_pool.run(on_ranks, "fused", (2,), dtype, 1 << 25, options)
    assert_equal_on_ranks(rounded, rounded[0], **EXACT)
    for n, value in exact[0][1].items():
        assert torch.equal(rounded[0][1][n], value)
    assert any(not torch.equal(rounded[0][0][n], w) for n, w in exact[0][0].items())


def cut_by_columns(rank, ranks, options):
    """Matrices are gathered, and all ranks update them."""
    torch.set_num_threads(1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    model = shards.Fused().double()
    for n, parameter in list(model.named_parameters()):
        path, _, leaf = n.rpartition(".")
        tensor = distribute_tensor(parameter.detach(), mesh, [Shard(1)])
        setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))
    return trained(model, options)


@pytest.mark.parametrize(
    ("kind", "kept"), [("soap", "auto"), ("covariance", "bfloat16"), ("of momentum", "auto")]
)
def test_what_is_cut_otherwise_has_the_whole_state_on_every_rank(gloo_pool, kind, kept):
    options = {**KINDS[kind], "momentum_dtype": kept}
    expected = trained(shards.Fused().double(), options)
    results = gloo_pool.run(cut_by_columns, options)
    assert_equal_on_ranks(results, expected, **ROUNDING)
    assert all(not sharded for _, _, sharded in results)


# ---- checkpoints, from any placement to any other ----


PLACES = ("one", "parts", "fsdp")
HALF, REST = range(3), range(3, 6)


def run_of(place, method, **options):
    rules = {"row.weight": "root"}
    given = {"lr": 1e-2, "coefficients": "muon", "rules": rules, "precondition": method}
    given |= {"precondition_every": 4, **options}
    case = Case(model=Mixed, make=bound, options=given, ranks=place, dtype=torch.float64)
    return begun(case)


def whole_of(run, ranks):
    saved = by_name(run.saved())
    return from_first_rank(saved) if ranks > 1 else saved


def saved_on(rank, ranks, place, method, folder):
    """The whole state half way, saved, and what the run ends with."""
    torch.set_num_threads(1)
    run = run_of(place, method)
    run.steps(HALF)
    half = whole_of(run, ranks)
    if folder:
        run.save_folder(folder)
    run.steps(REST)
    return half, whole_of(run, ranks)


def resumed_on(rank, ranks, place, method, halves, folder):
    """What runs end with that go on from each of some states; all of them are the same at first."""
    torch.set_num_threads(1)
    ends = {}
    for saved_by, half in halves.items():
        run = run_of(place, method)
        if folder and saved_by == place:
            run.load_folder(folder)
        else:
            run.load(copy.deepcopy(half))  # torch writes into what it is given
        differs = unlike(half, whole_of(run, ranks))
        run.steps(REST)
        ends[saved_by] = differs, whole_of(run, ranks)
    return ends


@pytest.fixture(scope="module", params=["covariance", "soap"])
def saved(request, gloo_pool, tmp_path_factory):
    """For each placement the state half way and at the end, and a folder of FSDP2's."""
    method, folder = request.param, str(tmp_path_factory.mktemp("sharded"))
    found = {"one": saved_on(0, 1, "one", method, None)}
    for place in PLACES[1:]:
        given = folder if place == "fsdp" else None
        found[place] = gloo_pool.run(saved_on, place, method, given)[0]
    return method, found, folder


def test_every_placement_saves_the_same(saved):
    """Names, shapes and, up to rounding, numbers."""
    _, found, _ = saved
    expected = values(found["one"][0])
    assert {key for _, key in expected if _ != "weight"} >= {KEY, AGE}
    for half, _ in found.values():
        assert values(half).keys() == expected.keys()
        for entry, value in values(half).items():
            torch.testing.assert_close(value, expected[entry], **ROUNDING, msg=str(entry))


@pytest.mark.parametrize(
    ("place", "in_folder"), [*((place, False) for place in PLACES), ("fsdp", True)]
)
def test_every_state_goes_on_everywhere(gloo_pool, saved, place, in_folder):
    """Read to the last bit; exactly where the same placement goes on, also from a folder."""
    method, found, folder = saved
    halves = {saved_by: half for saved_by, (half, _) in found.items()}
    folder = folder if in_folder else None
    if place == "one":
        ends = resumed_on(0, 1, place, method, halves, folder)
    else:
        ends = gloo_pool.run(resumed_on, place, method, halves, folder)[0]
    for saved_by, (differs, end) in ends.items():
        assert differs == [], saved_by
        for entry, value in values(end).items():
            expected = values(found[place][1])[entry]
            rounding = EXACT if saved_by == place else ROUNDING
            torch.testing.assert_close(value, expected, **rounding, msg=f"{saved_by} {entry}")


def begun_late(rank, ranks, place, method, old):
    """What goes on from a state that was saved without the stage, and how old roots are then."""
    torch.set_num_threads(1)
    run = run_of(place, method)
    run.load(copy.deepcopy(old))
    ages = []
    run.optimizer.register_stack_hook(lambda stack: ages.extend(stack.ages))
    run.steps(range(3, 4))
    run.optimizer._stack_hooks.clear()
    run.steps(range(4, 6))
    return ages, whole_of(run, ranks)


def test_a_state_without_the_stage_goes_on_everywhere_with_roots_of_the_next_step(gloo_pool):
    plain = run_of("one", "none")
    plain.steps(HALF)
    old = by_name(plain.saved())
    ages, alone = begun_late(0, 1, "one", "covariance", old)
    assert set(ages) == {0}
    for place in PLACES[1:]:
        for ages, found in gloo_pool.run(begun_late, place, "covariance", old):
            assert set(ages) <= {0}
            for entry, value in values(alone).items():
                torch.testing.assert_close(values(found)[entry], value, **ROUNDING, msg=str(entry))


def seen_by_hooks(rank, ranks, place):
    """What hooks see of each matrix, by step."""
    torch.set_num_threads(1)
    run = run_of(place, "covariance")
    seen = {}

    def hook(stack):
        for i, name in enumerate(stack.names):
            seen[step, name] = stack.ages[i], stack.conditions[i], stack.preconditioned[i].clone()

    run.optimizer.register_stack_hook(hook)
    for step in HALF:
        run.steps(range(step, step + 1))
    return seen


@pytest.mark.parametrize("place", ["parts", "fsdp"])
def test_hooks_of_some_rank_see_what_hooks_of_one_process_see(gloo_pool, place):
    expected = seen_by_hooks(0, 1, "one")
    seen = {name: of for found in gloo_pool.run(seen_by_hooks, place) for name, of in found.items()}
    assert seen.keys() == expected.keys()
    for name, (age, condition, matrix) in expected.items():
        assert seen[name][0] == age
        torch.testing.assert_close(seen[name][1], condition, rtol=1e-5, atol=0)
        torch.testing.assert_close(seen[name][2], matrix, **ROUNDING)


def unshared(rank, ranks):
    """Ranks that each do all, as `share_updates=False` has them under DDP."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved_on(rank, 1, "one", "covariance", None)[1]


def test_ranks_that_share_nothing_have_the_same_state(gloo_pool):
    expected = values(saved_on(0, 1, "one", "covariance", None)[1])
    for found in gloo_pool.run(unshared):
        assert all(torch.equal(value, expected[entry]) for entry, value in values(found).items())
