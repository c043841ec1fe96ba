"""Updates that are normalized neuron by neuron (NorMuon), on one process."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_root import ROOT, lookup
from lightning_root.optim.stages.normalize import BETA, normalize, normalize_twin
from tests.reference.root import normalize_neurons, root_step, twin_options

KEY = "neuron_exp_avg_sq"
STEPS = 20
SHAPES = {
    "square": (12, 12),
    "wide": (8, 20),
    "tall": (20, 8),
    "row": (1, 7),
    "column": (5, 1),
    "conv": (6, 3, 2, 2),
    "conv_tall": (30, 2, 3),
    "channels_last": (6, 4, 3, 3),
    "stored_transposed": (9, 9),
    "stored_transposed_tall": (14, 6),
    "qkv": (21, 8),
    "columns": (6, 13),
    "experts": (3, 5, 8),
    "square_experts": (2, 6, 6),
    "fused_experts": (2, 10, 4),
    "fused_transposed": (5, 15),
}
RULES = {
    "stored_transposed*": {"transposed": True},
    "qkv": {"rows": [12, 5, 4]},
    "columns": {"columns": [9, 4]},
    "square_experts": {"stack": 1, "transposed": True},
    "experts": {"stack": 1},
    "fused_experts": {"stack": 1, "rows": 2},
    "fused_transposed": {"columns": 3, "transposed": True},
    "*": "root",
}
SLICES = {
    "qkv": [slice(0, 12), slice(12, 17), slice(17, 21)],
    "columns": [(slice(None), slice(0, 9)), (slice(None), slice(9, 13))],
    "experts": [0, 1, 2],
    "square_experts": [0, 1],
    "fused_experts": [(i, rows) for i in (0, 1) for rows in (slice(0, 5), slice(5, 10))],
    "fused_transposed": [(slice(None), slice(5 * i, 5 * i + 5)) for i in range(3)],
}
OUTPUTS_ARE_COLUMNS = {
    "stored_transposed",
    "stored_transposed_tall",
    "square_experts",
    "fused_transposed",
}
DEFAULTS = {
    "lr": 0.02,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "coefficients": "muon",
    "outlier_quantile": 0.9,
    "ns_steps": 5,
    "adjust_lr_fn": "match_rms_adamw",
    "maximize": False,
}
CHANGES = [
    {},
    {"nesterov": False},
    {"outlier_quantile": None},
    {"maximize": True, "momentum": 0.5},
    {"weight_decay": 0.0, "adjust_lr_fn": "original"},
    {"adjust_lr_fn": "spectral_unclamped", "lr": torch.tensor(0.02, dtype=torch.float64)},
    {"ns_form": "gram"},
]


def gradients(step, shapes=SHAPES):
    """With outliers, rows of very different sizes, and zeros."""
    generator = torch.Generator().manual_seed(step)
    result = {}
    for name, shape in shapes.items():
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        gradient *= torch.logspace(0, -3, shape[0], dtype=torch.float64).view(
            -1, *[1] * (len(shape) - 1)
        )
        gradient[torch.rand(shape, generator=generator) < 0.03] *= 20
        gradient[torch.rand(shape, generator=generator) < 0.1] = 0
        result[name] = gradient
    return result


def parameters(dtype, shapes=SHAPES):
    generator = torch.Generator().manual_seed(99)
    made = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator).to(dtype)
        if name == "channels_last":
            value = value.to(memory_format=torch.channels_last)
        made[name] = nn.Parameter(value)
    return made


def optimizer_of(weights, **options):
    rules = {glob: rule for glob, rule in RULES.items() if glob == "*" or len(weights) > 1}
    options = {"normalize": "neuron", "rules": rules, **options}
    return ROOT(list(weights.items()), **options)


def one_matrix(*shape, dtype=torch.float32, **options):
    """A matrix, and the optimizer of it."""
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    options = {"lr": 0.02, "coefficients": "muon", "normalize": "neuron", **options}
    return weight, ROOT([{"role": "root", "params": [("w", weight)]}], **options)


def step_(weight, optimizer, steps, scale=1.0):
    for step in steps:
        gradient = gradients(step, {"w": tuple(weight.shape)})["w"]
        weight.grad = (gradient * scale).to(weight.dtype)
        optimizer.step()


def textbook(weight, gradient, state, name, options):
    """One step of the twin, matrix by matrix: the new weight; `state` has (M, v) of each."""
    weight = weight.clone()
    for number, place in enumerate(SLICES.get(name, [...])):
        matrix = weight[place].reshape(len(weight[place]), -1).shape
        if number not in state:
            state[number] = torch.zeros_like(weight[place]), torch.zeros(max(matrix)).double()
        triples = lookup(matrix, options["coefficients"], options["ns_steps"]).triples
        weight[place], *state[number] = root_step(
            weight[place],
            gradient[place],
            *state[number],
            **twin_options(options, triples),
            outputs="columns" if name in OUTPUTS_ARE_COLUMNS else "rows",
        )
    return weight


# ---- against the textbook ----


@pytest.mark.parametrize(
    ("change", "dtype", "tolerance"),
    [
        *((change, torch.float64, 1e-9) for change in CHANGES),
        *((change, torch.float32, 2e-4) for change in ({}, {"ns_form": "gram"})),
    ],
    ids=str,
)
def test_steps_agree_with_the_textbook(change, dtype, tolerance):
    """Weights relative to the path travelled, v relative to itself."""
    options = DEFAULTS | change
    weights = parameters(dtype)
    start = {name: weight.detach().double().clone() for name, weight in weights.items()}
    expected, states = dict(start), {name: {} for name in SHAPES}
    optimizer = optimizer_of(weights, **options)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            weights[name].grad = gradient.to(dtype)
            expected[name] = textbook(expected[name], gradient, states[name], name, options)
        optimizer.step()
    for name, weight in weights.items():
        path = (expected[name] - start[name]).norm()
        assert (weight.double() - expected[name]).norm() < tolerance * path, name
        kept = optimizer.state[weight][KEY].double().flatten()
        exact = torch.cat([v for _, v in states[name].values()])
        assert (kept - exact).norm() < 10 * tolerance * exact.norm(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_keep_v_in_float32_and_round_once(dtype):
    """Every step is the textbook's on the rounded weight: half a unit in the last place."""
    weights = parameters(dtype)
    states = {name: {} for name in SHAPES}
    optimizer = optimizer_of(weights, **DEFAULTS)
    for step in range(4):
        exact = {}
        for name, gradient in gradients(step).items():
            weight = weights[name]
            weight.grad = gradient.to(dtype)
            given = weight.detach().double(), weight.grad.double()
            exact[name] = textbook(*given, states[name], name, DEFAULTS)
        optimizer.step()
        for name, weight in weights.items():
            assert optimizer.state[weight][KEY].dtype == torch.float32
            rounding = {"rtol": 0.51 * torch.finfo(dtype).eps, "atol": 2e-4}
            torch.testing.assert_close(weight.detach().double(), exact[name], **rounding, msg=name)


