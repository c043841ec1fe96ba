"""Momentum kept in fewer bytes, rounded so that nothing is lost on average."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from lightning_root import ROOT
from lightning_root.optim import local
from lightning_root.optim.low_precision import write_rounded_
from tests.helpers import params_by_role
from tests.optim.rounding import fits_the_distance


def rounded(value):
    kept = torch.empty_like(value, dtype=torch.bfloat16)
    write_rounded_(kept, value)
    return kept


def neighbours(value):
    """The two bfloat16 numbers around each value, by the bits above the sixteenth."""
    low = (value.view(torch.int32) & -65536).view(torch.float32)
    high = ((value.view(torch.int32) & -65536) + 65536).view(torch.float32)
    return low, high


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_value_goes_to_one_of_its_two_neighbours(scale):
    value = torch.randn(100_000) * scale
    low, high = neighbours(value)
    result = rounded(value).float()
    assert ((result == low) | (result == high)).all()


def test_it_goes_up_as_often_as_it_is_near_to_the_upper_one():
    value = torch.rand(400_000) + 1.0
    low, high = neighbours(value)
    distance = ((value - low) / (high - low)).double()
    up = rounded(value).float() == high
    assert fits_the_distance(distance, up) > 1e-3


def test_values_that_bfloat16_holds_stay_as_they_are():
    value = torch.randn(10_000).bfloat16().float()
    value[:3] = torch.tensor([0.0, -0.0, torch.finfo(torch.bfloat16).max])
    assert torch.equal(rounded(value).float(), value)


def test_what_is_beyond_bfloat16_stays_finite():
    assert rounded(torch.full((8,), torch.finfo(torch.float32).max)).isfinite().all()


def test_increments_far_below_the_spacing_add_up():
    """1 + 2000 of 1e-4 (about 0.03 of a spacing each): nearest rounding stays at 1."""
    generator = torch.Generator().manual_seed(0)
    kept, nearest = torch.ones(4096).bfloat16(), torch.ones(4096).bfloat16()
    for _ in range(2000):
        increment = 2e-4 * torch.rand(4096, generator=generator)
        write_rounded_(kept, kept.float() + increment)
        nearest.copy_(nearest.float() + increment)
    assert nearest.float().mean() == 1.0
    assert kept.float().mean().item() == pytest.approx(1.2, abs=0.005)


def steps_of(momentum_dtype, steps=60, dtype=torch.float32, saved_at=None, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 24), nn.Linear(24, 4))
    model = model.to(dtype)
    optimizer = ROOT(model.parameters(), lr=1e-2, momentum_dtype=momentum_dtype)
    inputs = torch.randn(64, 24, dtype=dtype)
    targets = torch.randn(64, 4, dtype=dtype)
    losses = []
    for step in range(steps):
        if step == saved_at:
            state = optimizer.state_dict()
            optimizer = ROOT(model.parameters(), lr=1e-2, momentum_dtype=momentum_dtype)
            optimizer.load_state_dict(state)
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, optimizer, losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "bytes_each"), [("bfloat16", 2.0), ("float8", 129 / 128)])
def test_fewer_bytes_and_nearly_the_same_losses(dtype, name, bytes_each):
    """Of a full batch, without noise: what rounding adds to small directions then counts most."""
    _, exact, before = steps_of("auto", dtype=dtype)
    _, optimizer, after = steps_of(name, dtype=dtype)
    twins = params_by_role(exact)
    for role, params in params_by_role(optimizer).items():
        for parameter, twin in zip(params, twins[role], strict=True):
            key = "momentum_buffer" if role == "root" else "exp_avg"
            kept, whole = optimizer.state[parameter][key], exact.state[twin][key]
            assert whole.dtype == torch.promote_types(dtype, torch.float32)
            if role == "root":
                assert kept.nbytes == parameter.numel() * bytes_each
            else:
                assert kept.dtype == whole.dtype
    ends = [(before[-1], after[-1])]
    for seed in range(1, 8):  # one fit is within 5 %, up or down with the processor's rounding
        ends.append(tuple(steps_of(n, dtype=dtype, seed=seed)[2][-1] for n in ("auto", name)))
    exact_loss, loss = torch.tensor(ends, dtype=torch.float64).mean(0).tolist()
    assert loss == pytest.approx(exact_loss, rel=0.03)
    assert before[-1] < 0.5 * before[0]


@pytest.mark.parametrize("name", ["bfloat16", "float8"])
def test_a_resumed_run_ends_in_the_same_bits(name):
    straight, _, _ = steps_of(name)
    resumed, _, _ = steps_of(name, saved_at=30)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_8_bits_are_saved_as_bfloat16_which_reads_them_exactly():
    model, optimizer, _ = steps_of("float8", steps=5)
    saved = optimizer.state_dict()["state"][0]
    assert saved["momentum_buffer"].dtype == torch.bfloat16
    assert saved["momentum_buffer"].shape == model[0].weight.shape
    assert saved["step"] == 5
    assert optimizer.state[model[0].weight]["momentum_buffer"].dtype == torch.uint8


@pytest.mark.parametrize("name", ["auto", "bfloat16", "float8"])
def test_a_matrix_without_a_gradient_so_far_is_saved_with_the_same_entries(name):
    """Distributed checkpoints cannot load a state that has others."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3))
    optimizer = ROOT(model.parameters(), momentum_dtype=name)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    used, unused = (optimizer.state_dict()["state"][number] for number in (0, 2))
    assert list(unused) == list(used)
    for key, value in unused.items():
        assert not value.any()
        assert (value.dtype, value.ndim) == (used[key].dtype, used[key].ndim)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["copied", "pickled"],
)
def test_a_copy_goes_on_in_the_same_bits(copied):
    model, optimizer, _ = steps_of("float8", steps=5)
    other, twin = copied((model, optimizer))
    for parameters, one in ((model.parameters(), optimizer), (other.parameters(), twin)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        one.step()
    for one, copy_of_it in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, copy_of_it)


