"""torch's two optimizers by hand are the oracle of the one that holds both."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from examples.baselines import MuonWithAdamW, SOAPWithAdamW
from examples.two_rates import TwoRateROOT
from lightning_root import ROOT, WarmupDecayLR
from tests.helpers import names_by_role
from tests.models import CNN, mlp

OPTIONS = {"lr": 1e-2, "weight_decay": 0.2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp(6, 16, 12, 4)


def backward(model, step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 6, generator=generator)
    loss = model(inputs).square().mean()
    loss.backward()
    return loss


def train(model, *optimizers, steps=range(5), schedules=()):
    for step in steps:
        model.zero_grad()
        backward(model, step)
        for part in (*optimizers, *schedules):
            part.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def by_hand(model, adamw_lr=1e-2):
    hidden = [model[0].weight, model[2].weight]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in hidden)]
    muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    adamw = torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.2)
    return muon, adamw


def assert_bitwise(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("source", ["parameters", "named_parameters", "pairs"])
def test_it_is_torchs_muon_and_adamw_bit_for_bit(model, source):
    theirs = copy.deepcopy(model)
    params = list(model.named_parameters()) if source == "pairs" else getattr(model, source)()
    optimizer = MuonWithAdamW(params, **OPTIONS)
    assert_bitwise(train(model, optimizer), train(theirs, *by_hand(theirs)))


def test_schedules_and_a_second_rate_are_those_of_two_optimizers(model):
    theirs = copy.deepcopy(model)
    optimizer = MuonWithAdamW(model.parameters(), adamw_lr=3e-3, **OPTIONS)
    parts = by_hand(theirs, adamw_lr=3e-3)
    schedules = [WarmupDecayLR(part, warmup_steps=2, max_steps=5) for part in (optimizer, *parts)]
    ours = train(model, optimizer, schedules=schedules[:1])
    assert_bitwise(ours, train(theirs, *parts, schedules=schedules[1:]))


def test_a_restored_optimizer_goes_on_bit_for_bit(model):
    optimizer = MuonWithAdamW(model.parameters(), **OPTIONS)
    train(model, optimizer, steps=range(2))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, steps=range(2, 5))
    other = mlp(6, 16, 12, 4)
    restored = MuonWithAdamW(other.parameters(), lr=5.0)
    other.load_state_dict(state[0])
    restored.load_state_dict(state[1])
    assert_bitwise(train(other, restored, steps=range(2, 5)), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_bit_for_bit(model, copied):
    optimizer = MuonWithAdamW(model.parameters(), **OPTIONS)
    train(model, optimizer, steps=range(2))
    twin, twins_optimizer = copied((model, optimizer))
    expected = train(model, optimizer, steps=range(2, 4))
    assert_bitwise(train(twin, twins_optimizer, steps=range(2, 4)), expected)


def test_the_closure_runs_once_with_gradients(model):
    theirs = copy.deepcopy(model)
    optimizer = MuonWithAdamW(model.parameters(), **OPTIONS)
    losses = [optimizer.step(lambda: backward(model, 0))]
    expected = train(theirs, *by_hand(theirs), steps=range(1))
    assert_bitwise([p.detach() for p in model.parameters()], expected)
    assert losses[0].item() > 0


def test_there_is_no_state_before_the_first_step(model):
    assert not MuonWithAdamW(model.parameters()).state


def test_parameters_of_more_than_two_dimensions_are_adamws():
    network = CNN()
    optimizer = MuonWithAdamW(network.parameters())
    muon, adamw = (group["params"] for group in optimizer.param_groups)
    assert all(parameter.ndim == 2 for parameter in muon)
    assert any(parameter is network.pointwise.weight for parameter in adamw)
    assert len(muon) + len(adamw) == len(list(network.parameters()))


def test_tensors_without_names_are_refused(model):
    with pytest.raises(TypeError, match=r"`params` must be `module.parameters\(\)`, untouched"):
        MuonWithAdamW(list(model.parameters()))


def test_replaced_parameters_are_noticed(model):
    optimizer = MuonWithAdamW(model.parameters())
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    backward(model, 0)
    with pytest.raises(RuntimeError, match="have been replaced since `MuonWithAdamW` was built"):
        optimizer.step()


@pytest.fixture
def soap():
    """Another project's optimizer, which is no dependency of this one."""
    return pytest.importorskip("pytorch_optimizer").SOAP


def test_it_is_soap_and_adamw_bit_for_bit(model, soap):
    theirs = copy.deepcopy(model)
    hidden = [theirs[0].weight, theirs[2].weight]
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in hidden)]
    parts = [
        soap(hidden, lr=1e-2, weight_decay=0.2, precondition_frequency=2),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.2),
    ]
    optimizer = SOAPWithAdamW(
        model.parameters(), adamw_lr=3e-3, precondition_frequency=2, **OPTIONS
    )
    assert_bitwise(train(model, optimizer, steps=range(6)), train(theirs, *parts, steps=range(6)))


def test_a_restored_soap_goes_on_bit_for_bit(model, soap):
    optimizer = SOAPWithAdamW(model.parameters(), precondition_frequency=2, **OPTIONS)
    train(model, optimizer, steps=range(3))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, steps=range(3, 7))
    other = mlp(6, 16, 12, 4)
    restored = SOAPWithAdamW(other.parameters(), lr=5.0)
    other.load_state_dict(state[0])
    restored.load_state_dict(state[1])
    assert_bitwise(train(other, restored, steps=range(3, 7)), expected)


def test_soap_takes_convolutions_too(soap):
    network = CNN()
    optimizer = SOAPWithAdamW(network.parameters())
    matrices, rest = (group["params"] for group in optimizer.param_groups)
    assert any(parameter is network.pointwise.weight for parameter in matrices)
    assert len(matrices) + len(rest) == len(list(network.parameters()))
    for step in range(3):
        network.zero_grad()
        network(torch.randn(2, 1, 8, 8)).square().mean().backward()
        before = network.pointwise.weight.detach().clone()
        optimizer.step()
        assert torch.equal(before, network.pointwise.weight) == (step == 0)


def test_without_soap_it_is_said_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ModuleNotFoundError, match="`pip install pytorch-optimizer`"):
        SOAPWithAdamW(model.parameters())


def test_two_rates_are_those_of_groups_made_by_hand(model):
    theirs = copy.deepcopy(model)
    optimizer = TwoRateROOT([], lr=0.02, adamw_lr=0.003, weight_decay=0.2)
    schedule = WarmupDecayLR(optimizer, warmup_steps=2, max_steps=5)
    optimizer.bind(model)
    split = names_by_role(ROOT(theirs.named_parameters()))
    rates = {"root": 0.02, "adamw": 0.003}
    named = {name: parameter for name, parameter in theirs.named_parameters()}
    by_role = [
        {
            "params": [(name, named[name]) for name in names],
            "role": role,
            "lr": rates[role],
        }
        for role, names in split.items()
    ]
    expected = ROOT(by_role, weight_decay=0.2)
    theirs_schedule = WarmupDecayLR(expected, warmup_steps=2, max_steps=5)
    ours = train(model, optimizer, schedules=[schedule])
    assert_bitwise(ours, train(theirs, expected, schedules=[theirs_schedule]))


def test_a_negative_second_rate_is_refused(model):
    with pytest.raises(ValueError, match="`adamw_lr` must be >= 0, got -1"):
        TwoRateROOT(model.parameters(), adamw_lr=-1.0)
