"""Every option of ROOT: what it may be, what it may not, and that it survives every way to copy it.

The tables name all arguments of the constructor, so that a new option cannot go untested.
"""

import copy
import inspect
import io
import itertools
import json
import pickle

import pytest
import torch
from torch import nn

from lightning_root import ROOT, fit_coefficients
from lightning_root.coefficients import save_coefficients
from tests.helpers import names_by_role

TRIPLE = (2.0, -1.5, 0.5)
NO_GROUP_OPTION = ("rules", "share_updates")  # of the whole optimizer

GOOD = {
    "lr": [0.0, 1, 1e-2, torch.tensor(1e-2), torch.tensor([1e-2], dtype=torch.float64)],
    "weight_decay": [0.0, 0, 1.5],
    "momentum": [0.0, 0.5, 0.999],
    "nesterov": [False],
    "coefficients": [
        *("paper", "published", "muon", "polar_express", "cans", "quintic"),
        *(TRIPLE, [TRIPLE] * 5, {"6x8": [TRIPLE] * 5, "otherwise": "cans"}, {}),
    ],
    "outlier_quantile": [None, 0.5, 1, 1e-6, "auto"],
    "ns_steps": [1, 3, 12],
    "adjust_lr_fn": ["original", "spectral_unclamped", None],
    "betas": [(0.0, 0.0), [0.5, 0.999]],
    "eps": [0.0, 1e-3],
    "maximize": [True],
    "foreach": [True, False],
    "fused": [True, False],
    "ns_dtype": ["float32", "bfloat16", "float64"],
    "ns_form": ["standard", "gram", "eigh", "polar"],
    "momentum_dtype": ["bfloat16", "float8"],
    "normalize": ["neuron"],
    "lr_scales": [{"embedding": 3.0, "head": 0.3}, {"hidden": 2}, {}],
    "weight_decays": [{"vector": 0.0, "embedding": 0}, {"table": 0.5}],
    "weight_decay_mode": ["cautious"],
    "gradient_clip_entries": [4, 0.5],
    "precondition": ["covariance", "soap", "auto"],
    "precondition_sides": ["smaller", "both"],
    "precondition_source": ["momentum"],
    "precondition_every": [1, 3],
    "precondition_statistics_every": [2, 3],
    "precondition_beta": [0.0, 0.9],
    "precondition_exponent": [0.3, 1],
    "precondition_damping": [1e-3, 1e-7],
    "precondition_max_dim": [1, 16],
    "share_dtype": ["bfloat16"],
    "outlier_quantile_mode": ["exact", "sampled"],
    "kernels": ["torch"],
    "capturable": [True],
    "rules": [{}, {"0.weight": "adamw"}, {"2.weight": {"rows": 2}}, [("4.*", "adamw")]],
    "share_updates": [False],
}


class Strange:
    """Of no kind that any option takes; it looks the same in every process."""

    def __repr__(self):
        return "Strange()"


