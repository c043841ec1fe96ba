"""One battery for `torch.optim.AdamW` and for ROOT: what users may rely on of any optimizer."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from examples.benchmarks.speed.memory import allocated
from lightning_root import ROOT

both = pytest.mark.parametrize("kind", [torch.optim.AdamW, ROOT])


def net(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()]
        return nn.Sequential(*hidden, nn.Linear(6, 3)).to(dtype)


def backward(model, seed=0, scale=1.0):
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
    loss = model(inputs.to(next(model.parameters()).dtype)).square().sum()
    (scale * loss).backward()
    return loss


def train(model, optimizer, steps=1, start=0):
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def bitwise(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def tensors(optimizer):
    """All of the state, in the order of the parameters."""
    state = optimizer.state_dict()["state"]
    return [value for number in sorted(state) for value in state[number].values()]


def made(kind, dtype=torch.float32, **options):
    model = net(dtype)
    return model, kind(model.named_parameters(), lr=1e-2, **options)


def unshared(group):
    """Torch writes into the groups that it is given."""
    return dict(group) if isinstance(group, dict) else group


MATRIX = nn.Parameter(torch.ones(3, 3))


def on_one_line(value):
    """A name for a test that may be given on the command line."""
    return " ".join(str(value).split())


@both
@pytest.mark.parametrize(
    ("params", "error"),
    [
        (MATRIX, TypeError),
        (None, TypeError),
        (3, TypeError),
        ("weights", TypeError),
        ({"params": [MATRIX]}, TypeError),
        (nn.Linear(2, 2), TypeError),
        ([3], TypeError),
        ([("a", 3)], TypeError),
        ([{"params": {MATRIX}}], TypeError),
        ([{"lr": 1.0}], (KeyError, ValueError)),
        ([{"params": [("a", MATRIX)]}, {"params": [("b", MATRIX)]}], ValueError),
        ([("a", MATRIX * 2)], ValueError),
    ],
    ids=on_one_line,
)
def test_wrong_parameters_are_refused(kind, params, error):
    with pytest.raises(error):
        kind([unshared(entry) for entry in params] if isinstance(params, list) else params)


@both
@pytest.mark.parametrize(
    ("group", "error"),
    [
        ([nn.Parameter(torch.ones(2, 2))], [TypeError]),
        ({"lr": 1.0}, [KeyError]),
        ({"params": {nn.Parameter(torch.ones(2, 2))}}, [TypeError]),
        ({"params": [("new", torch.ones(2, 2, requires_grad=True) * 2)]}, []),
        ({"params": [("new", 3)]}, [TypeError]),
        ({"params": 3}, [TypeError]),
    ],
    ids=on_one_line,
)
def test_a_refused_group_leaves_no_trace(kind, group, error):
    model, optimizer = made(kind)
    before = optimizer.state_dict()
    for new in (group, {"params": [("again", model[0].weight)]}):
        with pytest.raises((*error, ValueError)):
            optimizer.add_param_group(unshared(new))
    assert optimizer.state_dict() == before
    train(model, optimizer)


@both
def test_an_added_group_is_trained_from_then_on(kind):
    model, optimizer = made(kind)
    train(model, optimizer)
    later = nn.Parameter(torch.ones(4, 5))
    optimizer.add_param_group({"params": [("later", later)], "lr": 0.5, "weight_decay": 0.0})
    assert [group["lr"] for group in optimizer.param_groups].count(0.5) == 1
    later.grad = torch.randn(4, 5)
    optimizer.step()
    assert not torch.equal(later, torch.ones(4, 5))


@both
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(kind, set_to_none):
    model, optimizer = made(kind)
    backward(model)
    optimizer.zero_grad(set_to_none)
    for parameter in model.parameters():
        assert (parameter.grad is None) == set_to_none
        assert set_to_none or not parameter.grad.any()


@both
def test_without_any_gradient_nothing_happens(kind):
    model, optimizer = made(kind)
    before = weights(model)
    optimizer.step()
    assert bitwise(before, weights(model))
    assert not optimizer.state


@both
@pytest.mark.parametrize("frozen", [0, 1, 4])
def test_a_parameter_that_loses_its_gradient_keeps_weights_and_state(kind, frozen):
    model, optimizer = made(kind)
    train(model, optimizer)
    alone = list(model.parameters())[frozen]
    weight, state = alone.detach().clone(), copy.deepcopy(optimizer.state[alone])
    backward(model)
    alone.grad = None
    optimizer.step()
    assert torch.equal(alone, weight)
    assert all(torch.equal(state[key], optimizer.state[alone][key]) for key in state)


@both
def test_sparse_gradients_are_refused(kind):
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = kind([("weight", weight)])
    weight.grad = torch.eye(3).to_sparse()
    with pytest.raises((RuntimeError, TypeError), match="sparse"):
        optimizer.step()


@both
@pytest.mark.parametrize("change", ["transposed", "expanded", "sliced", "with a graph"])
def test_the_layout_of_a_gradient_does_not_matter(kind, change):
    dense = torch.randn(1, 5).expand(5, 5).contiguous()
    gradients = {
        "transposed": dense.T.contiguous().T,
        "expanded": dense[:1].expand(5, 5),
        "sliced": torch.stack([dense, dense], -1)[..., 0],
        "with a graph": dense.clone().requires_grad_() * 1,
    }
    results = []
    for gradient in (dense, gradients[change]):
        weight = nn.Parameter(torch.ones(5, 5))
        optimizer = kind([("hidden.weight", weight)])
        for _ in range(2):
            weight.grad = gradient
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@both
def test_hooks_of_one_optimizer_and_of_all_see_a_step(kind):
    model, optimizer = made(kind)
    seen = []

    def named(name):
        return lambda *_: seen.append(name)

    handles = [
        optimizer.register_step_pre_hook(named("before")),
        optimizer.register_step_post_hook(named("after")),
        register_optimizer_step_pre_hook(named("all before")),
        register_optimizer_step_post_hook(named("all after")),
    ]
    train(model, optimizer)
    for handle in handles:
        handle.remove()
    train(model, optimizer)
    assert sorted(seen) == ["after", "all after", "all before", "before"]
    assert seen.index("before") < seen.index("after")


@both
def test_a_hook_has_the_last_word_about_a_saved_state(kind):
    model, optimizer = made(kind)
    train(model, optimizer)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before"))
    optimizer.register_state_dict_post_hook(lambda _, state: {"mine": sorted(state)})
    assert optimizer.state_dict() == {"mine": ["param_groups", "state"]}
    assert seen == ["before"]


@both
def test_a_hook_may_rename_what_is_loaded(kind):
    """As torch's documentation has it: the dict that comes from a file, before anything else."""
    model, optimizer = made(kind)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["param_names"] = [f"old.{name}" for name in group["param_names"]]
    saved = {"optimizer": saved}

    def rename(_, given):
        groups = given["optimizer"]["param_groups"]
        names = [[n.removeprefix("old.") for n in group["param_names"]] for group in groups]
        groups = [{**g, "param_names": n} for g, n in zip(groups, names, strict=True)]
        return {**given["optimizer"], "param_groups": groups}

    _, other = made(kind)
    other.register_load_state_dict_pre_hook(rename)
    other.load_state_dict(saved)
    assert bitwise(tensors(optimizer), tensors(other))