@pytest.mark.parametrize("shape", [(12, 5), (7, 7)])
def test_with_the_polar_factor_it_is_the_papers_algorithm(shape):
    """O = polar(M), v per row, O / sqrt(v), and a rate of 0.2 lr sqrt(m n) / its norm, by an SVD.

    The paper's M is an average, ours a sum, which has the same polar factor; its epsilon is 0.
    """
    options = {"outlier_quantile": None, "nesterov": False, "weight_decay": 0.0}
    options |= {"ns_form": "polar", "dtype": torch.float64}
    weight, optimizer = one_matrix(*shape, **options)
    expected, m, v = weight.detach().clone(), torch.zeros(shape).double(), torch.zeros(shape[0])
    for step in range(STEPS):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step)).double()
        weight.grad = gradient
        optimizer.step()
        m = 0.95 * m + 0.05 * gradient
        left, _, right = torch.linalg.svd(m, full_matrices=False)
        polar = left @ right
        v = 0.95 * v + 0.05 * polar.square().mean(1)
        scaled = polar / v.sqrt()[:, None]
        rate = 0.2 * 0.02 * math.sqrt(math.prod(shape)) / torch.linalg.norm(scaled)
        expected -= rate * scaled
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(optimizer.state[weight][KEY], v.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("shape", [(9, 4), (6, 6)])
def test_the_stage_is_its_twin_and_the_textbook(by_rows, shape):
    """On a stack of matrices, each with a v of its own, several times in a row."""
    shape = shape if by_rows else shape[::-1]
    moments = [torch.rand(max(shape)).double() for _ in range(3)]
    expected = [moment.clone() for moment in moments]
    for _ in range(3):
        update = torch.randn(3, *shape).double()
        before = update.clone()
        result = normalize(update, [{KEY: v} for v in moments], by_rows, [None] * 3)
        assert torch.equal(update, before)
        for number, matrix in enumerate(update):
            outputs = "rows" if by_rows else "columns"
            exact, v = normalize_neurons(matrix, expected[number], outputs)
            torch.testing.assert_close(result[number], exact)
            torch.testing.assert_close(moments[number], v)
            if by_rows:
                twin, of_twin = normalize_twin(matrix, expected[number])
                torch.testing.assert_close(twin, exact)
                torch.testing.assert_close(of_twin, v)
            expected[number] = v


# ---- laws ----


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (9, 9), (6, 2, 3)])
def test_the_norm_of_the_update_stays_and_neurons_become_alike(shape):
    weight, optimizer = one_matrix(*shape, weight_decay=0.0, lr=1.0)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack.update))
    matrix = weight.detach().reshape(len(weight), -1).shape
    for step in range(STEPS):
        before = weight.detach().clone()
        step_(weight, optimizer, [step])
        moved = (before - weight.detach()).reshape(matrix) / (0.2 * math.sqrt(max(matrix)))
        norm, given = torch.linalg.matrix_norm(moved), torch.linalg.matrix_norm(seen[-1][0])
        torch.testing.assert_close(norm, given, rtol=1e-4, atol=0)
        if step == 0:  # v is of this update alone
            shorter = 1 if matrix[0] >= matrix[1] else 0
            sizes = moved.norm(dim=shorter)
            torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes), rtol=1e-3, atol=0)