WORDS_AND_KINDS = ["yes", 1.5, [1, 2, 3, 4], {"a": 1}, Strange()]
NUMBERS = [None, True, -1, float("nan"), float("inf"), "1", [1]]
BAD = {
    "lr": [*NUMBERS, torch.ones(2), torch.zeros(0), torch.tensor(1), torch.tensor(1j)],
    "weight_decay": [*NUMBERS, torch.ones(2)],
    "momentum": [*NUMBERS, 1.0, 1.2, torch.ones(2)],
    "nesterov": [None, 1, "yes"],
    "coefficients": [
        *(None, 3.0, "muno", "nowhere.json", [], (1.0, 2.0), (1.0, "b", 2.0), (1.0, None, 2.0)),
        *([TRIPLE] * 4, [("a", 1, 2)] * 5, (1e9, 1.0, 1.0), (float("nan"), 1.0, 0.0)),
        *({"8x6": TRIPLE}, {"6x8": "muon"}, {"6x8": None}, {"6x8": [TRIPLE]}, {6: TRIPLE}),
        *({"otherwise": 3}, {"otherwise": "muno"}),
    ],
    "outlier_quantile": [True, 0, -0.5, 1.5, float("nan"), "p", [0.9], torch.ones(2)],
    "ns_steps": [None, True, 0, -1, 2.0, "5", [5], 10**9],
    "adjust_lr_fn": ["rms", *WORDS_AND_KINDS],
    "betas": [None, 0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), ("a", 0.9), (0.9, 0.9, 0.9)],
    "eps": NUMBERS,
    "maximize": [None, 1, "yes"],
    "foreach": WORDS_AND_KINDS,
    "fused": WORDS_AND_KINDS,
    "ns_dtype": [None, torch.float32, *WORDS_AND_KINDS],
    "ns_form": [None, *WORDS_AND_KINDS],
    "momentum_dtype": [None, torch.bfloat16, *WORDS_AND_KINDS],
    "normalize": [None, True, *WORDS_AND_KINDS],
    "lr_scales": [3.0, "head", {"heads": 1.0}, {"head": -1}, {"head": True}, {"*.gate": 0.5}],
    "weight_decays": [0.0, {"norm": 0.0}, {"vector": float("nan")}, {"vector": "0"}],
    "weight_decay_mode": [None, "careful", *WORDS_AND_KINDS],
    "gradient_clip_entries": [True, 0, -4, float("inf"), "4", [4]],
    "precondition": [None, True, "shampoo", *WORDS_AND_KINDS],
    "precondition_sides": [None, "left", *WORDS_AND_KINDS],
    "precondition_source": [None, "gradients", *WORDS_AND_KINDS],
    "precondition_every": [None, True, 0, -1, 2.5, "10"],
    "precondition_statistics_every": [True, 0, 1.5, "1"],
    "precondition_beta": [*NUMBERS, 1.0],
    "precondition_exponent": [True, 0, -0.5, 1.5, float("nan"), "1/4"],
    "precondition_damping": [*NUMBERS, 0, 1e-8, 1.0],
    "precondition_max_dim": [None, True, 0, -1, 2.5, "64"],
    "share_dtype": [None, torch.bfloat16, *WORDS_AND_KINDS],
    "outlier_quantile_mode": [None, *WORDS_AND_KINDS],
    "kernels": [None, *WORDS_AND_KINDS],
    "capturable": [None, 1, "yes"],
    "rules": [3, "bert", {"*": "sgd"}, {"*": {"row": 2}}, {"nothing.*": "adamw"}, ["4.*"]],
    "share_updates": [None, 1, "yes"],
}


def pairs(table):
    return [pytest.param(o, v, id=f"{o}={v!r:.40}") for o, vs in table.items() for v in vs]


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()]
        return nn.Sequential(*hidden, nn.Linear(6, 3))


