"""The contract of `torch.optim`: options, closures, state, groups, copies, hostile gradients."""

import copy
import io
import os
import pickle
import warnings
from collections import defaultdict
from collections.abc import MutableMapping, MutableSequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from lightning_root import ROOT, WarmupDecayLR
from lightning_root.optim.options import ADDED_OPTIONS
from tests.helpers import params_by_role
from tests.models import GPT


def bitwise(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def snapshot(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def backward(model, seed=0):
    tokens = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(seed))
    logits = model(tokens)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss.backward()
    return loss


def train(model, optimizer, steps, start=0):
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


class ListConfig(MutableSequence):
    """A sequence that is no list, as OmegaConf's."""

    def __init__(self, values):
        self.values = list(values)

    def __getitem__(self, index):
        return self.values[index]

    def __len__(self):
        return len(self.values)

    def __setitem__(self, index, value): ...
    def __delitem__(self, index): ...
    def insert(self, index, value): ...


class DictConfig(MutableMapping):
    """A mapping that is no dict, as OmegaConf's."""

    def __init__(self, **values):
        self.values_ = values

    def __getitem__(self, key):
        return self.values_[key]

    def __len__(self):
        return len(self.values_)

    def __iter__(self):
        return iter(self.values_)

    def __setitem__(self, key, value): ...
    def __delitem__(self, key): ...


TRIPLE = (3.4445, -4.775, 2.0315)


def in_config(value):
    """A value as Hydra hands it over."""
    if isinstance(value, dict):
        return DictConfig(**{key: in_config(entry) for key, entry in value.items()})
    return ListConfig(map(in_config, value)) if isinstance(value, list | tuple) else value


def in_omegaconf(value):
    return pytest.importorskip("omegaconf").OmegaConf.create({"x": value}).x


OPTIONS_OF_CONFIGS = [
    ("betas", [0.9, 0.99], (0.9, 0.99)),
    ("betas", (0, 0.5), (0.0, 0.5)),
    ("coefficients", list(TRIPLE), TRIPLE),
    ("coefficients", [TRIPLE] * 5, (TRIPLE,) * 5),
    ("coefficients", {"4x8": [list(TRIPLE)] * 5, "otherwise": "muon"}, None),
    ("coefficients", {"4x8": list(TRIPLE)}, {"4x8": TRIPLE}),
]


@pytest.mark.parametrize("convert", [in_config, in_omegaconf])
@pytest.mark.parametrize(("name", "given", "kept"), OPTIONS_OF_CONFIGS)
def test_lists_and_mappings_of_a_configuration_are_kept_as_pythons(convert, name, given, kept):
    kept = {"4x8": (TRIPLE,) * 5, "otherwise": "muon"} if kept is None else kept
    layer = nn.Linear(4, 8)
    for optimizer in (
        ROOT(layer.parameters(), **{name: convert(given)}),
        ROOT([{"params": [("w", nn.Parameter(torch.ones(4, 8)))], name: convert(given)}]),
    ):
        assert repr(optimizer.param_groups[0][name]) == repr(kept)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        assert repr(optimizer.param_groups[0][name]) == repr(kept)


NUMBERS = [np.float64, np.float32, np.array, torch.tensor, lambda x: np.array([x]), Fraction]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "momentum", "outlier_quantile"])
def test_numbers_of_other_libraries_do_what_pythons_do_and_are_kept_as_such(kind, name):
    """torch's AdamW takes them too. A tensor `lr` stays one, for schedulers write into it."""
    tensor_lr = name == "lr" and kind is torch.tensor
    results = []
    for value in (kind(0.25) if tensor_lr else 0.25, kind(0.25)):
        torch.manual_seed(0)
        model = GPT(tied=False)
        optimizer = ROOT(model.parameters(), **{name: value})
        train(model, optimizer, 2)
        results.append(snapshot(model))
    assert bitwise(*results)
    kept = optimizer.defaults[name]
    assert type(kept) is (torch.Tensor if tensor_lr else float)
    assert float(kept) == 0.25