@pytest.mark.parametrize("exponent", [-20, -3, 7, 20])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (9, 9)])
def test_a_power_of_two_in_the_gradients_changes_no_bit(exponent, shape):
    results = []
    for scale in (1.0, 2.0**exponent):
        weight, optimizer = one_matrix(*shape)
        step_(weight, optimizer, range(6), scale)
        results.append((weight.detach(), optimizer.state[weight][KEY]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (7, 3, 2)])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "outlier_quantile": None}])
def test_the_transposed_matrix_takes_the_transposed_path(shape, options):
    weight, optimizer = one_matrix(*shape, dtype=torch.float64, **options)
    matrix = weight.detach().reshape(len(weight), -1)
    other = nn.Parameter(matrix.T.clone())
    options = {"lr": 0.02, "coefficients": "muon", "normalize": "neuron", **options}
    of_other = ROOT([{"role": "root", "params": [other]}], **options)
    for step in range(STEPS):
        step_(weight, optimizer, [step])
        other.grad = weight.grad.reshape(matrix.shape).T.clone()
        of_other.step()
    torch.testing.assert_close(other.detach(), weight.detach().reshape(matrix.shape).T)
    torch.testing.assert_close(of_other.state[other][KEY], optimizer.state[weight][KEY])


def test_a_square_that_is_stored_transposed_takes_the_transposed_path():
    """Its outputs are its columns, so that the neurons are the same."""
    weights = {"plain": nn.Parameter(torch.randn(9, 9).double())}
    weights["flipped"] = nn.Parameter(weights["plain"].detach().T.clone())
    rules = {"flipped": {"transposed": True}, "*": "root"}
    optimizer = optimizer_of(weights, rules=rules, coefficients="muon", lr=0.02)
    for step in range(STEPS):
        weights["plain"].grad = gradients(step, {"w": (9, 9)})["w"]
        weights["flipped"].grad = weights["plain"].grad.T.clone()
        optimizer.step()
    torch.testing.assert_close(weights["flipped"].detach().T, weights["plain"].detach())
    v = [optimizer.state[weight][KEY] for weight in weights.values()]
    torch.testing.assert_close(*v)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5)])
