"""Preconditioning by covariances of the gradient (Shampoo, SOAP), on one process.

Every entry of a state is read by the layout that `stages.precondition` states.
"""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lightning_root import ROOT, lookup
from lightning_root.diagnostics import measure
from lightning_root.diagnostics.measurements import aggregates
from lightning_root.functional import newton_schulz
from lightning_root.functional.inverse_roots import inverse_root, inverse_root_by_products
from lightning_root.optim.stages.precondition import AGE, KEY
from tests.optim import test_normalize as normalized
from tests.optim.test_normalize import (
    DEFAULTS,
    RULES,
    SHAPES,
    SLICES,
    gradients,
    parameters,
    saved_and_read,
    step_,
    step_all_,
)
from tests.reference import precondition as reference
from tests.reference.root import clipped, root_step, twin_options

ORACLE = Path(reference.__file__).parent / "precondition_trajectories.npz"
"""Twenty steps in float64 by plain formulas, which were written apart from this repository.

Of "16x16" and "16x48" there are "<shape>/start", "<shape>/gradients", (20, m, n), and at the end
"<shape>/<sides>/every<k>". Sides are "one", the smaller with exponent 1/2, or "two" with 1/4,
renewed at steps 1, 1 + k, 1 + 2 k; b is 0.95, the damping 1e-6, no threshold, the exact polar
factor, Nesterov's momentum of 0.95, a learning rate of 0.02, decay 0.1, scale 0.2 sqrt(max(m, n)).
"""

METHODS = ("covariance", "soap")
SIDES = ("smaller", "both")
STEPS = 4


COVARIANCE = {"normalize": "none", "precondition": "covariance"}


def optimizer_of(weights, **options):
    return normalized.optimizer_of(weights, **{**COVARIANCE, **options})


def one_matrix(*shape, **options):
    """A matrix, and the optimizer of it."""
    return normalized.one_matrix(*shape, **{**COVARIANCE, **options})


def sides_of(shape, sides):
    return (0, 1) if sides == "both" else (int(shape[0] > shape[1]),)


def read(flat, shape, sides, method):
    """What is kept of one matrix, by name, as it is laid out; C and V with the size of G."""
    flat = flat.to(torch.float64, copy=True)
    size, rest = flat[0], flat[1:]
    found = {}
    for kind in ("factors", "bases") if method == "soap" else ("factors",):
        for side in sides:
            s = shape[side]
            numbers = s * (s + 1) if kind == "factors" else s * s
            values, rest = rest[:numbers].view(s, -1), rest[numbers:]
            if kind == "bases":
                found["Q", side] = values
                continue
            lower, upper = values[:, :-1].tril(), values[:, 1:].triu()
            found["C", side] = (lower + lower.tril(-1).T) * size**2
            found["P", side] = upper + upper.triu(1).T
    if method == "soap":
        values, rest = rest[: math.prod(shape)].view(shape), rest[math.prod(shape) :]
        found["V"] = values * size**2
    assert rest.numel() == 0
    return found


def states_of(weight, optimizer, name, options):
    """Of each matrix of a parameter in the order of its slices: its shape, sides and state."""
    flat, found = optimizer.state[weight][KEY].flatten(), []
    for place in SLICES.get(name, [...]):
        matrix = weight.detach()[place]
        shape = tuple(matrix.reshape(len(matrix), -1).shape)
        sides = sides_of(shape, options["precondition_sides"])
        soap = options["precondition"] == "soap"
        count = 1 + sum(shape[i] * (shape[i] + 1 + soap * shape[i]) for i in sides)
        count += soap * math.prod(shape)
        own, flat = flat[:count], flat[count:]
        found.append((shape, sides, read(own, shape, sides, options["precondition"])))
    assert flat.numel() == 0
    return found


def of_twin(options, sides, state, bases=None):
    """The precondition of the textbook as `root_step` takes it."""

    def call(base, gradient):
        source = gradient if options["precondition_source"] == "gradient" else base
        return reference.preconditioned(
            base,
            source,
            state,
            method=options["precondition"],
            sides=sides,
            every=options["precondition_every"],
            statistics_every=options.get("precondition_statistics_every", 1),
            damping=options.get("precondition_damping", 1e-6),
            bases=bases,
        )

    return call


def textbook(weight, gradient, state, name, options, kept):
    """One step of the twin, matrix by matrix; `kept` is what the optimizer has after it.

    Bases of more directions than there are gradients are the optimizer's.
    """
    weight = weight.clone()
    for number, place in enumerate(SLICES.get(name, [...])):
        shape, sides, own = kept[number]
        momentum, twin = state.setdefault(number, (torch.zeros_like(weight[place]), {}))
        bases = {i: own["Q", i] for i in sides if ("Q", i) in own and shape[i] > shape[1 - i]}
        triples = lookup(shape, options["coefficients"], options["ns_steps"]).triples
        weight[place], momentum = root_step(
            weight[place],
            gradient[place],
            momentum,
            **twin_options(options, triples),
            precondition=of_twin(options, sides, twin, bases),
        )
        state[number] = momentum, twin
    return weight


# ---- against the textbook ----


