"""All statistics in one go, against the functions one by one."""

import itertools
from dataclasses import replace

import pytest
import torch

from lightning_root import ROOT
from lightning_root.coefficients import lookup
from lightning_root.diagnostics import Measurements, measure
from lightning_root.diagnostics.statistics import STATISTICS
from lightning_root.functional import (
    clip_outliers,
    cosine_similarity,
    kurtosis,
    matrices,
    newton_schulz,
    orthogonalization_error,
    outlier_energy,
    outlier_fraction,
    relative_threshold,
    root_mean_square,
    singular_value_range,
    update_to_weight_ratio,
)
from lightning_root.optim import Stack

# Rows of what needs no optional stage, without which the others are NaN
ALWAYS = [row for row, one in enumerate(STATISTICS.values()) if one.stage is None]


def stack_of(*shape, scales=None, dtype=torch.float32, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(shape, generator=generator, dtype=torch.float64).pow(3).to(dtype)
    clipped = clip_outliers(momentum, 0.9)
    coefficients = lookup(shape[-2:], "muon", 5)
    update = newton_schulz(clipped, coefficients.triples)
    names = tuple((f"layers.{index}.weight", 0) for index in range(shape[0]))
    tensors = [tensor.to(device) for tensor in (momentum, clipped, update)]
    scales = scales or (2.0,) * shape[0]
    return Stack(names, *tensors, scales, coefficients, {"lr": 0.03})


def weights_of(stack):
    """Some weights; the first is zero."""
    weights = torch.randn(stack.update.shape, generator=torch.Generator().manual_seed(7))
    weights[0] = 0.0
    return weights.to(stack.update.dtype)


def one_by_one(stack):
    smallest, largest = singular_value_range(stack.update)
    n, b, u = stack.momentum, stack.clipped, stack.update
    return {
        "orth_error": orthogonalization_error(u),
        "sigma_min": smallest,
        "sigma_max": largest,
        "orthogonal_rms": root_mean_square(u),
        "update_rms": root_mean_square(
            u.double() * torch.tensor(stack.scales, dtype=torch.float64)[:, None, None]
        ),
        "update_to_weight": update_to_weight_ratio(
            u.double() * (0.03 * torch.tensor(stack.scales, dtype=torch.float64)[:, None, None]),
            weights_of(stack).double(),
        ),
        "cosine": cosine_similarity(n, u),
        "outlier_fraction": outlier_fraction(n, b),
        "outlier_energy": outlier_energy(n, b),
        "threshold": b.double().abs().amax(dim=(-2, -1)),
        "relative_threshold": relative_threshold(n, b),
        "kurtosis": kurtosis(n),
        "momentum_rms": root_mean_square(n),
    }


@pytest.mark.parametrize("shape", [(5, 6, 10), (3, 70, 70), (2, 90, 200), (1, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_the_separate_functions(shape, dtype):
    stack = stack_of(*shape, scales=tuple(1.0 + i for i in range(shape[0])), dtype=dtype)
    norms = torch.linalg.matrix_norm(weights_of(stack).double())
    found, expected = measure(stack, norms), one_by_one(stack)
    assert {name for name, one in STATISTICS.items() if one.stage is None} == set(expected)
    assert found.values.shape == (len(STATISTICS), shape[0])
    assert found.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, values in expected.items():
        # The range comes from the Gram matrix here, from products with the update there.
        tolerance = {"rtol": 0, "atol": 0.005} if name.startswith("sigma") else {}
        tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found[name], values.to(found.values.dtype), **tolerance)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_for_a_learning_rate_stays_where_it_is(shape):
    """On a meta device there is no number to fetch, so fetching it would raise."""
    stack = stack_of(3, 40, 80)
    found = measure(stack, torch.ones(3))["update_to_weight"]
    stack.group["lr"] = torch.full(shape, 0.03, dtype=torch.float64)
    torch.testing.assert_close(measure(stack, torch.ones(3))["update_to_weight"], found)
    stack = stack_of(3, 40, 80, device="meta")
    stack.group["lr"] = torch.empty(shape, device="meta")
    assert measure(stack, torch.ones(3, device="meta")).values.is_meta


def test_without_weights_there_is_no_ratio_to_them():
    assert measure(stack_of(3, 4, 5))["update_to_weight"].isnan().all()


def test_slices_do_not_show(monkeypatch):
    whole = measure(stack_of(7, 40, 70), torch.ones(7))
    for elements in (1, 2 * 40 * 70, 3 * 40 * 70):
        monkeypatch.setattr(matrices, "SLICE_ELEMENTS", elements)
        found = measure(stack_of(7, 40, 70), torch.ones(7))
        torch.testing.assert_close(found.values[ALWAYS], whole.values[ALWAYS])


def transposed(stack):
    """The same matrices, laid out as the transposed ones of a tall parameter are."""
    names = ("momentum", "clipped", "update")
    return replace(stack, **{name: getattr(stack, name).mT.contiguous().mT for name in names})


def test_it_does_not_matter_how_matrices_lie(monkeypatch):
    monkeypatch.setattr(matrices, "SLICE_ELEMENTS", 1000)
    stack = stack_of(3, 40, 70)
    found = measure(transposed(stack), torch.ones(3)).values
    expected = measure(stack, torch.ones(3)).values
    torch.testing.assert_close(found[ALWAYS], expected[ALWAYS], rtol=1e-5, atol=1e-5)


def peak_of_memory(function):
    """Most bytes that torch's allocator has handed out at a time within a call."""
    function()  # what is made once and kept is no part of it
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert sum(sizes) == 0
    return max(itertools.accumulate(sizes))


def test_the_peak_of_memory_is_found():
    """Four MiB, then another one beside it, then two beside the first."""

    def function():
        first = torch.zeros(1 << 20)
        torch.ones(1 << 18)
        return float((first[: 1 << 19] + 1).sum())

    assert peak_of_memory(function) == pytest.approx(6 << 20, abs=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "slice_elements"),
    [
        ((1, 256, 4096), 1 << 20),  # two slices are more than the two Gram matrices
        ((1, 256, 4096), 1 << 14),
        ((1, 512, 512), 1 << 14),
        ((1, 512, 1500), 1 << 17),  # the last slices are smaller
        ((70, 33, 65), 1 << 20),  # 64 at most at a time
        ((12, 96, 192), 1 << 17),
    ],
)
def test_memory_is_that_of_two_square_matrices_or_two_slices(
    shape, slice_elements, dtype, monkeypatch
):
    monkeypatch.setattr(matrices, "SLICE_ELEMENTS", slice_elements)
    stack = stack_of(*shape, dtype=dtype)
    allowed = 2 * max(shape[1] ** 2, slice_elements) * dtype.itemsize
    assert peak_of_memory(lambda: measure(stack)) <= allowed + (16 << 10)
    stack = transposed(stack)
    assert peak_of_memory(lambda: measure(stack)) <= allowed + (16 << 10)


def test_a_broken_matrix_spoils_no_other():
    stack = stack_of(4, 70, 90)
    sound = measure(stack, torch.ones(4)).values
    for tensor in (stack.momentum, stack.clipped, stack.update):
        tensor[2] = torch.nan
    found = measure(stack, torch.ones(4)).values
    assert found[:, 2].isnan().all()
    others = [0, 1, 3]
    torch.testing.assert_close(found[ALWAYS][:, others], sound[ALWAYS][:, others])


def test_no_value_is_fetched_from_the_device():
    """A meta tensor has no values: reading one, as a synchronisation would, raises."""
    stack = stack_of(3, 40, 80, scales=(1.0, 2.0, 3.0), device="meta")
    assert measure(stack).values.shape == (len(STATISTICS), 3)
    with pytest.raises(NotImplementedError, match="meta"):
        measure(stack).cpu().as_dict()


def test_neither_the_stack_nor_the_random_state_changes():
    stack = stack_of(3, 40, 80)
    before = [tensor.clone() for tensor in (stack.momentum, stack.clipped, stack.update)]
    state = torch.get_rng_state()
    measure(stack)
    for tensor, copy in zip((stack.momentum, stack.clipped, stack.update), before, strict=True):
        assert torch.equal(tensor, copy)
    assert torch.equal(torch.get_rng_state(), state)


class Net(torch.nn.Module):
    """A fused qkv of unequal blocks, and two matrices of one size that lie differently."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(32, 64, bias=False)
        self.up = torch.nn.Linear(64, 48, bias=False)
        self.down = torch.nn.Linear(48, 64, bias=False)
        self.head = torch.nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.down(self.up(self.qkv(x))))


def trained(hook=None):
    model = Net()
    rules = {"qkv.weight": {"rows": [32, 16, 16]}, "up.weight": "root", "down.weight": "root"}
    optimizer = ROOT(model.parameters(), lr=0.1, rules=rules)
    if hook is not None:
        optimizer.register_stack_hook(hook)
    for seed in range(3):
        x = torch.randn(40, 32, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return model


def test_measuring_changes_no_weight():
    measured, plain = trained(measure), trained()
    for one, other in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_matrix_of_a_step_has_its_name_and_its_numbers():
    stacks = []
    trained(lambda stack: stacks.append((stack, measure(stack))))
    last = stacks[-len(stacks) // 3 :]
    step = Measurements.join([found for _, found in last])
    assert len(step.labels) == len(set(step.labels))
    assert set(step.labels) == {
        "qkv.weight/0",
        "qkv.weight/1",
        "qkv.weight/2",
        "up.weight",
        "down.weight",
    }
    table = step.cpu().as_dict()
    for stack, _ in last:
        for index, (name, number) in enumerate(stack.names):
            label = f"{name}/{number}" if name == "qkv.weight" else name
            for statistic in ("update_rms", "kurtosis", "orth_error"):
                alone = float(one_by_one(stack)[statistic][index])
                assert table[label][statistic] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (96, 48), (48, 96)])
def test_updates_of_full_rank_have_the_root_mean_square_of_adamw(shape):
    """0.2, which is what the scale `match_rms_adamw` is for; the unscaled one 1 / sqrt(columns)."""
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = ROOT([{"params": [("up.weight", weight)], "role": "root"}])
    found = []
    optimizer.register_stack_hook(lambda stack: found.append(measure(stack)))
    weight.grad = torch.randn(shape)
    optimizer.step()
    assert float(found[0]["update_rms"]) == pytest.approx(0.2, rel=0.05)
    assert float(found[0]["orthogonal_rms"]) == pytest.approx(max(shape) ** -0.5, rel=0.05)


def test_joining_nothing_and_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="`parts` must hold at least one"):
        Measurements.join([])
    with pytest.raises(KeyError, match=r"`statistic` must be one of .*'kurtosis'.* got 'skew'"):
        measure(stack_of(1, 3, 4))["skew"]