def test_a_neuron_without_gradients_stays_where_it_is(shape):
    weight, optimizer = one_matrix(*shape, weight_decay=0.0)
    start = weight.detach().clone()
    longer = 0 if shape[0] >= shape[1] else 1
    for step in range(6):
        weight.grad = gradients(step, {"w": shape})["w"].float()
        weight.grad.select(longer, 2).zero_()
        optimizer.step()
    assert torch.equal(weight.detach().select(longer, 2), start.select(longer, 2))
    assert weight.isfinite().all()
    assert not torch.equal(weight.detach(), start)
    v = optimizer.state[weight][KEY]
    assert v[2] == 0
    assert v.isfinite().all()


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_a_neuron_that_dies_and_one_that_wakes_leave_weights_finite(momentum):
    """v halves every 13 steps: after 1700 its inverse is beyond float32, its update long zero."""
    weight, optimizer = one_matrix(6, 4, momentum=momentum, lr=1e-3, outlier_quantile=None)
    generator = torch.Generator().manual_seed(0)
    for step in range(250):
        weight.grad = torch.randn(6, 4, generator=generator)
        if 5 <= step < 240:
            weight.grad[0] = 0
        if step == 10:  # as it is after another 1600 steps
            optimizer.state[weight][KEY][0] = 1e-37
            optimizer.state[weight]["momentum_buffer"][0] *= 0.95**1600
        if step == 240:
            assert 0 < optimizer.state[weight][KEY][0] < 1e-40
        before = weight.detach().clone()
        optimizer.step()
        assert (weight.detach() - before).norm() < 2e-3
    assert optimizer.state[weight][KEY].min() > 1e-3


@given(
    exponents=st.lists(st.integers(-150, 0), min_size=5, max_size=5),
    moments=st.lists(
        st.sampled_from([0.0, 1e-45, 1e-40, 1e-30, 1e-9, 1.0]), min_size=5, max_size=5
    ),
    by_rows=st.booleans(),
)
def test_neurons_of_any_size_stay_finite_and_keep_the_norm(exponents, moments, by_rows):
    """To what is left of digits where squares are denormal; what is below that stays still."""
    update = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    update *= torch.tensor([2.0**e for e in exponents])[:, None]
    update[:, 0] = 1.0  # an orthogonalized matrix is not all small
    update = update if by_rows else update.mT
    v = torch.tensor(moments)
    result = normalize(update, [{KEY: v}], by_rows, [None])
    assert result.isfinite().all()
    assert v.isfinite().all()
    rtol = 1e-4 if min(exponents) > -50 else 5e-2
    torch.testing.assert_close(result.double().norm(), update.double().norm(), rtol=rtol, atol=0)


def test_zero_gradients_move_nothing_and_leave_v_zero():
    weight, optimizer = one_matrix(6, 4, weight_decay=0.0)
    start = weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach(), start)
    assert not optimizer.state[weight][KEY].any()
    step_(weight, optimizer, range(2))
    assert weight.isfinite().all()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.filterwarnings("ignore:ROOT left")