def test_momentum_of_full_precision_can_be_rounded_when_a_run_goes_on():
    """The saved options win when a state is loaded; what asks for others edits the state."""
    model, optimizer, _ = steps_of("auto", steps=3)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["momentum_dtype"] = "float8"
    other = ROOT(model.parameters(), lr=1e-2)
    other.load_state_dict(state)
    whole = optimizer.state[model[0].weight]["momentum_buffer"]
    kept = other.state_dict()["state"][0]["momentum_buffer"].float()
    assert (kept - whole).abs().max() <= whole.abs().max() / 8
    assert other.state_dict()["state"][0]["step"] == 0
    for group in (back := other.state_dict())["param_groups"]:
        group["momentum_dtype"] = "auto"
    optimizer.load_state_dict(back)
    assert set(optimizer.state[model[0].weight]) == {"momentum_buffer"}
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], kept)


@pytest.mark.parametrize(
    ("before", "after"), [("auto", "bfloat16"), ("bfloat16", "auto"), ("float8", "auto")]
)
def test_the_saved_options_come_with_the_state(before, after):
    """As all options do: a run goes on as it was begun."""
    model, optimizer, _ = steps_of(before, steps=3)
    other = ROOT(model.parameters(), momentum_dtype=after)
    other.load_state_dict(optimizer.state_dict())
    weight = model[0].weight
    kept, loaded = optimizer.state[weight], other.state[weight]
    assert torch.equal(kept["momentum_buffer"], loaded["momentum_buffer"])
    assert kept["momentum_buffer"].dtype == loaded["momentum_buffer"].dtype


@pytest.mark.parametrize("name", ["momentum_dtype", "share_dtype"])
def test_other_dtypes_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*got 'float16'"):
        ROOT([], **{name: "float16"})


def test_few_matrices_have_a_whole_look_ahead_at_a_time(monkeypatch):
    """Of momentum in 8 bits, which would otherwise need float32 for all of it in every step."""
    alive, most, original = [], [], local.whole_look_ahead

    def watched(item, group):
        most.append(sum(reference() is not None for reference in alive))
        result = original(item, group)
        alive.append(weakref.ref(result))
        return result

    monkeypatch.setattr(local, "whole_look_ahead", watched)
    monkeypatch.setattr(local, "AHEAD_ELEMENTS", 1)
    matrices = [(str(number), nn.Parameter(torch.randn(8, 16))) for number in range(5)]
    optimizer = ROOT([{"role": "root", "params": matrices}], momentum_dtype="float8")
    for _, matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer.step()
    assert len(most) == 5
    assert max(most) <= 1  # the last one, until its successor takes its name