def train(model, optimizer, steps, start=0):
    for seed in range(start, start + steps):
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def bitwise(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def optimizer_of(model, **options):
    """With learning rates of its own wherever `lr` is not what is tested."""
    return ROOT(model.parameters(), **{"lr": 1e-2, **options})


@pytest.mark.parametrize("table", [GOOD, BAD])
def test_every_argument_is_in_the_tables(table):
    assert set(table) == set(inspect.signature(ROOT.__init__).parameters) - {"self", "params"}


def test_every_group_has_every_option_and_no_other():
    torchs_own = {"params", "param_names"}
    for group in optimizer_of(net()).param_groups:
        assert set(group) == set(GOOD) - set(NO_GROUP_OPTION) | torchs_own


@pytest.mark.parametrize(("option", "value"), pairs(BAD))
def test_a_wrong_value_is_refused_by_the_name_of_its_option(option, value):
    with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
        optimizer_of(net(), **{option: value})
    if option not in NO_GROUP_OPTION:
        optimizer = optimizer_of(net())
        group = {"params": [("new", nn.Parameter(torch.ones(6, 8)))], option: value}
        before = copy.deepcopy(optimizer.state_dict())
        for role in ({"role": "root"}, {"role": "adamw"}, {}):
            with pytest.raises((TypeError, ValueError), match=f"`{option}`"):
                optimizer.add_param_group({**group, **role})
        assert optimizer.state_dict() == before


@pytest.mark.parametrize(("option", "value"), pairs(GOOD))
def test_it_trains_everything_and_leaves_gradients_alone(option, value):
    model, options = net(), {option: value}
    optimizer = optimizer_of(model, **options)
    before = weights(model)
    train(model, optimizer, 1)
    moves = option != "lr" or value != 0.0
    assert all(torch.equal(a, b) != moves for a, b in zip(before, weights(model), strict=True))
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    assert bitwise(gradients, [parameter.grad for parameter in model.parameters()])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("option", "value"), pairs(GOOD))
def test_copies_and_loaded_states_go_on_bit_for_bit(option, value):
    """A state takes its options along: what it is loaded into was made with the defaults."""
    model, options = net(), {option: value}
    optimizer = optimizer_of(model, **options)
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    loaded = net(seed=1)
    loaded.load_state_dict(saved["model"])
    kept = options if option in NO_GROUP_OPTION else {}
    fresh = ROOT(loaded.parameters(), lr=9.0, **kept)
    fresh.load_state_dict(saved["optimizer"])
    others = [
        (loaded, fresh),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    train(model, optimizer, 2, start=2)
    for other_model, other in others:
        train(other_model, other, 2, start=2)
        assert bitwise(weights(model), weights(other_model))


@pytest.mark.parametrize(
    ("option", "value"), [p for p in pairs(GOOD) if p.values[0] not in NO_GROUP_OPTION]
)
def test_an_option_of_groups_is_the_option_of_the_optimizer(option, value):
    models = net(), net()
    of_all = optimizer_of(models[0], **{option: value})
    named = dict(models[1].named_parameters())
    groups = [
        {"params": [(name, named[name]) for name in of_role], "role": role, option: value}
        for role, of_role in names_by_role(optimizer_of(models[1])).items()
    ]
    of_groups = ROOT(groups, **({} if option == "lr" else {"lr": 1e-2}))
    for model, optimizer in zip(models, (of_all, of_groups), strict=True):
        train(model, optimizer, 2)
    assert bitwise(*map(weights, models))


@pytest.mark.parametrize("option", [name for name in GOOD if name not in NO_GROUP_OPTION])
def test_a_state_from_before_an_option_takes_the_one_that_stands(option):
    model = net()
    optimizer = optimizer_of(model)
    train(model, optimizer, 1)
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        group.pop(option, None)  # younger ones are left out where they are off
    optimizer.load_state_dict(old)
    value = optimizer.defaults[option]
    assert [group[option] for group in optimizer.param_groups] == [value]
    train(model, optimizer, 1)


def test_options_that_exclude_each_other_are_named():
    for options, words in (
        ({"foreach": True, "fused": True}, "`foreach` and `fused` exclude"),
        ({"capturable": True, "foreach": True}, "`capturable=True` needs torch's fused"),
        ({"capturable": True, "fused": False}, "`capturable=True` needs torch's fused"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer_of(net(), **options)


def test_options_work_together():
    """Two at a time, of different kinds, each with a value that is not its default."""
    chosen = {
        "lr": torch.tensor(1e-2),
        "nesterov": False,
        "coefficients": {"6x8": [TRIPLE] * 3, "otherwise": "cans"},
        "outlier_quantile": "auto",
        "adjust_lr_fn": None,
        "maximize": True,
        "fused": True,
        "ns_dtype": "bfloat16",
        "ns_form": "gram",
        "outlier_quantile_mode": "sampled",
        "rules": {"2.weight": {"rows": 2}, "4.weight": "root"},
        "capturable": True,
    }
    for pair in itertools.combinations(chosen, 2):
        model = net()
        before = weights(model)
        options = {name: chosen[name] for name in pair}
        train(model, optimizer_of(model, **options, ns_steps=3), 2)
        for old, new in zip(before, weights(model), strict=True):
            assert new.isfinite().all() and not torch.equal(old, new), pair


def test_a_coefficient_file_is_a_value_too(tmp_path):
    file = tmp_path / "own.json"
    save_coefficients(file, [fit_coefficients((6, 8), 2)])
    made = optimizer_of(net(), coefficients=str(file), ns_steps=2)
    assert set(made.defaults["coefficients"]) == {"6x8", "otherwise"}
    file.write_text(json.dumps({"what": "else"}))
    for steps in (2, 3):
        with pytest.raises(ValueError, match=r"`coefficients`: .*own\.json"):
            optimizer_of(net(), coefficients=str(file), ns_steps=steps)