@pytest.mark.parametrize(
    "betas", [np.array([0.9, 0.99]), torch.tensor([0.5, 0.25]), [np.float32(0.5), np.float64(0.5)]]
)
def test_betas_of_other_libraries_are_kept_as_floats(betas):
    kept = ROOT(nn.Linear(4, 8).parameters(), betas=betas).defaults["betas"]
    assert [type(beta) for beta in kept] == [float, float]
    assert kept == tuple(float(beta) for beta in betas)


def test_whole_numbers_and_flags_of_numpy_are_kept_as_pythons():
    given = {"ns_steps": np.int64(4), "nesterov": np.bool_(False), "ns_form": np.str_("gram")}
    optimizer = ROOT(nn.Linear(4, 8).parameters(), **given)
    kept = {name: optimizer.param_groups[0][name] for name in given}
    assert kept == {"ns_steps": 4, "nesterov": False, "ns_form": "gram"}
    assert [type(value) for value in kept.values()] == [int, bool, str]


SWITCHES = (None, False, True)


@pytest.mark.parametrize("foreach", SWITCHES)
@pytest.mark.parametrize("fused", SWITCHES)
@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3), torch.tensor([1e-3]), torch.tensor(-1.0)])
def test_what_torchs_adamw_refuses_is_refused_at_construction_and_all_else_steps(
    foreach, fused, lr
):
    models = [nn.Linear(4, 4), nn.Linear(4, 4)]
    options = {"foreach": foreach, "fused": fused, "lr": copy.deepcopy(lr)}
    try:
        torch.optim.AdamW(models[0].parameters(), **options)
    except (RuntimeError, ValueError):
        with pytest.raises(ValueError, match=r"^`(foreach|lr)`? ?"):
            ROOT(models[1].parameters(), **options)
        with pytest.raises(ValueError, match=r"^`(foreach|lr)`? ?"):
            ROOT(models[1].parameters()).add_param_group(
                {"params": [("added", nn.Parameter(torch.zeros(4)))], **options}
            )
        return
    optimizer = ROOT(models[1].parameters(), **options)
    models[1](torch.ones(2, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"`lr` must be finite and >= 0, got -1.0"),
        ({"lr": float("nan")}, ValueError, "`lr` must be finite and >= 0, got nan"),
        ({"lr": float("inf")}, ValueError, "`lr` must be finite and >= 0, got inf"),
        ({"lr": "fast"}, TypeError, "`lr` must be a number, got 'fast'"),
        ({"lr": torch.ones(2)}, ValueError, "`lr` must have one element"),
        ({"weight_decay": -0.1}, ValueError, "`weight_decay` must be finite and >= 0, got -0.1"),
        ({"momentum": 1.0}, ValueError, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, ValueError, r"`momentum` must be in \[0, 1\)"),
        ({"nesterov": 1}, TypeError, "`nesterov` must be True or False, got 1"),
        ({"outlier_quantile": 0.0}, ValueError, r"`outlier_quantile` must be in \(0, 1\], got 0.0"),
        ({"outlier_quantile": 1.5}, ValueError, "None switches the threshold off"),
        ({"outlier_quantile": "p"}, TypeError, "must be a number, \"auto\" or None, got 'p'"),
        ({"ns_steps": 0}, ValueError, "`ns_steps` must be a whole number >= 1, got 0"),
        ({"ns_steps": 2.5}, ValueError, "`ns_steps` must be a whole number >= 1, got 2.5"),
        ({"adjust_lr_fn": "rms"}, ValueError, "`adjust_lr_fn` must be one of .*, got 'rms'"),
        ({"betas": (0.9,)}, TypeError, "`betas` must be two numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, r"`betas` must be in \[0, 1\), got 1.0"),
        ({"eps": -1e-8}, ValueError, "`eps` must be finite and >= 0"),
        (
            {"coefficients": "muno"},
            ValueError,
            r"`coefficients` must be one of \['adaptive'.*'muno'",
        ),
        ({"coefficients": 3.0}, TypeError, "`coefficients` must be one of"),
        ({"coefficients": (1.0, 2.0)}, ValueError, "`coefficients` must be triples"),
        ({"coefficients": (9.0, 9.0, 9.0)}, ValueError, "`coefficients` .* are unbounded"),
        ({"ns_dtype": "int8"}, ValueError, "`ns_dtype` must be one of .*, got 'int8'"),
        ({"maximize": None}, TypeError, "`maximize` must be True or False"),
        ({"foreach": True, "fused": True}, ValueError, "`foreach` and `fused` exclude each other"),
        ({"betas": "ab"}, TypeError, "`betas` must be two numbers, got 'ab'"),
        ({"betas": {0.9: 1, 0.95: 2}}, TypeError, "`betas` must be two numbers"),
        ({"betas": {0.9, 0.95}}, TypeError, "`betas` must be two numbers"),
        ({"betas": ("0.9", "0.95")}, TypeError, "`betas` must be a number, got '0.9'"),
        ({"lr": np.ones(2)}, TypeError, "`lr` must be a number"),
        ({"lr": np.bool_(True)}, TypeError, "`lr` must be a number, got True"),
        ({"coefficients": [["a", "b", "c"]]}, TypeError, "`coefficients` must be triples"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        ROOT(nn.Linear(4, 4).parameters(), **options)
    with pytest.raises(error, match=message):
        ROOT([{"role": "root", "params": [torch.zeros(2, 2)], **options}])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (torch.zeros(2, 2), TypeError, "`params` must be an iterable of tensors"),
        ([3], TypeError, r"`params` must hold tensors, \(name, tensor\) pairs or dicts"),
        ([(1, torch.zeros(2, 2))], TypeError, "`params` must hold tensors"),
        ([{"role": "root", "params": [torch.zeros(3)]}], ValueError, 'not a matrix.*"adamw" group'),
        ([{"role": "sgd", "params": [torch.zeros(3)]}], ValueError, r"`role` must be one of"),
        (
            [{"role": "root", "params": [torch.zeros(3, 3, dtype=torch.complex64)]}],
            TypeError,
            "must be a real floating point tensor",
        ),
        ([("a", torch.zeros(2, 2)), ("a", torch.zeros(2, 2))], ValueError, "'a'"),
        (
            [
                {"role": "root", "params": [("a", torch.zeros(2, 2))]},
                {"role": "root", "params": [("a", torch.zeros(2, 2))]},
            ],
            ValueError,
            r"names must be unique, but \['a'\]",
        ),
    ],
)
def test_bad_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ROOT(params)


def test_the_closure_runs_with_gradients_and_its_loss_comes_back():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    before = snapshot(model)

    def closure():
        optimizer.zero_grad()
        return backward(model)

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.requires_grad
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_tensor_learning_rate_is_read_at_every_step():
    reference, model = GPT(tied=False), GPT(tied=False)
    model.load_state_dict(reference.state_dict())
    lr = torch.tensor(1e-2, dtype=torch.float64)
    expected = ROOT(reference.parameters(), lr=1e-2)
    optimizer = ROOT(model.parameters(), lr=lr)
    for _ in range(2):
        train(reference, expected, 1)
        train(model, optimizer, 1)
        lr.mul_(0.5)
        for group in expected.param_groups:
            group["lr"] *= 0.5
    for a, b in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_parameters_without_gradient_are_not_touched():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    backward(model)
    frozen = [p for i, p in enumerate(model.parameters()) if i % 2]
    for parameter in frozen:
        parameter.grad = None
    before = [parameter.detach().clone() for parameter in frozen]
    optimizer.step()
    assert bitwise(before, frozen)
    assert not any(parameter in optimizer.state for parameter in frozen)


def test_momentum_is_not_normalised_in_place():
    """As happens elsewhere with bfloat16 parameters and no look-ahead."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.randn(4, 6).to(dtype))
        optimizer = ROOT([{"role": "root", "params": [weight]}], nesterov=False)
        weight.grad = torch.randn(4, 6).to(dtype)
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], weight.grad.float())


def test_maximize_is_descent_on_the_negative():
    down, up = GPT(tied=False), GPT(tied=False)
    up.load_state_dict(down.state_dict())
    first = ROOT(down.parameters(), lr=1e-2)
    second = ROOT(up.parameters(), lr=1e-2, maximize=True)
    backward(down)
    for a, b in zip(down.parameters(), up.parameters(), strict=True):
        b.grad = -a.grad
    first.step()
    second.step()
    assert bitwise(list(down.parameters()), list(up.parameters()))


def test_zero_gradients_and_lr_0_change_nothing():
    """Distributed checkpoints run such a step before they load."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    assert not optimizer.state
    before = snapshot(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert bitwise(before, list(model.parameters()))


def test_zero_gradients_only_decay():
    weight = nn.Parameter(torch.randn(4, 6))
    optimizer = ROOT([{"role": "root", "params": [weight]}], lr=0.5, weight_decay=0.5)
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight, before * 0.75)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_matrix_update_does_not_depend_on_the_gradients_scale(scale):
    updates = []
    for factor in (1.0, scale):
        weight = nn.Parameter(torch.zeros(6, 9))
        optimizer = ROOT([{"role": "root", "params": [weight]}], lr=1.0)
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            weight.grad = torch.randn(6, 9, generator=generator) * factor
            optimizer.step()
        updates.append(weight.detach().clone())
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_non_finite_gradient_never_reaches_a_weight(bad):
    """3e38 is finite, but its momentum would overflow for the matrices."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    optimizer.zero_grad()
    backward(model)
    matrix, vector = (params[0] for params in params_by_role(optimizer).values())
    matrix.grad[1, 2] = bad
    vector.grad.view(-1)[3] = bad if abs(bad) != 3e38 else float("nan")
    before = {id(p): p.detach().clone() for p in model.parameters()}
    state = copy.deepcopy(optimizer.state[matrix]), copy.deepcopy(optimizer.state[vector])
    with pytest.warns(UserWarning, match="ROOT left 2 parameters alone .* not finite"):
        optimizer.step()
    for parameter in model.parameters():
        skipped = parameter is matrix or parameter is vector
        assert torch.equal(parameter, before[id(parameter)]) == skipped
        assert parameter.isfinite().all()
    for old, parameter in zip(state, (matrix, vector), strict=True):
        assert all(torch.equal(old[key], optimizer.state[parameter][key]) for key in old)
    assert sorted(optimizer.skipped.values()) == [1, 1]
    optimizer.step()  # said once, counted again
    assert sorted(optimizer.skipped.values()) == [2, 2]


def test_a_gradient_whose_square_overflows_does_not_stop_adamw_for_good():
    """exp_avg_sq would be infinite from then on, and the update zero."""
    bias = nn.Parameter(torch.zeros(3))
    optimizer = ROOT([{"role": "adamw", "params": [("bias", bias)]}], lr=0.1, weight_decay=0.0)
    bias.grad = torch.full((3,), 2e19)
    with pytest.warns(UserWarning, match="overflows in float32") as caught:
        optimizer.step()
    if "MUTANT_UNDER_TEST" not in os.environ:  # mutmut puts frames of its own between
        assert caught[0].filename == __file__, "the warning must point at the step"
    assert torch.equal(bias, torch.zeros(3))
    bias.grad = torch.full((3,), 1e18)
    optimizer.step()
    assert torch.allclose(bias, torch.full((3,), -0.1))


def test_within_a_compiled_function_the_step_runs_as_it_is():
    one, other = (GPT(tied=False) for _ in range(2))
    other.load_state_dict(one.state_dict())
    plain, compiled = ROOT(one.parameters()), ROOT(other.parameters())
    step = torch.compile(lambda: compiled.step(), backend="eager")
    for seed in range(2):
        for model, act in ((one, plain.step), (other, step)):
            model.zero_grad()
            backward(model, seed)
            act()
    assert bitwise(list(one.parameters()), list(other.parameters()))


def test_sparse_gradients_are_refused_and_nothing_changes():
    weights = [("a", nn.Parameter(torch.randn(4, 4))), ("b", nn.Parameter(torch.randn(4, 4)))]
    optimizer = ROOT([{"role": "root", "params": weights}])
    before = [weight.detach().clone() for _, weight in weights]
    weights[0][1].grad, weights[1][1].grad = torch.ones(4, 4), torch.eye(4).to_sparse()
    with pytest.raises(TypeError, match=r"gradient of `b` is sparse .* use `sparse=False`"):
        optimizer.step()
    assert bitwise(before, [weight for _, weight in weights])
    assert not optimizer.state


@pytest.mark.filterwarnings("ignore:ROOT got tensors without names")
def test_odd_gradients_are_fine():
    """Not contiguous, channels last, zero-sized."""
    weights = [
        nn.Parameter(torch.randn(6, 4).T),
        nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.zeros(0, 4)),
    ]
    twins = [
        nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        for weight in weights
    ]
    first, second = (
        ROOT([{"role": "root", "params": weights}]),
        ROOT([{"role": "root", "params": twins}]),
    )
    for _ in range(3):
        for weight, twin in zip(weights, twins, strict=True):
            twin.grad = torch.randn(twin.shape)
            weight.grad = torch.empty_like(weight).copy_(twin.grad)
        first.step()
        second.step()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_bit_for_bit(copier):
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2, coefficients=[(2.0, -1.5, 0.5)], ns_steps=1)
    train(model, optimizer, 3)
    other_model, other = copier((model, optimizer))
    assert other.partition == optimizer.partition
    train(model, optimizer, 3, start=3)
    train(other_model, other, 3, start=3)
    assert bitwise(list(model.parameters()), list(other_model.parameters()))
    assert other.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]


def test_state_survives_torch_save_with_weights_only_and_continues_bit_for_bit():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2, coefficients=[[2.0, -1.5, 0.5]], ns_steps=1)
    train(model, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 4, start=4)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = GPT(tied=False)
    resumed.load_state_dict(loaded["model"])
    fresh = ROOT(resumed.parameters(), lr=9.0)
    fresh.load_state_dict(loaded["optimizer"])
    train(resumed, fresh, 4, start=4)
    assert bitwise(list(model.parameters()), list(resumed.parameters()))


def test_state_follows_names_not_positions():
    """Two matrices of one shape: by position their momenta would be exchanged without a word."""
    a, b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
    optimizer = ROOT([{"role": "root", "params": [("a", a), ("b", b)]}])
    a.grad, b.grad = torch.randn(3, 3), torch.randn(3, 3)
    optimizer.step()
    other = ROOT([{"role": "root", "params": [("b", b), ("a", a)]}])
    other.load_state_dict(optimizer.state_dict())
    for parameter in (a, b):
        expected = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(other.state[parameter]["momentum_buffer"], expected)
    assert other.param_groups[0]["param_names"] == ["b", "a"]


def test_options_of_a_loaded_group_follow_its_name_not_its_place():
    def groups(*rates):
        return [
            {"role": "root", "name": name, "lr": lr, "params": [(name, torch.zeros(3, 3))]}
            for name, lr in rates
        ]

    saved = ROOT(groups(("a", 0.1), ("b", 0.2))).state_dict()
    other = ROOT(groups(("b", 0.5), ("a", 0.5)))
    other.load_state_dict(saved)
    assert {group["name"]: group["lr"] for group in other.param_groups} == {"a": 0.1, "b": 0.2}


def test_a_group_that_the_loaded_state_lacks_keeps_its_own_rule():
    weight, bias = ("weight", torch.zeros(3, 3)), ("bias", torch.zeros(3))
    saved = ROOT([{"role": "adamw", "name": "one", "params": [weight, bias]}]).state_dict()
    other = ROOT(
        [
            {"role": "adamw", "name": "one", "params": [bias]},
            {"role": "root", "name": "two", "params": [weight]},
        ]
    )
    other.load_state_dict(saved)
    assert [group["role"] for group in other.param_groups] == ["adamw", "root"]
    assert [group["name"] for group in other.param_groups] == ["one", "two"]


def test_foreign_state_is_refused_with_the_names():
    weights = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = ROOT([{"role": "root", "params": [("a", weights[0])]}])
    other = ROOT([{"role": "root", "params": [("b", weights[1])]}])
    weights[1].grad = torch.ones(3, 3)
    other.step()
    with pytest.raises(ValueError, match=r"does not belong .*\['b'\].*\['a'\]"):
        optimizer.load_state_dict(other.state_dict())


def test_state_of_the_other_rule_is_refused_with_the_rule_to_write():
    weight = nn.Parameter(torch.randn(3, 3))
    optimizer = ROOT([("blocks.0.fc.weight", weight)], rules={"blocks.0.fc.weight": "adamw"})
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    other = ROOT([("blocks.0.fc.weight", weight)])
    with pytest.raises(ValueError, match=r"rules=\{'blocks.0.fc.weight': 'adamw'\}"):
        other.load_state_dict(optimizer.state_dict())


def test_float32_state_of_bfloat16_parameters_survives_loading():
    model = GPT(tied=False).bfloat16()
    optimizer = ROOT(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    resumed = copy.deepcopy(model)
    fresh = ROOT(resumed.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    pairs = zip(model.parameters(), resumed.parameters(), strict=True)
    for old, new in pairs:
        for key, value in optimizer.state[old].items():
            assert fresh.state[new][key].dtype == torch.float32
            assert torch.equal(fresh.state[new][key], value)
    train(model, optimizer, 2, start=3)
    train(resumed, fresh, 2, start=3)
    assert bitwise(list(model.parameters()), list(resumed.parameters()))


def test_the_counter_of_float64_parameters_stays_as_it_is_when_loaded():
    bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = ROOT([{"role": "adamw", "params": [("bias", bias)]}])
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    dtypes = {key: value.dtype for key, value in optimizer.state[bias].items()}
    optimizer.load_state_dict(optimizer.state_dict())
    assert {key: value.dtype for key, value in optimizer.state[bias].items()} == dtypes
    assert dtypes["step"] == torch.float32


@pytest.mark.parametrize("key", ["step", "exp_avg_sq"])
def test_a_state_with_a_part_missing_is_refused(key):
    bias = nn.Parameter(torch.zeros(3))
    optimizer = ROOT([{"role": "adamw", "params": [("bias", bias)]}])
    bias.grad = torch.ones(3)
    optimizer.step()
    damaged = optimizer.state_dict()
    damaged["state"][0] = {k: v for k, v in damaged["state"][0].items() if k != key}
    with pytest.raises(ValueError, match=f"state of `bias` is damaged: .* lacks `{key}`"):
        optimizer.load_state_dict(damaged)


def test_coefficients_by_shape_are_one_string_in_a_file_of_many_ranks():
    """Distributed checkpoints take a dict apart, and cannot put it into a name's place."""
    by_shape = {"3x3": ((1.5, -0.5, 0.0),) * 5, "otherwise": "muon"}
    group = {"role": "root", "params": [("a", torch.zeros(3, 3))], "coefficients": by_shape}
    optimizer = ROOT([group])
    state = optimizer.state_dict()
    [written] = state["param_groups"]
    assert written.keys() == optimizer.param_groups[0].keys() - ADDED_OPTIONS.keys()
    assert isinstance(written["coefficients"], str)
    other = ROOT([{**group, "coefficients": "muon"}])
    other.load_state_dict(state)
    assert other.param_groups[0]["coefficients"] == by_shape


def test_loading_copies():
    weight = nn.Parameter(torch.randn(3, 3).bfloat16())
    optimizer = ROOT([("blocks.0.fc.weight", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    before = saved["state"][0]["momentum_buffer"].clone()
    optimizer.step()
    assert torch.equal(saved["state"][0]["momentum_buffer"], before)


def test_all_groups_have_the_same_keys():
    """LearningRateMonitor, OneCycleLR and weight decay logging read them from every group."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters())
    optimizer.add_param_group({"params": [("new", nn.Parameter(torch.zeros(3, 3)))], "lr": 0.1})
    keys = [set(group) for group in optimizer.param_groups]
    assert keys[0] == keys[1]
    assert not keys[0] & {"name", "role"}


def test_options_of_a_group_hold_for_that_group():
    a, b = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    optimizer = ROOT(
        [{"role": "root", "params": [a]}, {"role": "root", "params": [b], "lr": 0.5}], lr=0.25
    )
    a.grad = b.grad = torch.randn(4, 4)
    optimizer.step()
    torch.testing.assert_close(2 * a, b, rtol=1e-6, atol=0)


def test_the_gradient_scaler_skips_a_step_with_an_infinity():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = snapshot(model)
    scaler.scale(backward(model) * 0).detach()
    optimizer.zero_grad()
    tokens = torch.randint(256, (2, 8))
    scaler.scale(model(tokens).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bitwise(before, list(model.parameters()))
    assert scaler.get_scale() == 2.0


def test_published_coefficients_warn_and_refuse_where_they_are_unstable():
    weight = torch.zeros(1, device="meta").expand(2048, 2048)
    with pytest.warns(UserWarning, match=r"2048 x 2048 can scale .* 3.31 instead of 1"):
        ROOT([{"role": "root", "params": [weight]}], coefficients="published")
    with pytest.raises(ValueError, match="unbounded"):
        ROOT([{"role": "root", "params": [weight]}], coefficients="published", ns_steps=6)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_parameters_without_an_order_are_refused(kind):
    """A state dict tells parameters apart by their place."""
    with pytest.raises(TypeError, match=r"`params` must have an order, .* got a set; pass a list"):
        ROOT(kind([nn.Parameter(torch.ones(3, 3))]))


def test_a_hundred_steps_are_the_most():
    groups = [{"role": "root", "params": [torch.zeros(2, 2)]}]
    assert ROOT(groups, ns_steps=100, coefficients="muon").param_groups[0]["ns_steps"] == 100
    with pytest.raises(ValueError, match="`ns_steps` must be at most 100, got 101"):
        ROOT(groups, ns_steps=101, coefficients="muon")


HELD = {
    "defaults": {},
    "tensor lr": {"lr": torch.tensor(1e-3)},
    "coefficients by shape": {"coefficients": {"8x16": (TRIPLE,) * 5, "otherwise": "muon"}},
    "float8 and neurons": {"momentum_dtype": "float8", "normalize": "neuron"},
    "covariances": {"precondition": "covariance"},
    "eigenbases": {"precondition": "soap", "precondition_every": 3},
    "numpy": {"lr": np.float64(1e-3), "betas": np.array([0.9, 0.99])},
    "configuration": {"betas": in_config([0.9, 0.99])},
}


@pytest.mark.parametrize("options", HELD.values(), ids=HELD)
def test_what_holds_the_class_and_a_state_loads_with_weights_only(options, tmp_path):
    """As darts and neuralforecast keep `optimizer_cls` among the hyperparameters."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), **options)
    train(model, optimizer, 1)
    held = {"optimizer_cls": ROOT, "lr_scheduler_cls": WarmupDecayLR}
    torch.save(
        {"hyper_parameters": held, "optimizer_states": [optimizer.state_dict()]},
        tmp_path / "one.ckpt",
    )
    loaded = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert loaded["hyper_parameters"] == held
    again = ROOT(model.parameters(), **options)
    again.load_state_dict(loaded["optimizer_states"][0])
    for name, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(value, again.state_dict()["state"][name][key])


def test_an_optimizer_that_has_not_stepped_loads_after_the_line_that_torchs_need(tmp_path):
    """With a state torch refuses every optimizer: `weights_only` fills no `defaultdict`."""
    for kind, line in ((torch.optim.AdamW, [torch.optim.AdamW]), (ROOT, [])):
        torch.save(kind(GPT(tied=False).parameters()), tmp_path / "one.ckpt")
        with torch.serialization.safe_globals([*line, defaultdict, dict]):
            loaded = torch.load(tmp_path / "one.ckpt", weights_only=True)
        assert type(loaded) is kind