def test_a_gradient_that_is_not_finite_leaves_weight_and_state_alone(capturable, kept, layout):
    weight, optimizer = one_matrix(4, 3, 2, 2, momentum_dtype=kept, capturable=capturable)
    weight.data = weight.data.to(memory_format=layout)
    step_(weight, optimizer, range(3))
    before = copy.deepcopy((weight.detach(), optimizer.state_dict()["state"][0]))
    weight.grad = torch.full_like(weight, math.nan)
    optimizer.step()
    assert torch.equal(weight.detach(), before[0])
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, before[1][key]), key
    assert dict(optimizer.skipped) == {"w": 1}
    step_(weight, optimizer, range(3, 5))
    assert weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_step_that_a_graph_can_hold_is_the_same_step(dtype):
    """v bit for bit, weights too but where the factors of decay are rounded once more."""
    pairs = []
    for capturable in (False, True):
        weights = parameters(dtype)
        optimizer = optimizer_of(weights, **DEFAULTS, capturable=capturable)
        for step in range(3):
            for name, gradient in gradients(step).items():
                weights[name].grad = gradient.to(dtype)
            optimizer.step()
        pairs.append((weights, [optimizer.state[w][KEY] for w in weights.values()]))
    (first, v), (second, other_v) = pairs
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(v, other_v, strict=True))


@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_v_is_the_average_of_the_updates_however_momentum_is_kept(kept, dtype):
    weight, optimizer = one_matrix(6, 10, dtype=dtype, momentum_dtype=kept)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack.update[0]))
    step_(weight, optimizer, range(5))
    v = torch.zeros(10, dtype=torch.float64)
    for update in seen:
        v = BETA * v + (1 - BETA) * update.double().square().mean(0)
    torch.testing.assert_close(optimizer.state[weight][KEY].double(), v, rtol=1e-5, atol=0)


def test_equal_squares_of_both_orientations_keep_their_own_neurons():
    """They would fit into one stack."""
    weights = {name: nn.Parameter(torch.eye(6)) for name in ("plain", "flipped", "another")}
    rules = {"flipped": {"transposed": True}, "*": "root"}
    optimizer = optimizer_of(weights, rules=rules, coefficients="muon")
    gradient = torch.randn(6, 6) * torch.logspace(0, -2, 6)[:, None]
    for weight in weights.values():
        weight.grad = gradient.clone()
    optimizer.step()
    v = {name: optimizer.state[weight][KEY] for name, weight in weights.items()}
    torch.testing.assert_close(v["plain"], v["another"])
    assert not torch.allclose(v["plain"], v["flipped"], rtol=1e-2)


# ---- state ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_v_has_one_number_for_each_neuron_of_each_matrix(dtype):
    weights = parameters(dtype)
    optimizer = optimizer_of(weights, **DEFAULTS)
    for name, gradient in gradients(0).items():
        weights[name].grad = gradient.to(dtype)
    assert not optimizer.state
    optimizer.step()
    shapes = {name: (max(s[0], math.prod(s[1:])),) for name, s in SHAPES.items()}
    shapes |= {"qkv": (12 + 8 + 8,), "columns": (9 + 6,), "experts": (3, 8)}
    shapes |= {"square_experts": (2, 6), "fused_experts": (2, 10), "fused_transposed": (15,)}
    for name, weight in weights.items():
        assert set(optimizer.state[weight]) == {"momentum_buffer", KEY}
        v = optimizer.state[weight][KEY]
        assert tuple(v.shape) == shapes[name]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert v.dtype == wide
        assert v.untyped_storage().nbytes() == math.prod(shapes[name]) * wide.itemsize


def test_only_matrices_with_the_option_have_v():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3))
    optimizer = ROOT(model.parameters(), coefficients="muon")
    with_it = {**optimizer.param_groups[0], "normalize": "neuron", "role": "root"}
    groups = [
        {**with_it, "params": [("a", model[0].weight)], "name": "a"},
        {"params": [("b", model[1].weight)], "role": "root", "name": "b"},
        {"params": [("c", model[2].weight)], "role": "adamw", "normalize": "neuron", "name": "c"},
    ]
    for group in groups:
        group.pop("param_names", None)
    optimizer = ROOT(groups)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    have = [KEY in optimizer.state[layer.weight] for layer in model]
    assert have == [True, False, False]