@both
def test_a_hook_may_change_what_has_been_loaded(kind):
    model, optimizer = made(kind)
    train(model, optimizer, 2)
    _, other = made(kind)

    def clear(loaded):
        for state in loaded.state.values():
            for value in state.values():
                value.zero_()

    other.register_load_state_dict_post_hook(clear)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert tensors(other)
    assert not any(value.any() for value in tensors(other))
    assert all(value.any() for value in tensors(optimizer))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_state_of_another_dtype_is_taken_in(kind, dtype):
    """Torch rounds it to the parameters' dtype; ROOT keeps float32 where that is finer."""
    model, optimizer = made(kind)
    train(model, optimizer, 2)
    other_model, other = made(kind, dtype)
    other.load_state_dict(optimizer.state_dict())
    wanted = torch.promote_types(dtype, torch.float32) if kind is ROOT else dtype
    for old, new in zip(tensors(optimizer), tensors(other), strict=True):
        if new.ndim:
            assert new.dtype == wanted
            assert torch.equal(new, old.to(wanted))
    train(other_model, other, 2)
    assert all(parameter.isfinite().all() for parameter in other_model.parameters())


@both
def test_a_state_goes_to_the_device_of_the_parameters(kind):
    """`meta` stands for one: it has shapes and no memory."""
    model, optimizer = made(kind)
    train(model, optimizer, 2)
    elsewhere = net().to("meta")
    other = kind(elsewhere.named_parameters())
    other.load_state_dict(optimizer.state_dict())
    for old, new in zip(tensors(optimizer), tensors(other), strict=True):
        assert old.shape == new.shape
        assert new.is_meta or not new.ndim


@both
@pytest.mark.parametrize("change", ["a group less", "a parameter less", "no groups"])
def test_a_state_that_does_not_fit_is_refused_and_nothing_has_changed(kind, change):
    model, optimizer = made(kind)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    if change == "a group less":
        saved["param_groups"].pop()
    elif change == "a parameter less":
        saved["param_groups"][0]["params"].pop()
    else:
        del saved["param_groups"]
    before = [value.clone() for value in tensors(optimizer)]
    with pytest.raises((KeyError, ValueError)):
        optimizer.load_state_dict(saved)
    assert bitwise(before, tensors(optimizer))


