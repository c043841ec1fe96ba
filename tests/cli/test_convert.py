"""`convert-checkpoint`: what others have gathered goes on under ROOT, and ROOT's own anywhere."""

import copy
import pickle
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed import checkpoint as distributed_checkpoint
from torch.optim import lr_scheduler

from lightning_root import ROOT, ROOTMixin
from lightning_root.cli.convert.naming import name_states
from lightning_root.cli.convert.states import merge_schedules
from tests.helpers import params_by_role
from tests.integration.models import AdamWNet, PlainNet, ShardedNet, trainer, weights
from tests.integration.test_cli import PROJECT
from tests.models import GPT
from tests.optim.test_against_torch import small_mlp

AS_MUON = {"coefficients": "muon", "outlier_quantile": None}
HERE = "tests.cli.test_convert"


@pytest.fixture
def run(call, monkeypatch):
    monkeypatch.chdir(PROJECT)
    return partial(call, "convert-checkpoint")


@pytest.fixture
def convert(run, tmp_path):
    """The content that a call writes."""

    def call(*arguments):
        target = tmp_path / "converted"
        target.unlink(missing_ok=True)
        status, _, error = run(*arguments, "--output", target)
        assert (status, error) == (0, "")
        return torch.load(target, weights_only=True)

    return call


@pytest.fixture
def saved(tmp_path):
    """Files that `torch.save` writes of anything."""

    def save(**contents):
        for name, content in contents.items():
            torch.save(content, tmp_path / f"{name}.pt")
        return [tmp_path / f"{name}.pt" for name in contents]

    return save


def step(model, optimizers, number):
    """One step with gradients that depend on its number alone."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def hidden_and_rest(model):
    last = len(model) - 1
    named = [(n, p, p.ndim == 2 and not n.startswith(f"{last}.")) for n, p in list_of(model)]
    return [p for _, p, hidden in named if hidden], [p for _, p, hidden in named if not hidden]


def list_of(model):
    return list(model.named_parameters())


class Hybrid(torch.optim.Optimizer):
    """One optimizer that holds torch's Muon and AdamW, with `use_muon` to tell their groups."""

    def __init__(self, matrices, rest, **options):
        self.parts = [torch.optim.Muon(matrices, **options), torch.optim.AdamW(rest, **options)]
        groups = [part.param_groups[0] for part in self.parts]
        super().__init__([{**g, "use_muon": i == 0} for i, g in enumerate(groups)], {})

    def step(self):
        for part in self.parts:
            part.step()
            self.state.update(part.state)


# From torch.optim.Muon and AdamW.


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.usefixtures("torchs_muon_in_float32")
def test_root_goes_on_as_torchs_muon_and_adamw_would(hybrid, nesterov, convert, saved):
    """Muon's half to round-off, once torch iterates in float32; AdamW's half bit for bit."""
    theirs = small_mlp()
    matrices, rest = hidden_and_rest(theirs)
    if hybrid:
        optimizers = [Hybrid(matrices, rest, lr=1e-2, weight_decay=0.1)]
        nesterov = True
    else:
        optimizers = [
            torch.optim.Muon(matrices, lr=1e-2, nesterov=nesterov, momentum=0.9),
            torch.optim.AdamW(rest, lr=3e-3, betas=(0.8, 0.97), weight_decay=0.3),
        ]
    for number in range(3):
        step(theirs, optimizers, number)
    names = ("first", "second")[: len(optimizers)]
    states = {n: o.state_dict() for n, o in zip(names, optimizers, strict=True)}
    state = convert(*saved(model=theirs.state_dict(), **states))

    ours = copy.deepcopy(theirs)
    root = ROOT(ours.parameters(), lr=1.0, **AS_MUON)  # the rates are in the file
    root.load_state_dict(state)
    start = {n: p.detach().clone() for n, p in list_of(ours)}
    for number in range(3, 13):
        step(theirs, optimizers, number)
        step(ours, [root], number)
    with torch.no_grad():
        for (name, parameter), (_, other) in zip(list_of(ours), list_of(theirs), strict=True):
            if any(other is matrix for matrix in matrices):
                path = (other - start[name]).norm()
                assert (parameter - other).norm() < 1e-4 * path, name
            else:
                assert torch.equal(parameter, other), name