def test_the_option_may_change_between_steps():
    """v begins at zero, as in a first step; off again, the step is what it was."""
    weight, optimizer = one_matrix(6, 4, normalize="none")
    plain, of_plain = one_matrix(6, 4, normalize="none")
    step_(weight, optimizer, range(3))
    step_(plain, of_plain, range(3))
    optimizer.param_groups[0]["normalize"] = "neuron"
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack))
    step_(weight, optimizer, [3])
    step_(plain, of_plain, [3])
    assert not torch.equal(weight, plain)
    expected = 0.05 * seen[0].update[0].square().mean(0)
    torch.testing.assert_close(optimizer.state[weight][KEY], expected)
    optimizer.param_groups[0]["normalize"] = "none"
    weight.data.copy_(plain.data)
    step_(weight, optimizer, [4])
    step_(plain, of_plain, [4])
    assert torch.equal(weight, plain)


def test_another_cut_begins_with_another_v():
    """Rules may change in a second `bind`; momentum has the parameter's shape, v has not."""
    model = nn.Sequential()
    model.fused = nn.Linear(6, 12, bias=False)
    model.same = nn.Linear(6, 12, bias=False)

    def step():
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    rules = {"fused.weight": {"columns": 2}, "*": "root"}
    optimizer = ROOT(model.parameters(), rules=rules, normalize="neuron", coefficients="muon")
    step()
    assert optimizer.state[model.fused.weight][KEY].shape == (24,)
    kept = optimizer.state[model.same.weight][KEY].clone()
    momentum = optimizer.state[model.fused.weight]["momentum_buffer"].clone()
    optimizer.bind(model, rules={"fused.weight": {"rows": 3}, "*": "root"})
    assert torch.equal(optimizer.state[model.same.weight][KEY], kept)
    assert torch.equal(optimizer.state[model.fused.weight]["momentum_buffer"], momentum)
    step()
    assert optimizer.state[model.fused.weight][KEY].shape == (18,)


# ---- checkpoints ----