@both
def test_a_scaler_that_skips_nothing_changes_nothing(kind):
    """Powers of two scale exactly, so that the run is bitwise the one without a scaler."""
    (plain, first), (scaled, second) = made(kind), made(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(plain, first, 3)
    for seed in range(3):
        second.zero_grad()
        backward(scaled, seed, scaler.get_scale())
        assert scaler.scale(torch.ones(())) == 1024.0
        scaler.step(second)
        scaler.update()
    assert bitwise(weights(plain), weights(scaled))


@both
def test_inference_mode_and_no_grad_are_fine(kind):
    model, optimizer = made(kind)
    for mode in (torch.no_grad, torch.enable_grad):
        before = weights(model)
        backward(model)
        with mode():
            optimizer.step()
        assert not bitwise(before, weights(model))
        assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())


@both
def test_averaged_weights(kind):
    model, optimizer = made(kind)
    averaged = swa_utils.AveragedModel(model)
    seen = []
    for seed in range(3):
        train(model, optimizer, start=seed)
        averaged.update_parameters(model)
        seen.append(weights(model))
    for mean, *parts in zip(averaged.module.parameters(), *seen, strict=True):
        torch.testing.assert_close(mean.detach(), sum(parts) / 3, rtol=1e-5, atol=1e-7)


PLAIN = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=12),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3, 4),
}


def test_every_scheduler_of_torch_is_in_the_table():
    kinds = inspect.getmembers(lr_scheduler, inspect.isclass)
    names = {name for name, kind in kinds if issubclass(kind, lr_scheduler.LRScheduler)}
    assert set(SCHEDULERS) == names - {"LRScheduler", "_LRScheduler"} | {"SWALR"}


def advance(scheduler, metric):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(metric)
    else:
        scheduler.step()


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_rates_of_both_rules_as_they_set_adamws(name, tensor):
    """Also when the run is interrupted: from a saved state in the middle it goes on alike."""
    lr = torch.tensor(1e-2, dtype=torch.float64) if tensor else 1e-2
    models = [net() for _ in range(3)]
    oracle = torch.optim.AdamW(models[0].parameters(), lr=1e-2, betas=(0.9, 0.95))
    optimizer = ROOT(models[1].parameters(), lr=lr)
    schedulers = [SCHEDULERS[name](oracle), SCHEDULERS[name](optimizer)]
    seen = []
    for step in range(10):
        if step == 5:  # both anew, from what they have saved
            fresh = ROOT(models[2].parameters(), lr=torch.tensor(9.0).double() if tensor else 9.0)
            resumed = SCHEDULERS[name](fresh)
            fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            resumed.load_state_dict(copy.deepcopy(schedulers[1].state_dict()))
            models[1], optimizer, schedulers[1] = models[2], fresh, resumed
        for model, driven in zip(models, (oracle, optimizer), strict=False):
            train(model, driven, start=step)
        for scheduler in schedulers:
            advance(scheduler, metric=1.0)
        assert rates(optimizer) == pytest.approx(rates(oracle))
        seen.append(rates(optimizer)[0])
        assert [g["betas"] for g in optimizer.param_groups] == [oracle.param_groups[0]["betas"]]
        assert [group["momentum"] for group in optimizer.param_groups] == [0.95]
    assert len(set(seen)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_adamws_half_needs_no_more_memory_than_torchs(dtype, options):
    """Beside the state, of a step; ROOT's own half is in test_speed."""
    peaks = []
    for kind in (torch.optim.AdamW, ROOT):
        vectors = [(f"norm.{number}", nn.Parameter(torch.ones(50_000))) for number in range(8)]
        vectors = [(name, nn.Parameter(vector.to(dtype))) for name, vector in vectors]
        role = {"role": "adamw"} if kind is ROOT else {}
        optimizer = kind([{"params": vectors, **role}], **options)
        for _, vector in vectors:
            vector.grad = torch.ones_like(vector)
        optimizer.step()
        peaks.append(allocated(optimizer.step))
    assert peaks[1] <= peaks[0] + (64 << 10)


COMPLEX = nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))