@pytest.mark.parametrize("buffer", ["average", "sum"])
def test_a_buffer_becomes_the_sum_of_gradients(buffer, convert, saved):
    """The oracle is torch's SGD, whose buffer is ROOT's sum."""
    model = small_mlp()
    matrices, rest = hidden_and_rest(model)
    kinds = {"average": torch.optim.Muon, "sum": torch.optim.SGD}
    optimizers = [kinds[buffer](matrices, momentum=0.9, lr=0.0), torch.optim.AdamW(rest, lr=0.0)]
    heavy_ball = torch.optim.SGD(model.parameters(), momentum=0.9, lr=0.0)
    for number in range(4):
        step(model, [*optimizers, heavy_ball], number)
    first, second = (optimizer.state_dict() for optimizer in optimizers)
    files = saved(model=model.state_dict(), first=first, second=second)
    state = convert(*files, "--buffer", buffer)["state"]
    for name in ("0.weight", "2.weight"):
        expected = heavy_ball.state[dict(list_of(model))[name]]["momentum_buffer"]
        torch.testing.assert_close(state[name]["momentum_buffer"], expected)


# From AdamW alone.


class Net(PlainNet):
    """ROOT's matrices are those of `body`."""


def adamw_run(beta, gradients=None, **options):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(beta, 0.99), lr=0.0, **options)
    heavy_ball = torch.optim.SGD(model.parameters(), momentum=0.95, lr=0.0)
    for number in range(5):
        step(model, [optimizer, heavy_ball], number if gradients is None else gradients)
    return model, optimizer, heavy_ball


@pytest.mark.parametrize(("beta", "gradients"), [(0.95, None), (0.5, 7)])
def test_momentum_starts_from_the_averages(beta, gradients, convert, saved):
    """It is the momentum if the factors agree, and if not, where all gradients are the same one."""
    model, optimizer, heavy_ball = adamw_run(beta, gradients)
    files = saved(model=model.state_dict(), optimizer=optimizer.state_dict())
    state = convert(*files, "--model", f"{HERE}.Net")["state"]
    for name, parameter in list_of(model):
        if name in ("body.0.weight", "body.1.weight"):
            expected = heavy_ball.state[parameter]["momentum_buffer"]
            torch.testing.assert_close(state[name]["momentum_buffer"], expected)
        else:
            for key in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(state[name][key], optimizer.state[parameter][key])


def test_momentum_starts_at_zero_when_asked(run, saved, tmp_path):
    model, optimizer, _ = adamw_run(0.9)
    files = saved(model=model.state_dict(), optimizer=optimizer.state_dict())
    target = tmp_path / "out.pt"
    _, out, _ = run(*files, "--model", f"{HERE}.Net", "--momentum=zero", "--output", target)
    assert "starts anew: as asked" in out
    state = torch.load(target, weights_only=True)["state"]
    assert not state["body.0.weight"]["momentum_buffer"].any()