def saved_and_read(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def step_all_(weights, optimizer, steps):
    for step in steps:
        for name, gradient in gradients(step).items():
            weights[name].grad = gradient.to(weights[name].dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", ["auto", "float8"])
def test_a_run_goes_on_bit_for_bit(dtype, kept):
    """Also what is loaded into an optimizer that was made without the option."""
    weights = parameters(dtype)
    options = {**DEFAULTS, "momentum_dtype": kept}
    optimizer = optimizer_of(weights, **options)
    step_all_(weights, optimizer, range(3))
    saved = saved_and_read(optimizer)
    others = []
    for made in ({}, {"normalize": "none"}):
        copied = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
        others.append((copied, optimizer_of(copied, **options, **made)))
        others[-1][1].load_state_dict(saved)
    others += [
        copy.deepcopy((weights, optimizer)),
        pickle.loads(pickle.dumps((weights, optimizer))),
    ]
    step_all_(weights, optimizer, range(3, 6))
    for other_weights, other in others:
        step_all_(other_weights, other, range(3, 6))
        for name, weight in weights.items():
            assert torch.equal(other_weights[name], weight), name
            v = other.state[other_weights[name]][KEY]
            assert torch.equal(v, optimizer.state[weight][KEY]), name
            assert v.dtype == optimizer.state[weight][KEY].dtype


def without_option(saved):
    """As an optimizer saved it that did not know the option."""
    for group in saved["param_groups"]:
        assert "normalize" not in group  # left out where it is off
    for entry in saved["state"].values():
        entry.pop(KEY, None)
    return saved


def test_a_state_without_v_begins_at_zero():
    weight, optimizer = one_matrix(6, 4, normalize="none")
    step_(weight, optimizer, range(3))
    old = without_option(saved_and_read(optimizer))
    copied, fresh = one_matrix(6, 4)
    copied.data.copy_(weight.data)
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["normalize"] == "neuron"
    assert torch.equal(fresh.state_dict()["state"][0][KEY], torch.zeros(6))
    seen = []
    fresh.register_stack_hook(lambda stack: seen.append(stack.update[0]))
    step_(copied, fresh, [3])
    expected = 0.05 * seen[0].square().mean(0)
    torch.testing.assert_close(fresh.state[copied][KEY], expected)
    momentum = 0.95 * optimizer.state[weight]["momentum_buffer"] + copied.grad
    torch.testing.assert_close(fresh.state[copied]["momentum_buffer"], momentum)


def test_v_is_dropped_where_the_option_is_off():
    weight, optimizer = one_matrix(6, 4)
    step_(weight, optimizer, range(3))
    saved = saved_and_read(optimizer)
    for group in saved["param_groups"]:
        del group["normalize"]
    copied, fresh = one_matrix(6, 4, normalize="none")
    copied.data.copy_(weight.data)
    fresh.load_state_dict(saved)
    assert set(fresh.state[copied]) == {"momentum_buffer"}
    step_(copied, fresh, [3])
    assert set(fresh.state[copied]) == {"momentum_buffer"}
    assert set(fresh.state_dict()["state"][0]) == {"momentum_buffer"}


@pytest.mark.parametrize("name", ["wide", "qkv", "experts", "conv"])
def test_v_of_a_wrong_shape_is_refused_by_name_and_nothing_is_loaded(name):
    weights = parameters(torch.float32)
    optimizer = optimizer_of(weights, **DEFAULTS)
    step_all_(weights, optimizer, range(1))
    saved = saved_and_read(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    number = list(SHAPES).index(name)
    right = saved["state"][number][KEY]
    wrong = [right[..., 1:], right[None], right.new_zeros(()), torch.zeros(SHAPES[name])]
    for value in wrong:
        saved["state"][number][KEY] = value
        with pytest.raises(ValueError, match=rf"`{KEY}` of `{name}` has shape") as info:
            optimizer.load_state_dict(saved)
        assert str(tuple(right.shape)) in str(info.value)
    saved["state"][number][KEY] = "v"
    with pytest.raises(ValueError, match=rf"`{KEY}` of `{name}` is no tensor"):
        optimizer.load_state_dict(saved)
    for key, state in before["state"].items():
        after = optimizer.state_dict()["state"][key]
        assert all(torch.equal(value, after[k]) for k, value in state.items())


def test_a_state_with_another_cut_is_refused_by_name():
    weight = nn.Parameter(torch.randn(12, 6))
    of_halves, of_whole = (
        optimizer_of({"w": weight}, rules={"w": rule, "*": "root"}, coefficients="muon")
        for rule in ({"columns": 2}, "root")
    )
    step_(weight, of_halves, range(1))
    with pytest.raises(
        ValueError, match=r"of `w` has shape \(24,\), but its matrices need \(12,\)"
    ):
        of_whole.load_state_dict(of_halves.state_dict())


# ---- hooks ----


def test_hooks_see_v_of_each_matrix():
    """After the step; in the order of the names, and a copy."""
    weights = parameters(torch.float32)
    optimizer = optimizer_of(weights, **DEFAULTS)
    seen = {}

    def hook(stack):
        assert list(stack.neurons) == [KEY]
        v = stack.neurons[KEY]
        assert v.shape == (len(stack.names), stack.update.shape[2])
        seen.update(zip(stack.names, v, strict=True))

    optimizer.register_stack_hook(hook)
    step_all_(weights, optimizer, range(2))
    for name, weight in weights.items():
        parts = [seen[name, number] for number in range(len(SLICES.get(name, [...])))]
        assert torch.equal(torch.cat(parts), optimizer.state[weight][KEY].flatten())
    parts[0].zero_()
    assert optimizer.state[weight][KEY].all()


def test_hooks_see_no_v_without_the_option():
    weight, optimizer = one_matrix(6, 4, normalize="none")
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack.neurons))
    step_(weight, optimizer, range(1))
    assert seen == [{}]