def test_complex_parameters_take_adamws_steps():
    """As a Fourier operator has them; a gradient that is not finite is left out."""
    twins = [nn.Parameter(COMPLEX.detach().clone()) for _ in range(2)]
    ours = ROOT([("spectral.weight", twins[0])], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    theirs = torch.optim.AdamW(twins[1:], lr=1e-2)
    for step in range(4):
        gradient = torch.randn(3, 4, dtype=torch.complex64)
        for twin in twins:
            twin.grad = gradient.clone()
        ours.step()
        theirs.step()
        assert torch.equal(*twins), step
    twins[0].grad[0, 0] = complex(1.0, float("nan"))
    with pytest.warns(UserWarning, match="not finite"):
        ours.step()
    assert torch.equal(*twins)
    again = ROOT([("spectral.weight", twins[0])])
    again.load_state_dict(ours.state_dict())
    assert again.state[twins[0]]["exp_avg"].dtype == torch.complex64


@pytest.mark.parametrize("option", ["fused", "capturable"])
def test_complex_parameters_are_refused_where_torchs_fused_step_refuses_them(option):
    with pytest.raises(ValueError, match="`fused=True` and `capturable=True` need real parameters"):
        ROOT([("spectral.weight", COMPLEX)], **{option: True})


EDITS = [{"betas": None}, {"eps": "x"}, {"momentum": None}, {"weight_decay": None}]
EDITS += [{"foreach": True, "lr": torch.tensor(1e-2)}, {"foreach": True, "fused": True}]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_step_that_is_refused_has_moved_nothing(edit):
    """Also AdamW's part, which would fail when the matrices have moved."""
    model = net()
    optimizer = ROOT(model.parameters(), lr=1e-2)
    train(model, optimizer)
    optimizer.param_groups[0].update(edit)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises((TypeError, ValueError)):
        optimizer.step()
    after = model.state_dict(), optimizer.state_dict()["state"]
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    for place, state in after[1].items():
        assert all(torch.equal(before[1][place][key], value) for key, value in state.items())


@pytest.mark.parametrize("change", ["double", "half", "bfloat16", "float"])
@pytest.mark.parametrize("momentum_dtype", ["auto", "bfloat16", "float8"])
def test_a_module_may_change_its_precision_between_steps(change, momentum_dtype):
    """State follows to the precision that it would have had from the start."""
    model = net()
    optimizer = ROOT(model.parameters(), lr=1e-2, momentum_dtype=momentum_dtype)
    train(model, optimizer)
    getattr(model, change)()
    fresh = ROOT(getattr(net(), change)().parameters(), momentum_dtype=momentum_dtype)
    for given in (optimizer, fresh):
        for group in given.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        given.step()
    states = zip(optimizer.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True)
    for one, twin in states:
        assert one.isfinite().all()
        for key, value in fresh.state[twin].items():
            assert optimizer.state[one][key].dtype == value.dtype, key


def test_entries_of_the_users_in_the_state_are_carried_along():
    """torch's own tests put one there in a hook."""
    model = net()
    optimizer = ROOT(model.parameters())
    train(model, optimizer)
    optimizer.register_state_dict_pre_hook(lambda held: held.state.update(test=5))
    saved = optimizer.state_dict()
    assert saved["state"]["test"] == 5
    other = ROOT(net().parameters())
    other.load_state_dict(saved)
    assert other.state["test"] == 5
    optimizer.bind(model)
    train(model, optimizer)
    assert optimizer.state["test"] == 5


@pytest.mark.filterwarnings("ignore:ROOT got tensors without names")
@pytest.mark.parametrize("numbered", ["saved", "loading"])
def test_order_decides_where_one_side_has_only_numbers_for_names(numbered):
    """As in torch; what is saved under the other rule goes on under it, with a warning."""
    models = net(), net()
    makers = [
        lambda m: ROOT(list(m.parameters()), lr=1e-2),
        lambda m: ROOT(m.parameters(), lr=1e-2),
    ]
    first, second = makers if numbered == "saved" else makers[::-1]
    optimizer = first(models[0])
    train(models[0], optimizer)
    other = second(models[1])
    models[1].load_state_dict(models[0].state_dict())
    with pytest.warns(UserWarning, match="go on under the rule that they were saved with"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, driven in zip(models, (optimizer, other), strict=True):
        train(model, driven, start=7)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    for one, twin in pairs:
        torch.testing.assert_close(one, twin, rtol=1e-5, atol=1e-6)


def test_a_tensor_rate_is_one_for_each_group():
    layer = nn.Linear(3, 3)
    rate = torch.tensor(1e-2)
    optimizer = ROOT([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=rate)
    other = ROOT([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=torch.tensor(1.0))
    other.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    for driven in (optimizer, other):
        for group in driven.param_groups:
            group["lr"] *= 0.5
        assert [float(group["lr"]) for group in driven.param_groups] == pytest.approx(
            [5e-3] * len(driven.param_groups)
        )
    assert optimizer.param_groups[0]["lr"] is rate  # which the user may hold
