"""State per neuron on several ranks: whoever computes an update, its v is where it is needed.

Every rank has the same gradients, so that all must end where one process ends.
"""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_root import ROOT
from lightning_root.distributed import gather, replicas
from lightning_root.optim.checkpoint import keyed_by_names
from tests.distributed import test_sharded_state as parts
from tests.distributed import test_sharding as shards
from tests.distributed.test_sharded_optimizer import set_gradients
from tests.optim.old_checkpoints.cases import Case, Views, begun, bound, give_gradients, unlike

KEY = "neuron_exp_avg_sq"
NEURON = {"normalize": "neuron"}
EXACT, ROUNDING = parts.EXACT, parts.ROUNDING


def assert_all_have_v(results):
    """Each of several ranks has the whole state, bit for bit the same."""
    first = results[0].state["state"]
    assert any(KEY in entry for entry in first.values())
    for other in results[1:]:
        for key, entry in first.items():
            for k, value in entry.items():
                assert torch.equal(other.state["state"][key][k], value), (key, k)


# ---- ranks that hold the same parameters ----


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [(2, torch.float32), (3, torch.float32), (3, torch.bfloat16), (2, torch.float64)],
)
@pytest.mark.parametrize("name", ["fused", "tied"])
def test_ranks_that_share_hold_the_v_of_one_process(name, ranks, dtype):
    """The whole of it, or in parts, which are the same bit for bit where both have a gradient."""
    (alone,) = parts.trained_alone(name, dtype=dtype, **NEURON)
    whole = parts.on_ranks(ranks, name, False, dtype=dtype, **NEURON)
    assert_all_have_v(whole)
    in_parts = parts.on_ranks(ranks, name, True, dtype=dtype, **NEURON)
    if dtype != torch.bfloat16:  # whose weights may be rounded to the other neighbour
        parts.assert_same(alone, whole[0], **ROUNDING)
        parts.assert_same(alone, in_parts[0], **ROUNDING)
    for key, state in alone.state["state"].items():
        if KEY in state:
            for found in (whole[0], in_parts[0]):
                torch.testing.assert_close(found.state["state"][key][KEY], state[KEY], **ROUNDING)


