"""Warm-up and decay, against torch's own schedulers and the formula."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_root import ROOT, WarmupDecayLR


def optimizer(lr=1.0):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, steps):
    result = []
    for _ in range(steps):
        result.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        scheduler.optimizer.step()
        scheduler.step()
    return result


def test_the_decay_is_torchs_cosine():
    ours = rates(WarmupDecayLR(optimizer(), warmup_steps=0, max_steps=50, min_lr_ratio=0.1), 51)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), T_max=50, eta_min=0.1)
    assert ours == pytest.approx(rates(cosine, 51), abs=1e-12)


def test_the_warm_up_is_linear_and_reaches_the_full_rate():
    ours = rates(WarmupDecayLR(optimizer(2.0), warmup_steps=10, max_steps=100), 11)
    assert ours == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)] + [2.0])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)],
)
def test_shapes(schedule, middle, end):
    ours = rates(WarmupDecayLR(optimizer(), 0, 20, schedule), 40)
    assert ours[10] == pytest.approx(middle)
    assert ours[20:] == pytest.approx([end] * 20)


@pytest.mark.parametrize(
    ("given", "length", "warmup"),
    [
        (None, 100_000, 2000),
        (None, 500, 50),
        (None, 5, 0),
        (30, 100, 30),
        (300, 100, 10),
        (0, 9, 0),
    ],
)
def test_the_papers_warm_up_is_scaled_down_for_short_runs(given, length, warmup):
    assert WarmupDecayLR(optimizer(), given, length).warmup_steps == warmup


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_length_set_later_gives_the_same_rates(kind):
    lr = kind(1.0)  # schedulers write into a tensor
    late = WarmupDecayLR(ROOT([("fc.w", nn.Parameter(torch.zeros(2, 2)))], lr=lr))
    late.resolve(40)
    late.resolve(7)  # the first one holds
    known = WarmupDecayLR(optimizer(), max_steps=40)
    late.optimizer.param_groups[0]["params"][0].grad = torch.zeros(2, 2)
    assert rates(late, 45) == pytest.approx(rates(known, 45))


def test_an_unknown_length_is_an_error_that_names_the_ways_out():
    scheduler = WarmupDecayLR(optimizer())
    scheduler.optimizer.step()
    with pytest.raises(RuntimeError, match=r"Pass `max_steps`, or use ROOTCLI"):
        scheduler.step()


def test_resuming_continues_and_a_longer_run_decays_over_its_new_length():
    first = WarmupDecayLR(optimizer(), 2, 20)
    expected = rates(first, 20)
    for length in (20, 40):
        opt = optimizer()
        half = WarmupDecayLR(opt, 2, 20)
        rates(half, 10)
        saved = half.state_dict()
        resumed = WarmupDecayLR(opt, 2, length)
        resumed.load_state_dict(saved)
        resumed.optimizer.step()
        resumed.step()
        if length == 20:
            assert opt.param_groups[0]["lr"] == pytest.approx(expected[11])
        else:
            progress = (11 - 2) / (40 - 2)
            cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
            assert opt.param_groups[0]["lr"] == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "`warmup_steps` must be >= 0 or None, got -1"),
        ({"max_steps": 0}, "`max_steps` must be a number >= 1, got 0"),
        ({"schedule": "step"}, "`schedule` must be one of .*, got 'step'"),
        ({"min_lr_ratio": 1.5}, r"`min_lr_ratio` must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        WarmupDecayLR(optimizer(), **options)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_final_rate_may_be_nothing_or_all(ratio):
    ours = rates(WarmupDecayLR(optimizer(), 0, 8, "linear", ratio), 10)
    assert ours[8:] == pytest.approx([ratio] * 2)


@pytest.mark.parametrize(
    ("warmup", "length", "expected"),
    [(0, 1, [1.0, 0.1, 0.1]), (1, 1, [1.0, 1.0, 0.1]), (2, 2, [0.5, 1.0, 1.0, 0.1])],
)
def test_the_shortest_runs(warmup, length, expected):
    """A warm-up of the whole run stays one, with its decay in the step after it."""
    ours = WarmupDecayLR(optimizer(), warmup, length, "linear")
    assert rates(ours, len(expected)) == pytest.approx(expected)


@pytest.mark.parametrize("length", [0, -5, math.inf, math.nan])
def test_a_length_that_is_none_is_refused_later_too(length):
    with pytest.raises(ValueError, match="`max_steps` must be a number >= 1, got"):
        WarmupDecayLR(optimizer()).resolve(length)


def test_a_length_set_later_is_what_the_scheduler_says_at_once():
    scheduler = WarmupDecayLR(optimizer(2.0), warmup_steps=4)
    scheduler.resolve(100)
    assert scheduler.get_last_lr() == [0.5] == [scheduler.optimizer.param_groups[0]["lr"]]


def test_groups_added_later_keep_their_rate():
    scheduler = WarmupDecayLR(optimizer(), 0, 10)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3})
    first = rates(scheduler, 11)
    assert first[10] == pytest.approx(0.1)
    assert scheduler.optimizer.param_groups[1]["lr"] == 0.3


def one_cycle(optimizer, **options):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12, **options)


def cyclic(optimizer, **options):
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, **options)


@pytest.mark.parametrize("momentum_dtype", ["auto", "bfloat16", "float8"])
@pytest.mark.parametrize("schedule", [one_cycle, cyclic])
def test_a_cycle_of_the_momentum_moves_that_of_the_matrices_as_sgds(schedule, momentum_dtype):
    """Both rules: M of a matrix and N that is orthogonalized, and AdamW's first average."""
    weight, bias = nn.Parameter(torch.zeros(8, 16)), nn.Parameter(torch.zeros(8))
    ours = ROOT(
        [("up.weight", weight), ("up.bias", bias)],
        rules={"up.weight": "root"},
        outlier_quantile=None,
        momentum=0.5,
        momentum_dtype=momentum_dtype,
    )
    seen = []
    ours.register_stack_hook(lambda stack: seen.append(stack.momentum[0]))
    sgd = optimizer()
    sgd.param_groups[0]["momentum"] = sgd.defaults["momentum"] = 0.5
    schedules = schedule(ours), schedule(sgd)
    momentum, average = torch.zeros(8, 16), torch.zeros(8)
    tolerance = {"auto": 1e-6, "bfloat16": 2e-2, "float8": 0.2}[momentum_dtype]
    moved = set()
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        weight.grad = torch.randn(8, 16, generator=generator)
        bias.grad = torch.randn(8, generator=generator)
        mu = sgd.param_groups[0]["momentum"]
        moved.add(mu)
        momentum = mu * momentum + weight.grad
        average = mu * average + (1 - mu) * bias.grad
        ours.step()
        sgd.step()
        expected = weight.grad + mu * momentum
        assert (seen[-1] - expected).norm() <= tolerance * expected.norm()
        torch.testing.assert_close(ours.state[bias]["exp_avg"], average)
        for one in schedules:
            one.step()
    assert len(moved) > 3