@pytest.mark.parametrize(("every", "statistics_every"), [(1, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("source", ["gradient", "momentum"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_steps_agree_with_the_textbook(method, sides, source, every, statistics_every):
    """Weights relative to the path travelled, C and V relative to themselves, on every view."""
    options = {
        **DEFAULTS,
        "precondition": method,
        "precondition_sides": sides,
        "precondition_source": source,
        "precondition_every": every,
        "precondition_statistics_every": statistics_every,
    }
    weights = parameters(torch.float64)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    expected, states = dict(start), {name: {} for name in SHAPES}
    optimizer = optimizer_of(weights, **options)
    for step in range(STEPS):
        of_step = gradients(step)
        for name, gradient in of_step.items():
            weights[name].grad = gradient
        optimizer.step()
        for name, gradient in of_step.items():
            kept = states_of(weights[name], optimizer, name, options)
            expected[name] = textbook(expected[name], gradient, states[name], name, options, kept)
    for name, weight in weights.items():
        path = (expected[name] - start[name]).norm()
        assert (weight - expected[name]).norm() < 1e-6 * path, name
        kept = states_of(weight, optimizer, name, options)
        for number, (_, twin) in states[name].items():
            for key in [key for key in twin if key[0] in "CV"]:
                far = (kept[number][2][key] - twin[key]).norm()
                assert far < 1e-7 * twin[key].norm(), (name, key)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("sides", "oracle"), [("smaller", "one"), ("both", "two")])
@pytest.mark.parametrize(("shape", "turned"), [("16x16", False), ("16x48", False), ("16x48", True)])
def test_twenty_steps_end_where_plain_formulas_end(shape, turned, sides, oracle, every):
    """Numbers that were computed elsewhere; of a matrix and of the transposed one."""
    with np.load(ORACLE) as file:
        start, received, end = (
            torch.from_numpy(file[f"{shape}/{entry}"]).transpose(-1, -2 if turned else -1)
            for entry in ("start", "gradients", f"{oracle}/every{every}")
        )
    weight = nn.Parameter(start.clone())
    optimizer = ROOT(
        [{"role": "root", "params": [("w", weight)]}],
        lr=0.02,
        weight_decay=0.1,
        ns_form="polar",
        outlier_quantile=None,
        precondition="covariance",
        precondition_sides=sides,
        precondition_every=every,
    )
    for gradient in received:
        weight.grad = gradient.clone()
        optimizer.step()
    assert (weight.detach() - end).norm() < 1e-6 * (end - start).norm()


def orthogonalized_and_twins(options, dtype, steps):
    """What is orthogonalized at each step by name of the matrix, and what the twin makes of B."""
    options = {**DEFAULTS, "precondition_source": "gradient", **options}
    weights, twins, seen = parameters(dtype), {}, {}
    optimizer = optimizer_of(weights, **options)
    optimizer.register_stack_hook(
        lambda stack: seen.update(
            (names, (before, after))
            for names, before, after in zip(
                stack.names, stack.clipped.double(), stack.orthogonalized.double(), strict=True
            )
        )
    )
    for step in range(steps):
        for name, gradient in gradients(step).items():
            weights[name].grad = gradient.to(dtype)
        optimizer.step()
        for name, weight in weights.items():
            kept = states_of(weight, optimizer, name, options)
            for number, place in enumerate(SLICES.get(name, [...])):
                shape, sides, own = kept[number]
                base, found = seen[name, number]
                if shape[0] > shape[1]:
                    base, found = base.T, found.T
                source = clipped(weight.grad.double()[place].reshape(shape), 0.9)
                state = twins.setdefault((name, number), {})
                bases = {i: own["Q", i] for i in sides if ("Q", i) in own}
                yield found, of_twin(options, sides, state, bases)(base, source), (name, number)


@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roots_are_those_of_the_gradients_however_momentum_and_weights_are_kept(kept, dtype):
    """In float32, where a damping of 1e-2 leaves more of the digits than one of 1e-6."""
    options = {
        "precondition": "covariance",
        "precondition_sides": "both",
        "precondition_every": 2,
        "precondition_damping": 1e-2,
        "momentum_dtype": kept,
    }
    for found, twin, name in orthogonalized_and_twins(options, dtype, 4):
        size = (found * twin).sum() / twin.square().sum()  # which orthogonalization does not see
        assert size > 0
        assert (found - size * twin).norm() < 1e-4 * found.norm(), name


@pytest.mark.parametrize("change", [{"nesterov": False}, {"maximize": True}, {"momentum": 0.5}])
@pytest.mark.parametrize("quantile", [None, "auto", 0.9])
def test_gradients_are_clipped_as_momentum_is(change, quantile):
    options = {
        **DEFAULTS,
        **change,
        "outlier_quantile": quantile,
        "precondition": "covariance",
        "precondition_sides": "both",
        "precondition_source": "gradient",
        "precondition_every": 2,
        "precondition_exponent": 0.3,
    }
    weight, optimizer = one_matrix(6, 9, dtype=torch.float64, **options)
    expected, state = weight.detach().clone(), {}
    start = expected.clone()

    def precondition(base, gradient):
        return reference.preconditioned(
            base, gradient, state, method="covariance", sides=(0, 1), every=2, exponent=0.3
        )

    momentum, triples = torch.zeros(6, 9).double(), lookup((6, 9), "muon", 5).triples
    for step in range(STEPS):
        step_(weight, optimizer, [step])
        expected, momentum = root_step(
            expected,
            weight.grad,
            momentum,
            **twin_options(options, triples),
            precondition=precondition,
        )
    assert (weight.detach() - expected).norm() < 1e-7 * (expected - start).norm()


@pytest.mark.parametrize("shape", [(260, 270), (270, 260)])
@pytest.mark.parametrize("method", METHODS)
def test_large_matrices_are_the_textbooks_too(method, shape):
    """Their Gram matrices are made in blocks; memory that nobody has written holds NaN here."""
    sides = (0, 1) if method == "covariance" else sides_of(shape, "smaller")
    options = {"precondition": method, "precondition_sides": SIDES[len(sides) - 1]}
    weight, optimizer = one_matrix(
        *shape, dtype=torch.float64, outlier_quantile=None, precondition_every=2, **options
    )
    seen, state = [], {}
    optimizer.register_stack_hook(lambda stack: seen.append((stack.clipped, stack.preconditioned)))
    torch.use_deterministic_algorithms(True)
    try:
        for step in range(3):
            step_(weight, optimizer, [step])
            base, found = (t[0] if shape[0] < shape[1] else t[0].T for t in seen[-1])
            twin = reference.preconditioned(
                base, weight.grad, state, method=method, sides=sides, every=2
            )
            size = found.norm() / twin.norm()
            assert (found - size * twin).norm() < 1e-5 * found.norm()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- roots ----


def covariance(size, condition, dtype=torch.float64, seed=0):
    """With eigenvalues from 3 down to 3 / condition."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    values = 3.0 * torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
    return ((basis * values) @ basis.T).to(dtype)


def exact_root(matrix, exponent, damping):
    """By SciPy's Schur method, in float64."""
    wide = matrix.double().numpy()
    largest = np.linalg.eigvalsh(wide)[-1]
    damped = wide / largest + damping * np.eye(len(wide))
    return torch.from_numpy(scipy.linalg.fractional_matrix_power(damped, -exponent).real)


@pytest.mark.parametrize(("dtype", "damping"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_inverse_roots_are_those_of_scipy(size, exponent, condition, dtype, damping):
    """Of a batch; products only estimate the largest eigenvalue, which C and damping are by."""
    matrices = [covariance(size, condition, dtype, seed) for seed in range(3)]
    expected = [exact_root(matrix, exponent, damping) for matrix in matrices]
    batch, order = torch.stack(matrices), round(1 / exponent)
    found = inverse_root(batch, exponent, damping)
    products = inverse_root_by_products(batch, order, damping)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    for matrix, exact, one, other in zip(matrices, expected, found, products, strict=True):
        assert one.dtype == other.dtype == dtype
        assert (one.double() - exact).norm() < tolerance * exact.norm()
        back = torch.linalg.matrix_power(torch.linalg.inv(other.double()), order)
        back -= damping * torch.eye(size)  # C / c, whatever c is
        estimate = matrix.double().trace() / back.trace()
        assert (back * estimate - matrix).norm() < tolerance * matrix.norm()
        assert 0.95 < estimate / 3.0 < 1.0 + tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_of_nothing_is_the_identity(dtype):
    """Beside others of the batch."""
    batch = torch.stack([torch.zeros(3, 3), torch.eye(3)]).to(dtype)
    for found in (inverse_root(batch, 0.5, 1e-3), inverse_root_by_products(batch, 2, 1e-3)):
        torch.testing.assert_close(found[0], torch.eye(3, dtype=dtype))
        torch.testing.assert_close(found[1], torch.eye(3, dtype=dtype) * 1.001**-0.5)


@settings(max_examples=40)
@given(
    size=st.integers(1, 9),
    rank=st.integers(0, 9),
    exponent=st.sampled_from([1.0, 0.5, 0.25, 0.1]),
    damping=st.sampled_from([1e-6, 1e-3, 0.3]),
    scale=st.integers(-60, 60),
    seed=st.integers(0, 2**31),
)
def test_a_root_is_no_worse_conditioned_than_its_damping_allows(
    size, rank, exponent, damping, scale, seed
):
    """Whatever C is: of any rank and any size."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(size, rank, generator=generator).double() * 2.0**scale
    root = inverse_root(gradient @ gradient.T, exponent, damping)
    values = torch.linalg.eigvalsh(root)
    slack = 1 + 1e-9
    assert values[0] > 0
    assert values[-1] / values[0] <= slack * (1 + 1 / damping) ** exponent
    assert values[-1] <= slack * damping**-exponent
    assert values[0] * slack >= (1 + damping) ** -exponent


# ---- laws ----


@pytest.mark.parametrize("options", [{"outlier_quantile": None}, {"momentum_dtype": "bfloat16"}])
def test_a_matrix_without_any_side_is_bit_for_bit_what_it_is_without_the_option(options):
    weights = []
    for chosen in ({"precondition": "none"}, {"precondition_max_dim": 5}):
        weight, optimizer = one_matrix(6, 10, **options, **chosen)
        step_(weight, optimizer, range(4))
        weights.append(weight.detach())
    assert torch.equal(*weights)
    assert optimizer.state[weight][KEY].numel() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "side"), [((6, 10), 0), ((10, 6), 1)])
def test_a_side_that_is_too_large_is_left_alone(shape, side, method):
    """Of both sides the smaller one stays, with its own exponent."""
    results = []
    for options in ({"precondition_max_dim": 9, "precondition_sides": "both"}, {}):
        options = {"precondition_sides": "smaller", **options}
        weight, optimizer = one_matrix(*shape, precondition=method, **options)
        step_(weight, optimizer, range(4))
        results.append((weight.detach(), optimizer.state[weight][KEY]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert ("C", side) in read(results[0][1], shape, (side,), method)


@pytest.mark.parametrize(
    ("shape", "method", "sides"),
    [
        *(((6, 12), "covariance", (0, 1)), ((6, 13), "covariance", (0,))),
        *(((13, 6), "covariance", (1,)), ((6, 6), "auto", (0,)), ((6, 6), "soap", (0,))),
    ],
)
def test_automatic_sides_are_both_of_near_squares_with_covariances(shape, method, sides):
    weight, optimizer = one_matrix(*shape, precondition=method)
    step_(weight, optimizer, range(1))
    found = read(optimizer.state[weight][KEY], shape, sides, method)
    assert {key[1] for key in found if key[0] == "C"} == set(sides)


@pytest.mark.parametrize("exponent", [-20, 20])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_in_the_gradients_changes_no_bit(method, sides, exponent):
    weights = []
    for scale in (1.0, 2.0**exponent):
        options = {"precondition": method, "precondition_sides": sides, "precondition_every": 2}
        weight, optimizer = one_matrix(6, 8, **options)
        step_(weight, optimizer, range(5), scale)
        weights.append(weight.detach())
    assert torch.equal(*weights)


@settings(max_examples=40)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 6),
    exponents=st.lists(st.integers(-10, 10), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_gradients_without_a_preferred_direction_change_nothing(m, n, exponents, seed):
    """Where G G' is a multiple of the identity; of squares on both sides, while B is anything."""
    generator = torch.Generator().manual_seed(seed)
    sides, tall = "both" if m == n else "smaller", m > n
    received = []
    for exponent in exponents:
        full = torch.randn(max(m, n), max(m, n), generator=generator).double()
        some = torch.linalg.qr(full).Q[:, : min(m, n)]
        received.append((some if tall else some.T) * 2.0**exponent)
    weights = []
    for method in ("none", "covariance"):
        options = {"precondition": method, "precondition_sides": sides, "precondition_every": 1}
        weight, optimizer = one_matrix(m, n, dtype=torch.float64, outlier_quantile=None, **options)
        for gradient in received:
            weight.grad = gradient.clone()
            optimizer.step()
        weights.append(weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-9)


def test_the_more_damping_the_nearer_to_no_preconditioning():
    """As far as a damping goes, below 1, with an exponent near 0."""
    updates = []
    for options in ({"precondition": "none"}, {"precondition_damping": 0.999}, {}):
        options = {"precondition_exponent": 1e-6, "weight_decay": 0.0, **options}
        weight, optimizer = one_matrix(6, 8, dtype=torch.float64, **options)
        start = weight.detach().clone()
        step_(weight, optimizer, range(1))
        updates.append(weight.detach() - start)
    none, damped, plain = updates
    assert 0 < (damped - none).norm() < (plain - none).norm() < 1e-3 * none.norm()


@pytest.mark.parametrize(
    ("method", "sides", "shape"),
    [
        *(("covariance", "smaller", (6, 9)), ("covariance", "both", (6, 9))),
        *(("covariance", "both", (7, 7)), ("soap", "smaller", (6, 9)), ("soap", "both", (7, 7))),
    ],
)
def test_the_transposed_matrix_takes_the_transposed_path(method, sides, shape):
    """Of a square the smaller side are the rows, and a basis of more directions than gradients is
    a matter of taste.
    """
    options = {"precondition": method, "precondition_sides": sides, "precondition_every": 2}
    weight, optimizer = one_matrix(*shape, dtype=torch.float64, **options)
    other = nn.Parameter(weight.detach().T.clone())
    of_other = ROOT([{"role": "root", "params": [other]}], lr=0.02, coefficients="muon", **options)
    for step in range(5):
        step_(weight, optimizer, [step])
        other.grad = weight.grad.T.clone()
        of_other.step()
    torch.testing.assert_close(other.detach(), weight.detach().T, rtol=0, atol=1e-8)


# ---- gradients that are hardly any ----


def real(step):
    return gradients(step, {"w": (6, 9)})["w"].float()


def rank_one(step):
    full = real(step)
    return full[:, :1] * full[:1]


def mixed(step):
    """Rows from 1e-30 to 1e30, and every step of another size."""
    return real(step) * torch.logspace(-18, 18, 6)[:, None] * 10.0 ** (9 * (step % 3 - 1))


def spike(step):
    full = real(step)
    full[2, 3] = 1e30
    return full


def sized(scale):
    """With entries of at most that size."""
    return lambda step: real(step) / real(step).abs().max() * scale(step)


DEGENERATE = {
    "zeros": lambda step: torch.zeros(6, 9),
    "zeros at first": lambda step: real(step) * (step >= 3),
    "zeros later": lambda step: real(step) * (step < 2),
    "one row": lambda step: real(step) * torch.eye(6)[:, :1],
    "rank one": rank_one,
    "huge": sized(lambda step: 1e36),
    "tiny": sized(lambda step: 1e-36),
    "denormal": sized(lambda step: 1e-42),
    "mixed": mixed,
    "spike": spike,
    "one spike": lambda step: spike(step) if step == 1 else real(step),
    "huge, then tiny": sized(lambda step: 1e36 if step < 3 else 1e-36),
    "tiny, then huge": sized(lambda step: 1e-36 if step < 3 else 1e36),
    "equal": lambda step: torch.ones(6, 9),
}


@pytest.mark.parametrize(("dtype", "quantile"), [(torch.float32, None), (torch.bfloat16, 0.9)])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_nothing_that_is_not_finite_reaches_weights_or_state(kind, method, sides, dtype, quantile):
    """And no step is longer than a step may be; afterwards real gradients are followed again."""
    options = {"precondition": method, "precondition_sides": sides, "precondition_every": 2}
    options |= {"outlier_quantile": quantile, "weight_decay": 0.0, "dtype": dtype}
    weight, optimizer = one_matrix(6, 9, **options)
    for step in range(7):
        before = weight.detach().clone()
        weight.grad = (DEGENERATE[kind](step) if step < 5 else real(step)).to(dtype)
        optimizer.step()
        moved = (weight.detach() - before).float().norm()
        rounding = weight.detach().float().norm() * torch.finfo(dtype).eps
        assert moved < 1.5 * 0.02 * 0.2 * math.sqrt(9 * 6) + rounding
        assert all(value.isfinite().all() for value in optimizer.state[weight].values())
    assert not optimizer.skipped
    assert moved > 0


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_move_nothing(method):
    weight, optimizer = one_matrix(6, 9, precondition=method, weight_decay=0.0)
    start = weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach(), start)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
@pytest.mark.filterwarnings("ignore:ROOT left")
def test_a_gradient_that_is_not_finite_leaves_weight_state_and_age_alone(kept, method):
    options = {"precondition": method, "momentum_dtype": kept, "precondition_every": 3}
    weight, optimizer = one_matrix(6, 9, **options)
    plain, of_plain = one_matrix(6, 9, **options)
    step_(weight, optimizer, range(2))
    step_(plain, of_plain, range(2))
    for wrong in (math.nan, math.inf):
        before = copy.deepcopy((weight.detach(), optimizer.state_dict()["state"][0]))
        weight.grad = torch.full_like(weight, wrong)
        optimizer.step()
        assert torch.equal(weight.detach(), before[0])
        for key, value in optimizer.state_dict()["state"][0].items():
            assert torch.equal(value, before[1][key]), key
    step_(weight, optimizer, range(2, 5))
    step_(plain, of_plain, range(2, 5))
    assert torch.equal(weight, plain)


# ---- decompositions that fail ----


def failing(monkeypatch, name, how, since):
    """Have a decomposition fail from one call on; the list has an entry for each call."""
    whole, calls = getattr(torch.linalg, name), []

    def call(*args, **options):
        calls.append(name)
        if len(calls) < since:
            return whole(*args, **options)
        if how == "raises":
            raise torch.linalg.LinAlgError("it did not converge")
        return tuple(torch.full_like(part, math.nan) for part in whole(*args, **options))

    monkeypatch.setattr(torch.linalg, name, call)
    return calls


@pytest.mark.parametrize("how", ["raises", "returns NaN"])
@pytest.mark.parametrize(("method", "name"), [("covariance", "eigh"), ("soap", "qr")])
def test_where_the_third_decomposition_fails_the_last_root_stays(monkeypatch, method, name, how):
    """What goes on beside it, C and V, is what it is where roots are not renewed any more."""
    options = {"precondition": method, "precondition_sides": "smaller", "weight_decay": 0.0}
    options |= {"ns_form": "standard", "precondition_every": 2}
    weight, optimizer = one_matrix(6, 9, **options)
    other, of_other = one_matrix(6, 9, **options)
    calls = failing(monkeypatch, name, how, 3)
    step_(weight, optimizer, range(7))
    assert len(calls) == 4
    monkeypatch.undo()
    step_(other, of_other, range(4))
    of_other.param_groups[0]["precondition_every"] = 1000
    step_(other, of_other, range(4, 7))
    assert torch.equal(weight, other)
    assert torch.equal(optimizer.state[weight][KEY], of_other.state[other][KEY])


@pytest.mark.parametrize("how", ["raises", "returns NaN"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_where_the_first_decomposition_fails_the_root_is_the_identity(
    monkeypatch, method, sides, how
):
    options = {"precondition": method, "precondition_sides": sides, "ns_form": "standard"}
    weight, optimizer = one_matrix(6, 9, **options)
    failing(monkeypatch, "eigh", how, 1)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack))
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda c, **_: c.diagonal(dim1=-2, dim2=-1))
    step_(weight, optimizer, range(2))
    kind = "P" if method == "covariance" else "Q"
    for key, value in read(
        optimizer.state[weight][KEY], (6, 9), sides_of((6, 9), sides), method
    ).items():
        if key[0] == kind:
            assert torch.equal(value, torch.eye(len(value)).double())
    for stack in seen:
        expected = stack.clipped
        if method == "soap":  # Adam's direction; the sign of each entry at first
            expected = torch.where(stack.clipped > 0, 1.0, -1.0) * (stack.clipped != 0)
            if len(seen) > 1 and stack is seen[1]:
                continue
        cosine = (stack.preconditioned * expected).sum() / (
            stack.preconditioned.norm() * expected.norm()
        )
        assert cosine > (0.999999 if method == "covariance" else 0.9)


@pytest.mark.parametrize("method", METHODS)
def test_matrices_that_miss_gradients_go_as_they_would_alone(method):
    """One begins when the roots of the others, which are as large, are renewed; one misses a step,
    so that some of those that are updated together are due and some are not.
    """
    options = {"precondition": method, "precondition_every": 2, "dtype": torch.float64}
    steps = {"a": [0, 1, 2, 3, 4], "b": [2, 3, 4], "c": [0, 2, 3, 4], "d": [0, 1, 4]}
    weights = {name: one_matrix(6, 9, **options)[0] for name in steps}
    del options["dtype"]
    optimizer = optimizer_of(weights, rules={"*": "root"}, lr=0.02, coefficients="muon", **options)
    for step in range(5):
        for name, weight in weights.items():
            gradient = gradients(step, {"w": (6, 9)})["w"]
            weight.grad = gradient if step in steps[name] else None
        optimizer.step()
    for name, weight in weights.items():
        alone, of_alone = one_matrix(6, 9, dtype=torch.float64, **options)
        step_(alone, of_alone, steps[name])
        torch.testing.assert_close(weight, alone, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_decomposition_that_fails_for_a_batch_is_tried_for_each_matrix(monkeypatch, method):
    """So that nothing depends on which matrices are updated together."""
    name = "eigh" if method == "covariance" else "qr"
    whole, options = getattr(torch.linalg, name), {"precondition": method}
    options |= {"precondition_every": 2, "ns_form": "standard", "coefficients": "muon"}
    results = []
    for fails in (False, True):

        def call(matrices, *rest, fails=fails, **further):
            if fails and len(matrices) > 1:
                raise torch.linalg.LinAlgError("one of them did not converge")
            return whole(matrices, *rest, **further)

        monkeypatch.setattr(torch.linalg, name, call)
        weights = {place: nn.Parameter(torch.eye(6, 9).double()) for place in "ab"}
        optimizer = optimizer_of(weights, rules={"*": "root"}, **options)
        for step in range(4):
            for place, gradient in gradients(step, {"a": (6, 9), "b": (6, 9)}).items():
                weights[place].grad = gradient
            optimizer.step()
        results.append([weight.detach() for weight in weights.values()])
    torch.testing.assert_close(*results)


# ---- state ----


def made(method, sides="both", every=3, **options):
    options = {"precondition": method, "precondition_sides": sides, **DEFAULTS, **options}
    return {**options, "precondition_every": every}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_state_has_the_numbers_of_each_matrix_and_no_more(method, sides, dtype):
    """In float32, or float64 for such parameters; entries of a stack along its own dimensions."""
    weights, options = parameters(dtype), made(method, sides)
    optimizer = optimizer_of(weights, **options)
    step_all_(weights, optimizer, range(1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, weight in weights.items():
        own = optimizer.state[weight]
        assert set(own) == {"momentum_buffer", KEY, AGE}
        assert own[KEY].dtype == wide
        assert own[KEY].untyped_storage().nbytes() == own[KEY].numel() * wide.itemsize
        stack = SHAPES[name][:1] if "experts" in name else ()
        assert tuple(own[KEY].shape[:-1]) == stack
        assert own[AGE].shape == () and own[AGE] == 1
        states_of(weight, optimizer, name, options)  # which reads all of it


def test_only_matrices_with_the_option_have_state_of_it():
    layers = [nn.Linear(6, 8, bias=False) for _ in range(3)]
    groups = [
        {"params": [("a", layers[0].weight)], "role": "root", "precondition": "covariance"},
        {"params": [("b", layers[1].weight)], "role": "root"},
        {"params": [("c", layers[2].weight)], "role": "adamw", "precondition": "covariance"},
    ]
    optimizer = ROOT(groups, coefficients="muon")
    for layer in layers:
        layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert [KEY in optimizer.state[layer.weight] for layer in layers] == [True, False, False]
    assert [AGE in optimizer.state[layer.weight] for layer in layers] == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        *({"precondition": "soap"}, {"precondition_sides": "smaller"}, {"precondition": "none"}),
        *({"precondition_max_dim": 7}, {"precondition_max_dim": 5}, {"precondition": "auto"}),
        *({"precondition_exponent": 0.7}, {"precondition_every": 2}, {"precondition_beta": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("back", [False, True])
def test_options_may_change_between_steps(change, back):
    """Where other state is needed it begins anew, and its roots are found in the same step."""
    options = {"precondition_sides": "both", "precondition_every": 4}
    weight, optimizer = one_matrix(6, 9, **options)
    step_(weight, optimizer, range(2))
    group = optimizer.param_groups[0]
    before = {name: group[name] for name in change}
    group.update(change)
    step_(weight, optimizer, range(2, 4))
    if back:
        group.update(before)
        step_(weight, optimizer, range(4, 6))
    fresh = ROOT(
        [{"role": "root", "params": [("w", copy.deepcopy(weight))]}],
        lr=0.02,
        coefficients="muon",
        **{**options, "precondition": "covariance", **({} if back else change)},
    )
    step_(fresh.param_groups[0]["params"][0], fresh, range(1))
    for key, value in fresh.state_dict()["state"][0].items():
        assert optimizer.state_dict()["state"][0][key].shape == value.shape
    assert weight.isfinite().all()
    if change.keys() & {"precondition_sides", "precondition_max_dim"} and not back:
        assert optimizer.state[weight][AGE] == 2


@pytest.mark.parametrize("method", METHODS)
def test_another_cut_begins_with_another_state(method):
    """Rules may change in a second `bind`; roots are found in the next step."""
    model = nn.Sequential()
    model.fused = nn.Linear(6, 12, bias=False)
    options = {"precondition": method, "coefficients": "muon"}
    optimizer = ROOT(
        model.parameters(), rules={"fused.weight": {"columns": 2}, "*": "root"}, **options
    )
    for _ in range(3):
        model.fused.weight.grad = torch.randn(12, 6)
        optimizer.step()
    state = optimizer.state[model.fused.weight]
    momentum = state["momentum_buffer"].clone()
    optimizer.bind(model, rules={"fused.weight": {"rows": 3}, "*": "root"})
    assert KEY not in state and AGE not in state
    assert torch.equal(state["momentum_buffer"], momentum)
    optimizer.step()
    assert optimizer.state[model.fused.weight][AGE] == 1


# ---- checkpoints ----


@pytest.mark.parametrize("kept", ["auto", "float8"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_bit_for_bit_from_every_step(method, sides, kept):
    """Through a file into an optimizer of the same options, and of none."""
    shapes = {"w": (6, 9), "qkv": (21, 8), "experts": (3, 5, 8)}
    options = made(method, sides, momentum_dtype=kept)
    rules = {"qkv": RULES["qkv"], "experts": RULES["experts"], "*": "root"}

    def begun(values, **changed):
        weights = {name: nn.Parameter(value.clone()) for name, value in values.items()}
        return weights, optimizer_of(weights, **{**options, **changed}, rules=rules)

    def step_one(weights, optimizer, step):
        for name, gradient in gradients(step, shapes).items():
            weights[name].grad = gradient.float()
        optimizer.step()

    weights, optimizer = begun(
        {name: value.detach() for name, value in parameters(torch.float32, shapes).items()}
    )
    others = []
    for step in range(8):
        step_one(weights, optimizer, step)
        for other in others:
            step_one(*other, step)
            for name, weight in weights.items():
                assert torch.equal(other[0][name], weight), (name, step)
                for key in (KEY, AGE):
                    value = optimizer.state[weight][key]
                    assert torch.equal(other[1].state[other[0][name]][key], value)
        saved, values = saved_and_read(optimizer), {n: w.detach() for n, w in weights.items()}
        if step == 3:
            others = []
            others += [copy.deepcopy((weights, optimizer))]
            others += [pickle.loads(pickle.dumps((weights, optimizer)))]
        else:
            others = others[-2:]
        changed = {"precondition": "none", "precondition_every": 7, "precondition_sides": "auto"}
        others.append(begun(values, **(changed if step % 2 else {})))
        others[-1][1].load_state_dict(saved)


def without_option(saved):
    """As an optimizer saved it that did not know the option."""
    for group in saved["param_groups"]:
        assert not [name for name in group if "precondition" in name]  # left out where it is off
    for entry in saved["state"].values():
        assert not entry.keys() & {KEY, AGE}
    return saved


@pytest.mark.parametrize("method", METHODS)
def test_a_state_without_the_stage_loads_and_roots_are_found_in_the_next_step(method):
    weight, optimizer = one_matrix(6, 9, precondition="none")
    step_(weight, optimizer, range(5))
    old = without_option(saved_and_read(optimizer))
    copied, fresh = one_matrix(6, 9, precondition=method)
    copied.data.copy_(weight.data)
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["precondition"] == method
    assert fresh.state_dict()["state"][0][AGE] == 0
    seen = []
    fresh.register_stack_hook(lambda stack: seen.append(stack.ages))
    step_(copied, fresh, [5])
    assert seen == [(0,)]
    other, begun = one_matrix(6, 9, precondition=method)
    step_(other, begun, [5])
    assert torch.equal(fresh.state[copied][KEY], begun.state[other][KEY])


@pytest.mark.parametrize("method", METHODS)
def test_state_is_dropped_where_the_option_is_off(method):
    weight, optimizer = one_matrix(6, 9, precondition=method)
    step_(weight, optimizer, range(3))
    saved = saved_and_read(optimizer)
    for group in saved["param_groups"]:
        for name in [name for name in group if "precondition" in name]:
            del group[name]
    copied, fresh = one_matrix(6, 9, precondition="none")
    copied.data.copy_(weight.data)
    fresh.load_state_dict(saved)
    assert set(fresh.state[copied]) == {"momentum_buffer"}
    step_(copied, fresh, [3])
    assert set(fresh.state_dict()["state"][0]) == {"momentum_buffer"}


def test_options_of_a_saved_group_win_also_where_they_are_the_defaults():
    """A group that is off leaves them out; one that is on may not: state goes by them."""
    weight, optimizer = one_matrix(6, 9)
    step_(weight, optimizer, range(2))
    expected = {n: v for n, v in optimizer.param_groups[0].items() if "precondition" in n}
    others = {
        "precondition": "soap",
        "precondition_sides": "smaller",
        "precondition_source": "momentum",
        "precondition_every": 3,
        "precondition_statistics_every": 3,
        "precondition_beta": 0.5,
        "precondition_exponent": 0.3,
        "precondition_damping": 1e-3,
        "precondition_max_dim": 7,
    }
    assert expected.keys() == others.keys()
    copied, fresh = one_matrix(6, 9, **others)
    copied.data.copy_(weight.data)
    fresh.load_state_dict(saved_and_read(optimizer))
    found = {n: v for n, v in fresh.param_groups[0].items() if "precondition" in n}
    assert found == expected
    step_(weight, optimizer, range(2, 4))
    step_(copied, fresh, range(2, 4))
    assert torch.equal(weight, copied)


@pytest.mark.parametrize("method", METHODS)
def test_roots_are_found_with_the_first_gradient_that_is_not_zero(method):
    """As of one that begins there: output projections of zeros hold gradients back for a step."""
    weight, optimizer = one_matrix(6, 9, precondition=method, precondition_every=5)
    twin, other = one_matrix(6, 9, precondition=method, precondition_every=5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    twin.data.copy_(weight.data)
    for step in range(3):
        step_(weight, optimizer, [step])
        step_(twin, other, [step])
        assert torch.equal(weight, twin)


@pytest.mark.parametrize("name", ["wide", "qkv", "experts", "conv"])
def test_state_of_a_wrong_shape_is_refused_by_name_and_nothing_is_loaded(name):
    weights = parameters(torch.float32)
    optimizer = optimizer_of(weights, **made("covariance"))
    step_all_(weights, optimizer, range(1))
    saved = saved_and_read(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    number = list(SHAPES).index(name)
    right = saved["state"][number][KEY]
    for value in (right[..., 1:], right[None], right.new_zeros(())):
        saved["state"][number][KEY] = value
        with pytest.raises(ValueError, match=rf"`{KEY}` of `{name}` has shape") as info:
            optimizer.load_state_dict(saved)
        assert str(tuple(right.shape)) in str(info.value)
    for key, state in before["state"].items():
        after = optimizer.state_dict()["state"][key]
        assert all(torch.equal(value, after[k]) for k, value in state.items())


@pytest.mark.parametrize("rate", [0.02, torch.tensor(0.02)])
@pytest.mark.parametrize("method", METHODS)
def test_the_fake_step_of_torchs_checkpoints_counts_as_none(method, rate):
    """Zero gradients at a learning rate of 0, to have some state to load into."""
    models = [nn.Sequential(nn.Linear(6, 9, bias=False), nn.Linear(9, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"precondition": method, "precondition_every": 5, "coefficients": "muon"}
    optimizers = [ROOT(model.parameters(), lr=copy.copy(rate), **options) for model in models]
    state = get_optimizer_state_dict(models[1], optimizers[1])["state"]
    assert state["0.weight"][AGE] == 0
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients(step, {name: parameter.shape})[name].float()
            optimizer.step()
    assert torch.equal(models[0][0].weight, models[1][0].weight)


# ---- hooks and the monitor ----


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_hooks_see_what_is_orthogonalized_and_how_it_came_about(method, sides):
    """Of every view; conditions by NumPy, of what is kept."""
    weights, options = parameters(torch.float64), made(method, sides)
    optimizer = optimizer_of(weights, **options)
    stacks = []
    optimizer.register_stack_hook(stacks.append)
    for step in range(4):
        stacks.clear()
        step_all_(weights, optimizer, [step])
        seen = {}
        for stack in stacks:
            assert stack.orthogonalized is stack.preconditioned
            assert stack.preconditioned.shape == stack.clipped.shape == stack.update.shape
            assert stack.ages == (step % 3,) * len(stack.names)
            update = newton_schulz(stack.preconditioned, stack.coefficients.triples)
            torch.testing.assert_close(update, stack.update)
            seen.update(zip(stack.names, stack.conditions, strict=True))
            found = measure(stack)
            cosine = torch.nn.functional.cosine_similarity(
                stack.clipped.flatten(1), stack.preconditioned.flatten(1)
            )
            torch.testing.assert_close(found["precondition_cosine"], cosine)
            torch.testing.assert_close(found["precondition_condition"], stack.conditions)
            assert found["precondition_age"].tolist() == list(stack.ages)
    for name, weight in weights.items():
        for number, (_, used, own) in enumerate(states_of(weight, optimizer, name, options)):
            expected = 0.0
            for side in used:
                values = np.linalg.eigvalsh(own["C", side].numpy())
                expected = max(expected, np.linalg.cond(np.diag(values / values[-1] + 1e-6)))
            assert seen[name, number].item() == pytest.approx(expected, rel=1e-6)
            assert seen[name, number] <= 1 + 1 / 1e-6 + 1e-3


def test_hooks_and_the_monitor_see_nothing_of_a_stage_that_is_off():
    weight, optimizer = one_matrix(6, 9, precondition="none")
    stacks = []
    optimizer.register_stack_hook(stacks.append)
    step_(weight, optimizer, range(2))
    for stack in stacks:
        assert stack.preconditioned is stack.conditions is None
        assert stack.ages == (0,)
        assert stack.orthogonalized is stack.clipped
        found = measure(stack)
        for name in ("cosine", "condition", "age"):
            assert found[f"precondition_{name}"].isnan().all()
        assert not [tag for tag in aggregates(found) if "precondition" in tag]


def test_the_monitor_is_given_numbers_of_a_stage_that_is_on():
    weight, optimizer = one_matrix(6, 9, precondition_every=4)
    found = []
    optimizer.register_stack_hook(lambda stack: found.append(aggregates(measure(stack))))
    step_(weight, optimizer, range(3))
    tags = {tag: float(value) for tag, value in found[-1].items() if "precondition" in tag}
    assert tags["root/precondition_age/max"] == 2.0
    assert 1.0 <= tags["root/precondition_condition/max"] <= 1 + 1e6 + 1
    assert tags["root/precondition_condition/mean"] == tags["root/precondition_condition/max"]
    assert 0.0 < tags["root/precondition_cosine/min"] < 1.0
    assert len(tags) == 5


def test_a_matrix_without_any_side_has_no_condition():
    weight, optimizer = one_matrix(6, 9, precondition_max_dim=5)
    found = []
    optimizer.register_stack_hook(lambda stack: found.append(measure(stack)))
    step_(weight, optimizer, range(1))
    assert found[0]["precondition_condition"].isnan().all()
    torch.testing.assert_close(found[0]["precondition_cosine"], torch.ones(1))