def test_weights_in_bfloat16_get_state_in_float32(convert, saved):
    model = Net().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = convert(*saved(model=model.state_dict(), optimizer=optimizer.state_dict()))["state"]
    tensors = [value for entry in state.values() for value in entry.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_a_parameter_that_never_had_a_gradient_starts_anew_and_is_said(run, saved, tmp_path):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for name, parameter in list_of(model):
        parameter.grad = None if name in ("body.1.weight", "norm.bias") else parameter.detach()
    optimizer.step()
    files = saved(model=model.state_dict(), optimizer=optimizer.state_dict())
    _, out, _ = run(*files, "--model", f"{HERE}.Net", "--output", tmp_path / "out.pt")
    assert out.count("starts anew: it had no state") == 2
    root = ROOT(list_of(model))
    root.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    step(model, [root], 0)


def test_several_groups_of_one_rule_become_one_and_it_is_said(run, saved, tmp_path):
    model = Net()
    many = [p for p in model.parameters() if p.ndim == 2]
    few = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": many, "weight_decay": 0.1}, {"params": few, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    step(model, [optimizer], 0)
    files = saved(model=model.state_dict(), optimizer=optimizer.state_dict())
    status, out, _ = run(*files, "--model", f"{HERE}.Net", "--output", tmp_path / "out.pt")
    assert status == 0
    assert "one `weight_decay` for all, 0.1, where the optimizer had 0, 0.1" in " ".join(
        out.split()
    )


def test_what_has_no_place_in_root_is_said(run, saved, tmp_path):
    model = small_mlp()
    optimizer = torch.optim.AdamW(model.named_parameters(), amsgrad=True)
    step(model, [optimizer], 0)
    status, out, _ = run(*saved(adamw=optimizer.state_dict()), "--output", tmp_path / "out.pt")
    assert status == 0
    assert "the largest second moments of `amsgrad` are left out" in " ".join(out.split())


def test_momentum_of_vectors_starts_adamw_anew(run, saved, tmp_path):
    """SGD has momentum of everything; what it was of matrices goes on, without the model too."""
    model = small_mlp()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    step(model, [optimizer], 0)
    given = [*saved(sgd=optimizer.state_dict()), "--buffer", "sum"]
    status, out, _ = run(*given, "--output", tmp_path / "out.pt")
    assert status == 0
    assert "starts anew: its second moments are unknown" in out
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    root = ROOT(model.named_parameters())
    root.load_state_dict(state)
    matrices = params_by_role(root)["root"]
    assert matrices
    for matrix in matrices:
        expected = optimizer.state[matrix]["momentum_buffer"]
        assert torch.equal(root.state[matrix]["momentum_buffer"], expected)


# Schedules.


def scheduled(first, *rates):
    """SGD with a group for each rate, under a warmup of three steps and a cosine."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    parts = [first(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 6)]
    return optimizer, lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def linear(optimizer):
    return lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3)


def lambdas(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda number: (number + 1) / 4)


def advance(runs, steps):
    for optimizer, schedule in runs * steps:
        optimizer.step()
        schedule.step()


def rates(*runs):
    return [group["lr"] for optimizer, _ in runs for group in optimizer.param_groups]


def merged(*runs):
    states = [schedule.state_dict() for _, schedule in runs]
    return merge_schedules(states, [1] * len(runs), {"root": (0, 0), "adamw": (1, 0)})


@pytest.mark.parametrize("steps", [2, 4])
def test_schedules_of_several_parts_go_on_for_both_rules(steps):
    apart = [scheduled(linear, 0.1), scheduled(linear, 0.03)]
    advance(apart, steps)
    (state,), words = merged(*apart)
    assert words == "continues, of all optimizers in one"
    together = scheduled(linear, 0.1, 0.03)
    together[1].load_state_dict(state)
    for group, rate in zip(together[0].param_groups, rates(*apart), strict=True):
        group["lr"] = rate  # as the optimizer's own state has it
    for _ in range(5):
        advance([*apart, together], 1)
        assert rates(together) == pytest.approx(rates(*apart), rel=1e-12)


def test_schedules_that_do_not_fit_together_start_anew():
    of_lambdas, of_lines = scheduled(lambdas, 0.1), scheduled(linear, 0.03)
    shorter = lr_scheduler.SequentialLR(of_lines[0], [linear(of_lines[0])], milestones=[])
    for others in (of_lines, (of_lines[0], shorter)):
        assert merged(of_lambdas, others) == ([], "starts anew: the optimizers had different kinds")
    alone = [of_lines[1].state_dict()]
    found = merge_schedules(alone, [1, 1], {"root": (0, 0), "adamw": (1, 0)})
    assert found == ([], "starts anew: it is not known which optimizer each belonged to")


# Lightning checkpoints.


class TwoOptimizers(PlainNet):
    """As Muon is used with Lightning: two optimizers, stepped by hand, each with a schedule."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        hidden = [layer.weight for layer in self.body]
        rest = [p for p in self.parameters() if not any(p is matrix for matrix in hidden)]
        both = torch.optim.Muon(hidden, lr=1e-2), torch.optim.AdamW(rest, lr=1e-3)
        return list(both), [torch.optim.lr_scheduler.CosineAnnealingLR(each, 10) for each in both]

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in [*self.optimizers(), *self.lr_schedulers()]:
            optimizer.step()


class OneRoot(PlainNet):
    """The same with ROOT."""

    def configure_optimizers(self):
        optimizer = ROOT(self.named_parameters(), lr=1.0, **AS_MUON)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.usefixtures("torchs_muon_in_float32")
def test_a_run_with_two_optimizers_goes_on_with_one(run, tmp_path):
    """The same weights, rates, and steps counted once."""
    whole = TwoOptimizers()
    trainer(max_steps=16).fit(whole)  # steps of two optimizers: 8
    half = trainer(max_steps=6)
    half.fit(TwoOptimizers())
    half.save_checkpoint(tmp_path / "half.ckpt")
    status, out, error = run(tmp_path / "half.ckpt", "--output", tmp_path / "root.ckpt")
    assert (status, error) == (0, "")
    assert "continues, of all optimizers in one" in out

    model, rest = OneRoot(), trainer(max_steps=8)
    rest.fit(model, ckpt_path=tmp_path / "root.ckpt", weights_only=True)
    assert rest.global_step == 8
    rates = [group["lr"] for group in rest.optimizers[0].param_groups]
    assert rates[1] / rates[0] == pytest.approx(0.1)
    assert rest.lr_scheduler_configs[0].scheduler.last_epoch == 8
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(model)[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_adamw_run_goes_on_with_root(run, tmp_path):
    before = trainer(max_steps=3)
    before.fit(AdamWNet())
    before.save_checkpoint(tmp_path / "adamw.ckpt")
    status, out, _ = run(tmp_path / "adamw.ckpt", "--output", tmp_path / "root.ckpt")
    assert status == 0
    assert "exp_avg, as a sum with mu = 0.95" in out

    class Mixed(ROOTMixin, PlainNet):
        root_options = {"lr": 4e-3, "schedule": None}

    after = trainer(max_steps=5)
    with pytest.warns(UserWarning, match=r"`betas` \(0.9, 0.999\) \(given: \(0.9, 0.95\)\)"):
        after.fit(Mixed(), ckpt_path=tmp_path / "root.ckpt", weights_only=True)
    assert after.global_step == 5
    assert after.optimizers[0].param_groups[0]["betas"] == (0.9, 0.999)


# ROOT's own, under every strategy.


class MixedNet(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2, "schedule": None}


class MixedShardedNet(ROOTMixin, ShardedNet):
    root_options = {"lr": 1e-2, "schedule": None}


def fsdp2(ranks, distributed):
    return ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=distributed)


def sharded_half(rank, ranks, path, distributed):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    half = trainer(max_steps=4, strategy=fsdp2(ranks, distributed), devices=ranks)
    half.fit(MixedShardedNet())
    half.save_checkpoint(path)


def sharded_rest(rank, ranks, path):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rest, model = trainer(strategy=fsdp2(ranks, False), devices=ranks), MixedShardedNet()
    rest.fit(model, ckpt_path=path)
    return weights(model)


def alone(steps=8, **options):
    model, fit = MixedNet(), trainer(max_steps=steps)
    fit.fit(model, **options)
    return fit, weights(model)


@pytest.mark.parametrize("distributed", [True, False])
def test_what_shards_have_saved_goes_on_in_one_process(distributed, gloo_pool, run, tmp_path):
    gloo_pool.run(sharded_half, str(tmp_path / "half.ckpt"), distributed)
    assert (tmp_path / "half.ckpt").is_dir() == distributed
    status, _, error = run(tmp_path / "half.ckpt", "--output", tmp_path / "whole.ckpt")
    assert (status, error) == (0, "")
    _, expected = alone()
    _, found = alone(ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_what_one_process_has_saved_goes_on_in_shards(gloo_pool, run, tmp_path):
    half, _ = alone(4)
    half.save_checkpoint(tmp_path / "half.ckpt")
    status, _, error = run(tmp_path / "half.ckpt", "--output", tmp_path / "named.ckpt")
    assert (status, error) == (0, "")
    _, expected = alone()
    for found in gloo_pool.run(sharded_rest, str(tmp_path / "named.ckpt")):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_roots_own_state_is_complete_afterwards(convert, saved):
    """Zeros for what had no gradient yet, without which FSDP2 loads nothing; the rest as it was."""
    model = Net()
    root = ROOT(list_of(model), rules={"body.*.weight": "root", "*": "adamw"})
    for name, parameter in list_of(model):
        parameter.grad = None if name in ("body.1.weight", "norm.bias") else parameter.detach()
    root.step()
    state = torch.optim.Optimizer.state_dict(root)
    assert len(state["state"]) == 7
    found = convert(*saved(model=model.state_dict(), root=state))["state"]
    for name, parameter in list_of(model):
        assert {value.shape for value in found[name].values()} <= {parameter.shape, ()}
        for key, value in found[name].items():
            expected = root.state[parameter].get(key, torch.zeros_like(value))
            assert torch.equal(value, expected)


def two_groups(model):
    named = list_of(model)
    parts = ([e for e in named if e[1].ndim == kind] for kind in (2, 1))
    return torch.optim.AdamW([{"params": part} for part in parts], lr=1e-2)


def named_state_in_shards(rank, ranks, path):
    """Load into torch's AdamW under FSDP2, as Lightning does it."""
    from lightning.fabric.strategies.model_parallel import _rekey_optimizer_state_if_needed
    from torch.distributed.checkpoint import state_dict as distributed
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(small_mlp())
    optimizer = two_groups(model)
    options = distributed.StateDictOptions(broadcast_from_rank0=True, full_state_dict=True)
    state = _rekey_optimizer_state_if_needed(torch.load(path, weights_only=True), model)
    distributed.set_optimizer_state_dict(model, optimizer, state, options=options)
    moments = {n: optimizer.state[p]["exp_avg"].full_tensor() for n, p in list_of(model)}
    return {name: moment.clone() for name, moment in moments.items()}


def test_other_optimizers_get_names_that_plain_torch_reads_everywhere(
    gloo_pool, convert, saved, tmp_path
):
    """Two groups of AdamW, which Lightning's own numbers mix up under FSDP2."""
    model = small_mlp()
    optimizer = two_groups(model)
    step(model, [optimizer], 0)
    state = convert(*saved(optimizer=optimizer.state_dict()), "--rekey")
    again = two_groups(model)
    again.load_state_dict(state)
    results = gloo_pool.run(named_state_in_shards, str(tmp_path / "converted"))
    for name, parameter in list_of(model):
        expected = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(again.state[parameter]["exp_avg"], expected)
        for moments in results:
            assert torch.equal(moments[name], expected)


# Whose state is whose.


@st.composite
def dealt(draw):
    """A model's shapes, and the groups into which its parameters went, in order."""
    shapes = draw(st.lists(st.sampled_from([(2, 3), (3, 2), (4,)]), min_size=1, max_size=7))
    owners = draw(st.lists(st.integers(0, 2), min_size=len(shapes), max_size=len(shapes)))
    return shapes, owners


def all_ways(shapes, groups):
    """Every way to deal parameters out such that the groups get their shapes, in order."""
    found = []
    for owners in product(range(len(groups)), repeat=len(shapes)):
        parts = [[s for s, o in zip(shapes, owners, strict=True) if o == g] for g in range(3)]
        if parts == groups:
            found.append(owners)
    return found


@given(dealt())
def test_names_are_given_if_there_is_one_way_and_only_then(case):
    """The oracle tries all ways."""
    shapes, owners = case
    known = {f"p{i}": shape for i, shape in enumerate(shapes)}
    groups = [[s for s, o in zip(shapes, owners, strict=True) if o == g] for g in range(3)]
    optimizers = [
        {
            "state": {i: {"exp_avg": torch.zeros(shape)} for i, shape in enumerate(group)},
            "param_groups": [{"params": list(range(len(group)))}],
        }
        for group in groups
    ]
    if len(all_ways(shapes, groups)) > 1:
        with pytest.raises(ValueError, match="cannot be told from shapes"):
            name_states(optimizers, known)
    else:
        found = {entry.name: entry.optimizer for entry in name_states(optimizers, known)}
        assert found == {f"p{i}": owner for i, owner in enumerate(owners)}


def optimizer_of(*parameters):
    """One group: (name or None, shape) each, in order."""
    names = [name for name, _ in parameters]
    numbers = list(range(len(parameters)))
    group = {"params": numbers, **({"param_names": names} if None not in names else {})}
    state = {i: {"exp_avg": torch.zeros(shape)} for i, (_, shape) in enumerate(parameters)}
    return {"state": state, "param_groups": [group]}


KNOWN = {"a": (2, 3), "b": (3, 2)}


@pytest.mark.parametrize(
    ("optimizers", "known", "order", "message"),
    [
        (
            [optimizer_of((None, (2, 3)))],
            KNOWN,
            None,
            "have 1 parameters without a name, and the model has 2 for them .*`--names FILE`",
        ),
        (
            [optimizer_of((None, (2, 3)), (None, (4, 4)))],
            KNOWN,
            None,
            r"do not fit the model in its order: from `b` of shape \(3, 2\) on, .*`--names FILE`",
        ),
        (
            [optimizer_of(("a", (2, 3))), optimizer_of(("a", (2, 3)))],
            KNOWN,
            None,
            "`a` has two states in the file",
        ),
        ([optimizer_of(("c", (2, 3)))], KNOWN, None, "the model has no trainable parameter `c`"),
        (
            [optimizer_of(("a", (2, 3)), ("b", (2, 3)))],
            KNOWN,
            None,
            r"the state of `b` has shape \(2, 3\), but the parameter has \(3, 2\)",
        ),
        (
            [optimizer_of((None, (2, 3)), (None, (3, 2)))],
            KNOWN,
            ["a"],
            "`--names` must hold 2 names, .* got 1",
        ),
        (
            [optimizer_of(*[(None, (4,))] * 12) for _ in range(6)],
            {f"p{i}": (4,) for i in range(6 * 12)},
            None,
            "cannot be told from shapes which optimizer had `p",
        ),
    ],
    ids=["fewer", "other order", "twice", "unknown", "other shape", "too few names", "many orders"],
)
def test_names_that_cannot_be_given_are_an_error_that_says_why(optimizers, known, order, message):
    with pytest.raises(ValueError, match=message):
        name_states(optimizers, known, order)


def test_without_a_model_the_parse_shape_what_never_had_a_gradient_is_unknown(run, convert, saved):
    model = small_mlp()
    model.scale = nn.Parameter(torch.ones(()))  # whose shape is empty, and known
    optimizer = torch.optim.AdamW(model.named_parameters())
    step(model, [optimizer], 0)
    names = {name for name, _ in list_of(model)}
    assert set(convert(*saved(whole=optimizer.state_dict()))["state"]) == names
    del optimizer.state[model[0].weight]
    (file,) = saved(part=optimizer.state_dict())
    status, out, error = run(file, "--output", file.with_name("out.pt"))
    assert (status, out) == (2, "")
    assert error.startswith("error: `0.weight` has no state, and the file does not tell its shape;")
    assert "`--model CLASS_PATH`" in error


def test_ties_and_running_statistics_are_no_parameters(convert, saved):
    """What is left of a GPT's weights and a BatchNorm's is what the optimizer numbered."""
    model = nn.ModuleList([GPT(tied=True), nn.BatchNorm1d(4)])
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, [optimizer], 0)
    state = convert(*saved(all={"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in list_of(model))
    for name, parameter in list_of(model):
        if "exp_avg" in state["state"][name]:
            assert torch.equal(
                state["state"][name]["exp_avg"], optimizer.state[parameter]["exp_avg"]
            )


def ambiguous(saved):
    """The same shape in both optimizers."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    first, second = (
        torch.optim.Muon(model[1:].parameters()),
        torch.optim.AdamW(model[0].parameters()),
    )
    step(model, [first, second], 0)
    states = {"first": first.state_dict(), "second": second.state_dict()}
    return model, first, saved(model=model.state_dict(), **states)


def test_names_in_a_file_settle_what_shapes_do_not(run, convert, saved, tmp_path):
    model, muon, files = ambiguous(saved)
    status, _, error = run(*files, "--output", tmp_path / "out.pt")
    assert status == 2
    assert "cannot be told from shapes which optimizer had `0.weight`" in error
    (tmp_path / "names.txt").write_text("1.weight\n0.weight\n")
    state = convert(*files, "--names", tmp_path / "names.txt")["state"]
    expected = muon.state[model[1].weight]["momentum_buffer"] / 0.05
    torch.testing.assert_close(state["1.weight"]["momentum_buffer"], expected)
    assert "exp_avg" in state["0.weight"]


# Files.


class Harmful:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_file_is_run(run, saved, tmp_path):
    trace = tmp_path / "trace"
    (file,) = saved(bad={"optimizer": Harmful(trace)})
    status, _, error = run(file, "--output", tmp_path / "out.pt")
    assert (status, trace.exists()) == (2, False)
    assert "could run code" in error


def test_nothing_in_a_folder_is_run(run, tmp_path):
    folder, trace = tmp_path / "folder", tmp_path / "trace"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Harmful(trace)))
    status, _, error = run(folder, "--output", tmp_path / "out.pt")
    assert (status, trace.exists()) == (2, False)
    assert "could run code" in error


@pytest.fixture
def shards(tmp_path):
    """The folder that torch writes of an AdamW run, and of what it is given besides."""

    def save(**besides):
        model = small_mlp()
        optimizer = torch.optim.AdamW(model.named_parameters())
        step(model, [optimizer], 0)
        content = {"model": model.state_dict(), "optimizer_0": optimizer.state_dict(), **besides}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that this is one process
            distributed_checkpoint.save(content, checkpoint_id=tmp_path / "shards", no_dist=True)
        return tmp_path / "shards"

    return save


def test_nothing_in_a_shard_is_run(run, shards, tmp_path):
    trace = tmp_path / "trace"
    status, _, error = run(shards(bad=Harmful(trace)), "--output", tmp_path / "out.pt")
    assert (status, trace.exists()) == (2, False)
    assert "could run code" in error


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (".metadata", lambda content: b""),
        (".metadata", lambda content: content[: len(content) // 2]),
        (".metadata", lambda content: b"something else"),
        (".metadata", lambda content: pickle.dumps({"not": "a description"})),
        ("__0_0.distcp", lambda content: b""),
        ("__0_0.distcp", lambda content: content[: len(content) // 2]),
        ("__0_0.distcp", lambda content: b"x" * len(content)),
        ("__0_0.distcp", None),
    ],
    ids=["empty", "half", "other", "dict", "empty shard", "half shard", "other shard", "no shard"],
)
def test_a_folder_that_is_not_whole_is_named_in_one_line(file, damage, run, shards, tmp_path):
    folder = shards()
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage is not None:
        (folder / file).write_bytes(damage(content))
    status, out, error = run(folder, "--output", tmp_path / "out.pt")
    assert (status, out) == (2, "")
    assert error.startswith(f"error: '{folder}' is no distributed checkpoint, or is not complete: ")
    assert error.count("\n") == 1
    assert "weights_only" not in error  # no advice to read it all the same
    assert not (tmp_path / "out.pt").exists()


def test_an_output_is_replaced_as_a_whole_and_only_when_asked(run, saved, tmp_path, monkeypatch):
    model, optimizer, _ = adamw_run(0.9)
    (file,) = saved(both={"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    before = file.read_bytes()
    status, _, error = run(file, "--output", file)
    assert status == 2
    assert "--overwrite" in error

    def interrupted(content, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", interrupted)
        assert run(file, "--output", file, "--overwrite")[0] == 2
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert run(file, "--output", file, "--overwrite")[0] == 0
    assert run(file, "--output", file, "--overwrite")[0] == 0  # ROOT's own by now
    assert set(torch.load(file, weights_only=True)["state"]) == {n for n, _ in list_of(model)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": {"w": torch.zeros(2)}}, "there is no optimizer state"),
        ([1, 2], "must hold a dict, got list"),
        ({"state": {}, "param_groups": [{"params": [0]}]}, "neither parameter names nor"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(content, words, run, saved, tmp_path):
    status, out, error = run(*saved(file=content), "--output", tmp_path / "out.pt")
    assert (status, out) == (2, "")
    assert words in error
    assert error.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.ckpt", "--output=out.ckpt"], "there is no file 'missing.ckpt'"),
        (["missing.ckpt", "--output=nowhere/out.ckpt"], "folder of `--output` does not exist"),
        (["missing.ckpt"], "required: --output"),
        (["missing.ckpt", "--output=out.ckpt", "--foo"], "nrecognized arguments: --foo"),
        (["tests", "--output=out.ckpt"], "no distributed checkpoint"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, run):
    status, _, error = run(*arguments)
    assert status == 2
    assert words in error


def test_half_a_file_is_no_checkpoint(run, saved, tmp_path):
    (file,) = saved(optimizer={"state": {}, "param_groups": []})
    file.write_bytes(file.read_bytes()[:100])
    status, _, error = run(file, "--output", tmp_path / "out.pt")
    assert status == 2
    assert "not complete" in error


def test_without_arguments_the_help_is_shown(run):
    status, _, error = run()
    assert status == 2
    assert "examples:" in error