@pytest.mark.parametrize("name", ["fused", "tied", "uneven"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_v_in_parts_ends_where_the_whole_v_ends_bit_for_bit(name, ranks):
    whole = parts.on_ranks(ranks, name, False, every=True, **NEURON)
    in_parts = parts.on_ranks(ranks, name, True, every=True, **NEURON)
    parts.assert_same(whole[0], in_parts[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["fused", "tied"])
def test_v_travels_bit_for_bit_beside_updates_in_bfloat16(name, dtype):
    """Equal to what it is beside exact updates, and with digits that bfloat16 has not."""
    options = {"dtype": dtype, "every": True, **NEURON}
    exact = parts.on_ranks(2, name, False, **options)
    rounded = parts.on_ranks(2, name, False, share_dtype="bfloat16", **options)
    assert_all_have_v(rounded)
    differ = False
    for key, state in exact[0].state["state"].items():
        if KEY in state:
            v = rounded[0].state["state"][key][KEY]
            assert torch.equal(v, state[KEY])
            differ |= not torch.equal(v.bfloat16().to(v.dtype), v)
    assert differ
    weights = exact[0].weights.items()
    assert any(not torch.equal(rounded[0].weights[n], w) for n, w in weights)


@pytest.mark.parametrize("kept", ["bfloat16", "float8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", ["auto", "bfloat16"])
def test_v_beside_momentum_in_fewer_bytes(kept, dtype, share):
    """Where momentum has fewer bytes than v, and updates have them too."""
    options = {"dtype": dtype, "momentum_dtype": kept, "share_dtype": share, **NEURON}
    pairs = [parts.made("aligned", **options)]
    alone = parts.trained(None, pairs, False, None, range(parts.STEPS), None, True)
    whole = parts.on_ranks(2, "aligned", False, every=True, **options)
    assert_all_have_v(whole)
    in_parts = parts.on_ranks(2, "aligned", True, every=True, **options)
    parts.assert_same(whole[0], in_parts[0], **EXACT)
    for key, state in alone.state["state"].items():
        assert state[KEY].dtype == dtype
        v = whole[0].state["state"][key][KEY]
        assert v.dtype == dtype
        torch.testing.assert_close(v, state[KEY], **ROUNDING)


class TwoDtypes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.single = nn.Linear(6, 10, bias=False)
        self.double = nn.Linear(6, 10, bias=False).double()
        self.half = nn.Linear(6, 10, bias=False).bfloat16()


def of_two_dtypes(group, models, shard, options):
    model = models[group.rank() if group is not None else 0]
    named = [(n, p) for n, p in model.named_parameters()]
    optimizer = ROOT(named, rules={"*": "root"}, coefficients="muon", **options, **NEURON)
    optimizer.share(group, shard_state=shard)
    parts.step_(model, optimizer, range(3), every=True)
    return optimizer.consolidated_state_dict()["state"]


@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
@pytest.mark.parametrize("shard", [False, True])
def test_parameters_of_several_dtypes_have_v_of_theirs(kept, shard):
    options = {"momentum_dtype": kept}
    alone = of_two_dtypes(None, [TwoDtypes()], False, options)
    pairs = [TwoDtypes(), TwoDtypes()]
    first = parts.on_threads(2, of_two_dtypes, pairs, shard, options)[0]
    for key, state in alone.items():
        assert first[key][KEY].dtype == state[KEY].dtype
        torch.testing.assert_close(first[key][KEY], state[KEY], **ROUNDING)
    assert {state[KEY].dtype for state in alone.values()} == {torch.float32, torch.float64}


@pytest.mark.parametrize("elements", [20, 300])
def test_small_buffers_change_nothing(monkeypatch, elements):
    expected = [parts.on_ranks(3, "tied", shard, **NEURON)[0] for shard in (False, True)]
    monkeypatch.setattr(replicas, "BUCKET_ELEMENTS", elements)
    for shard, result in zip((False, True), expected, strict=True):
        parts.assert_same(result, parts.on_ranks(3, "tied", shard, **NEURON)[0], **EXACT)


@pytest.mark.parametrize("shard", [False, True])
def test_a_gradient_that_is_not_finite_leaves_v_alone_on_all_ranks(shard):
    """It is not finite in any step, so that v has never been advanced."""
    results = parts.on_ranks(2, "uneven", shard, poison="a.weight", **NEURON)
    groups = results[0].state["param_groups"]
    names = [n for group in groups for n in zip(group["params"], group["param_names"], strict=True)]
    state = results[0].state["state"]
    (poisoned,) = [key for key, name in names if name == "a.weight"]
    assert not state[poisoned][KEY].any()
    assert all(v[KEY].any() for key, v in state.items() if KEY in v and key != poisoned)


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_rank_keeps_the_v_of_its_own_matrices(ranks):
    (alone,) = parts.trained_alone("fused", **NEURON)
    results = parts.on_ranks(ranks, "fused", True, **NEURON)
    assert sum(result.bytes for result in results) == alone.bytes
    assert max(result.bytes for result in results) < alone.bytes


@pytest.mark.parametrize("kept", ["auto", "float8"])
@pytest.mark.parametrize("resume", [1, 2, 3])
def test_a_run_in_parts_goes_on_with_any_number_of_ranks(resume, kept):
    options = {"momentum_dtype": kept, **NEURON}
    first, rest = range(4), range(4, 8)
    half = parts.on_ranks(2, "fused", True, steps=first, **options)
    (of_one,) = parts.on_ranks(1, "fused", False, half[0], (), **options)
    parts.assert_same(half[0], of_one, **EXACT)
    if resume == 2 or kept == "auto":  # places within a part decide how 8 bits are rounded
        whole = parts.on_ranks(2, "fused", True, **options)
        rounding = EXACT if resume == 2 else ROUNDING
        resumed = parts.on_ranks(resume, "fused", resume > 1, half[0], rest, **options)
        parts.assert_same(whole[0], resumed[0], **rounding)


@pytest.mark.parametrize("shard", [False, True])
def test_a_state_without_v_goes_on_with_v_of_zero(shard):
    """What an optimizer saved that did not know the option, on one process and on ranks."""
    (old,) = parts.trained_alone("fused")
    for group in old.state["param_groups"]:
        assert "normalize" not in group  # left out where it is off
    rest = range(4, 6)
    expected = parts.trained(None, [parts.made("fused", **NEURON)], False, old, rest)
    found = parts.on_ranks(2, "fused", shard, old, rest, **NEURON)
    parts.assert_same(expected, found[0], **ROUNDING)


def test_v_that_is_there_is_cut():
    results = parts.on_threads(
        2, parts.begun_late, [parts.made("fused", **NEURON) for _ in range(2)]
    )
    before, *others, own = results[0]
    for other in others:
        assert all(torch.equal(before[key][k], v) for key in other for k, v in other[key].items())
    assert own + results[1][3] == sum(v.nbytes for s in before.values() for v in s.values())


# ---- sharded parameters ----


def trained(model, options, key=KEY):
    """Weights and v after some steps, whole, and whose v is a sharded tensor; or another state."""
    if hasattr(model, "groups"):
        options = {**options, **model.groups()}
    options = {"coefficients": "muon", **options}
    optimizer = ROOT(list(model.named_parameters()), lr=1e-2, **options)
    for step in range(shards.STEPS):
        set_gradients(model, step)
        optimizer.step()
    weights = {n: gather(p.detach()).clone() for n, p in model.named_parameters()}
    kept = {n: optimizer.state[p].get(key) for n, p in model.named_parameters()}
    kept = {n: v for n, v in kept.items() if v is not None}
    sharded = {n for n, v in kept.items() if isinstance(v, DTensor)}
    return weights, {n: gather(v).clone() for n, v in kept.items()}, sharded


def on_ranks(rank, ranks, name, mesh_shape, dtype, elements, options, key=KEY):
    torch.set_num_threads(1)
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = dist.device_mesh.init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    model = fully_shard(shards.ALL_MODELS[name]().to(dtype), mesh=mesh)
    before, replicas.EXCHANGE_ELEMENTS = replicas.EXCHANGE_ELEMENTS, elements
    try:
        return trained(model, options, key)
    finally:
        replicas.EXCHANGE_ELEMENTS = before


def assert_equal_on_ranks(results, expected, **rounding):
    """All ranks have the same, and what one process has, up to rounding."""
    for entries, alone in zip(results[0][:2], expected[:2], strict=True):
        assert entries.keys() == alone.keys()
    for part in (0, 1):
        for n, value in results[0][part].items():
            assert all(torch.equal(value, other[part][n]) for other in results[1:]), n
            torch.testing.assert_close(value, expected[part][n], **rounding, msg=n)


SHARDED = [
    *(("fused", (2,), torch.float32, {}), ("fused", (2,), torch.bfloat16, {})),
    ("fused", (2,), torch.float64, {}),
    *(("fused", (1, 2), torch.float32, {}), ("fused", (2, 1), torch.float32, {})),
    *(("cnn", (2,), torch.float32, {}), ("uneven", (2,), torch.float32, {})),
    ("gpt", (2,), torch.float32, {"nesterov": False, "outlier_quantile": None}),
    ("fused", (2,), torch.float64, {"momentum_dtype": "bfloat16"}),
    ("aligned", (2,), torch.float32, {"momentum_dtype": "float8"}),
    ("aligned", (2,), torch.float64, {"momentum_dtype": "float8"}),
]


@pytest.mark.parametrize(("name", "mesh_shape", "dtype", "options"), SHARDED)
def test_sharded_rows_hold_the_v_of_one_process(gloo_pool, name, mesh_shape, dtype, options):
    """The whole v on every rank, but of experts each rank's own."""
    options = {**NEURON, **options}
    expected = trained(shards.ALL_MODELS[name]().to(dtype), options)
    results = gloo_pool.run(on_ranks, name, mesh_shape, dtype, 1 << 25, options)
    rounding = {"rtol": 2.0**-7, "atol": 1e-6} if dtype == torch.bfloat16 else ROUNDING
    assert_equal_on_ranks(results, expected, **rounding)
    assert results[0][2] == {n for n in expected[1] if n == "experts"}


@pytest.mark.parametrize("elements", [1, 100])
def test_smaller_exchanges_change_nothing(gloo_pool, elements):
    large = gloo_pool.run(on_ranks, "fused", (2,), torch.float32, 1 << 25, NEURON)
    small = gloo_pool.run(on_ranks, "fused", (2,), torch.float32, elements, NEURON)
    assert_equal_on_ranks(small, large[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_v_travels_bit_for_bit_beside_rows_in_bfloat16(gloo_pool, dtype):
    exact = gloo_pool.run(on_ranks, "fused", (2,), dtype, 1 << 25, NEURON)
    options = {**NEURON, "share_dtype": "bfloat16"}
    rounded = gloo_pool.run(on_ranks, "fused", (2,), dtype, 1 << 25, options)
    assert_equal_on_ranks(rounded, rounded[0], **EXACT)
    for n, v in exact[0][1].items():
        assert torch.equal(rounded[0][1][n], v)
    assert any(not torch.equal(rounded[0][0][n], w) for n, w in exact[0][0].items())


CUTS = {"rows.weight": 1, "columns.weight": 1, "experts": 2, "plain.weight": None}


def cut_otherwise(rank, ranks, kept):
    """By columns, and whole on every rank: matrices are gathered, all ranks update them."""
    torch.set_num_threads(1)
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    model = shards.Fused()
    for n, parameter in list(model.named_parameters()):
        path, _, leaf = n.rpartition(".")
        place = Replicate() if CUTS[n] is None else Shard(CUTS[n])
        tensor = distribute_tensor(parameter.detach(), mesh, [place])
        setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))
    return trained(model, {**NEURON, "momentum_dtype": kept})


@pytest.mark.parametrize("kept", ["auto", "bfloat16"])
def test_what_is_cut_otherwise_has_the_whole_v_on_every_rank(gloo_pool, kept):
    expected = trained(shards.Fused(), {**NEURON, "momentum_dtype": kept})
    results = gloo_pool.run(cut_otherwise, kept)
    assert_equal_on_ranks(results, expected, **ROUNDING)
    assert all(not sharded for _, _, sharded in results)


# ---- checkpoints, from any placement to any other ----


class Mixed(Views):
    """Fused and convolutional weights, experts that two ranks cannot share evenly, and a row."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 11)
        self.row = nn.Linear(6, 1, bias=False)
        del self.filters  # FSDP2 has one order of memory


PLACES = ("one", "parts", "fsdp")
OPTIONS = {"lr": 1e-2, "coefficients": "muon", "rules": {"row.weight": "root"}, **NEURON}
HALF, REST = range(3), range(3, 6)


def run_of(place, **options):
    options = {**OPTIONS, **options}
    case = Case(model=Mixed, make=bound, options=options, ranks=place)
    return begun(case)


def by_name(saved):
    """The state as Lightning's files have it, whoever saved it."""
    saved = copy.deepcopy(saved)
    state = saved["optimizer"]
    if all("param_names" in group for group in state["param_groups"]):
        names = [group["param_names"] for group in state["param_groups"]]
        saved["optimizer"] = keyed_by_names(state, names)
    return saved


def from_first_rank(saved):
    """What the first rank has, on all of them."""
    box = [saved]
    dist.broadcast_object_list(box)
    return box[0]


def saved_on(rank, ranks, place, folder):
    """The whole state half way, saved, and what the run ends with."""
    torch.set_num_threads(1)
    run = run_of(place)
    run.steps(HALF)
    half = from_first_rank(by_name(run.saved())) if ranks > 1 else by_name(run.saved())
    if folder:
        run.save_folder(folder)
    run.steps(REST)
    last = by_name(run.saved())
    return half, from_first_rank(last) if ranks > 1 else last


def resumed_on(rank, ranks, place, halves, folder):
    """What runs end with that go on from each of some states; all of them are the same at first."""
    torch.set_num_threads(1)
    ends = {}
    for saved_by, half in halves.items():
        run = run_of(place)
        if folder and saved_by == place:
            run.load_folder(folder)
        else:
            run.load(copy.deepcopy(half))  # torch writes into what it is given
        found = from_first_rank(by_name(run.saved())) if ranks > 1 else by_name(run.saved())
        differs = unlike(half, found)
        run.steps(REST)
        last = by_name(run.saved())
        ends[saved_by] = differs, from_first_rank(last) if ranks > 1 else last
    return ends


@pytest.fixture(scope="module")
def saved(gloo_pool, tmp_path_factory):
    """For each placement the state half way and at the end, and a folder of FSDP2's."""
    folder = str(tmp_path_factory.mktemp("sharded"))
    found = {"one": saved_on(0, 1, "one", None)}
    for place in PLACES[1:]:
        of_rank = gloo_pool.run(saved_on, place, folder if place == "fsdp" else None)
        found[place] = of_rank[0]
    return found, folder


def values(saved):
    return {
        (name, key): value
        for name, state in saved["optimizer"]["state"].items()
        for key, value in state.items()
    } | {("weight", name): value for name, value in saved["model"].items()}


def test_every_placement_saves_the_same_names_and_shapes(saved):
    found, _ = saved
    for half, _ in found.values():
        for entry, value in values(half).items():
            expected = values(found["one"][0])[entry]
            torch.testing.assert_close(value, expected, **ROUNDING, msg=str(entry))
        assert values(half).keys() == values(found["one"][0]).keys()
        v = {
            name: state[KEY].shape
            for name, state in half["optimizer"]["state"].items()
            if KEY in state
        }
        assert v == {
            "patches.weight": (18,),
            "groups.weight": (16,),
            "attention.qkv.weight": (18,),
            "experts.weight": (3, 6),
            "up.weight": (11,),
            "row.weight": (6,),
        }


@pytest.mark.parametrize(
    ("place", "in_folder"), [*((place, False) for place in PLACES), ("fsdp", True)]
)
def test_every_state_goes_on_everywhere(gloo_pool, saved, place, in_folder):
    """Read to the last bit; exactly where the same placement goes on, also from a folder."""
    found, folder = saved
    halves = {saved_by: half for saved_by, (half, _) in found.items()}
    folder = folder if in_folder else None
    if place == "one":
        ends = resumed_on(0, 1, place, halves, folder)
    else:
        ends = gloo_pool.run(resumed_on, place, halves, folder)[0]
    for saved_by, (differs, end) in ends.items():
        assert differs == [], saved_by
        exact = saved_by == place
        for entry, value in values(end).items():
            expected = values(found[place][1])[entry]
            rounding = EXACT if exact else ROUNDING
            torch.testing.assert_close(value, expected, **rounding, msg=f"{saved_by} {entry}")


def saved_in_shards(rank, ranks):
    """What torch makes of the state on each rank: kinds and local shapes of v."""
    run = run_of("fsdp")
    run.steps(HALF)
    state = get_optimizer_state_dict(run.model, run.optimizer)["state"]
    return {
        name: (isinstance(entry[KEY], DTensor), tuple(entry[KEY].shape))
        for name, entry in state.items()
        if KEY in entry
    }


def test_v_is_a_sharded_tensor_for_experts_alone(gloo_pool):
    for found in gloo_pool.run(saved_in_shards):
        assert {name for name, (sharded, _) in found.items() if sharded} == {"experts.weight"}
        assert found["experts.weight"] == (True, (3, 6))


def without_v(half):
    """As an optimizer saved it that did not know the option."""
    old = copy.deepcopy(half)
    for group in old["optimizer"]["param_groups"]:
        del group["normalize"]
    for entry in old["optimizer"]["state"].values():
        entry.pop(KEY, None)
    return old


def sent_from_the_first_rank(rank, ranks, halves):
    """The whole state after loading as Lightning has torch load it, of each."""
    torch.set_num_threads(1)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    found = []
    for half in halves:
        run = run_of("fsdp")
        given = copy.deepcopy(half) if rank == 0 else {"model": {}, "optimizer": {}}
        set_model_state_dict(run.model, given["model"], options=options)
        set_optimizer_state_dict(run.model, run.optimizer, given["optimizer"], options=options)
        found.append(by_name(run.saved()))
    return found


def test_a_state_may_be_sent_from_the_first_rank(gloo_pool, saved):
    """v too; what has none begins at zero."""
    half, _ = saved[0]["one"]
    old = without_v(half)
    for found, late in gloo_pool.run(sent_from_the_first_rank, [half, old]):
        assert unlike(half, found) == []
        assert unlike(old, late) == []
        state = late["optimizer"]["state"].values()
        assert not any(entry[KEY].any() for entry in state if KEY in entry)


def loaded_into_the_defaults(rank, ranks, half):
    """A state with v, and one without; torch's loading asks for an optimizer with the option."""
    torch.set_num_threads(1)
    run = run_of("fsdp")
    run.load(copy.deepcopy(half))  # torch writes into what it is given
    normalizes = [group["normalize"] for group in run.optimizer.param_groups]
    run.steps(REST)
    last = by_name(run.saved())
    begun_late = run_of("fsdp")
    begun_late.load(without_v(half))
    begun_late.steps(REST)
    return normalizes, last, by_name(begun_late.saved())


def test_options_of_a_state_hold_for_shards(gloo_pool, saved):
    found, _ = saved
    half, end = found["fsdp"]
    old = run_of("one")
    old.load(without_v(half))
    old.steps(REST)
    expected = values(by_name(old.saved()))
    for normalizes, last, begun_late in gloo_pool.run(loaded_into_the_defaults, half):
        assert set(normalizes) == {"neuron"}
        for entry, value in values(end).items():
            torch.testing.assert_close(values(last)[entry], value, **EXACT, msg=str(entry))
        for entry, value in values(begun_late).items():
            torch.testing.assert_close(value, expected[entry], **ROUNDING, msg=str(entry))


def seen_by_hooks(rank, ranks, place):
    """v of each matrix as hooks see it at the last step, and as the state has it."""
    torch.set_num_threads(1)
    run = run_of(place)
    seen = {}
    run.optimizer.register_stack_hook(
        lambda stack: seen.update(zip(stack.names, stack.neurons[KEY], strict=True))
    )
    for step in range(2):
        give_gradients(run.model, step)
        for parameter in run.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
    return {matrix: v.clone() for matrix, v in seen.items()}, by_name(run.saved())


@pytest.mark.parametrize("place", ["parts", "fsdp"])
def test_hooks_of_some_rank_see_v_of_each_matrix(gloo_pool, place):
    ranks = gloo_pool.run(seen_by_hooks, place)
    seen = {matrix: v for of_rank, _ in ranks for matrix, v in of_rank.items()}
    state = ranks[0][1]["optimizer"]["state"]
    for name, entry in state.items():
        if KEY in entry:
            numbers = sorted(number for of, number in seen if of == name)
            found = torch.cat([seen[name, number] for number in numbers])
            assert torch.equal(found, entry[KEY].flatten()), name


def unshared(rank, ranks):
    """Ranks that each do all, as `share_updates=False` has them under DDP."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved_on(rank, 1, "one", None)[1]


def test_ranks_that_share_nothing_have_the_same_v(gloo_pool, saved):
    expected = values(saved[0]["one"][1])
    for found in gloo_pool.run(unshared):
        assert all(torch.equal(value, expected[entry]) for entry, value in values(found).items())