def test_a_schedule_that_leaves_the_momentum_alone_leaves_the_matrices_too():
    weights = [nn.Parameter(torch.zeros(8, 16)) for _ in range(2)]
    optimizers = [
        ROOT([("up.weight", weight)], rules={"up.weight": "root"}, lr=0.1) for weight in weights
    ]
    schedule = one_cycle(optimizers[0], cycle_momentum=False)
    for seed in range(4):
        for weight, one in zip(weights, optimizers, strict=True):
            weight.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
            one.step()
        schedule.step()
    first, second = (
        o.state[w]["momentum_buffer"] for o, w in zip(optimizers, weights, strict=True)
    )
    assert torch.equal(first, second)


def test_a_resumed_cycle_of_the_momentum_goes_on():
    weight = nn.Parameter(torch.zeros(8, 16))
    first = ROOT([("up.weight", weight)], rules={"up.weight": "root"}, momentum=0.5)
    schedule = one_cycle(first)

    def steps(optimizer, schedule, seeds):
        for seed in seeds:
            weight.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
            schedule.step()

    steps(first, schedule, range(5))
    saved, position = copy.deepcopy(first.state_dict()), schedule.state_dict()
    steps(first, schedule, range(5, 10))
    second = ROOT([("up.weight", weight)], rules={"up.weight": "root"}, momentum=0.5)
    again = one_cycle(second)
    second.load_state_dict(saved)
    again.load_state_dict(position)
    steps(second, again, range(5, 10))
    assert torch.equal(*(one.state[weight]["momentum_buffer"] for one in (first, second)))
