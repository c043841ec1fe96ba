"""`capturable`: the same steps, without a number that the host reads from the device."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_root import ROOT

BAD = (float("nan"), float("inf"), -float("inf"), 3e38)


class TensorsOfTheHost(TorchDispatchMode):
    """Record operations that take or give a tensor in the host's memory."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in leaves):
            self.seen.append(func)
        return out


def random(shape, generator, device):
    return torch.randn(shape, generator=generator).to(device)


def make_parameters(dtype=torch.float32, device="cpu"):
    """A wide, a tall and a square matrix, three alike, a convolution, and what AdamW takes."""
    shapes = [(24, 40), (40, 24), (16, 16), *[(20, 30)] * 3, (8, 4, 3, 3)]
    generator = torch.Generator().manual_seed(0)

    def one(shape):
        return nn.Parameter(random(shape, generator, device).to(dtype))

    root = [(f"matrix.{number}", one(shape)) for number, shape in enumerate(shapes)]
    adamw = [(f"vector.{number}", one(shape)) for number, shape in enumerate([(7,), (50, 8), (1,)])]
    return root, adamw


def make_optimizer(parameters, **options):
    root, adamw = parameters
    groups = [{"role": "root", "params": root}, {"role": "adamw", "params": adamw}]
    return ROOT(groups, **{"fused": True, **options})


def give_gradients(parameters, number, bad=None):
    """The same for all; where `bad` is a number, that in one entry of every third parameter."""
    generator = torch.Generator().manual_seed(number)
    for index, (_, parameter) in enumerate([*parameters[0], *parameters[1]]):
        gradient = random(parameter.shape, generator, parameter.device)
        if bad is not None and (index + number) % 3 == 0:
            gradient.view(-1)[0] = bad
        parameter.grad = gradient.to(parameter.dtype)


def weights(parameters):
    return [parameter.detach() for part in parameters for _, parameter in part]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "maximize": True}], ids=str)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_steps_are_the_ordinary_ones(dtype, options, tensor_lr):
    """Twenty, some with gradients that are not finite; they differ in the last bits of factors."""
    made = make_parameters(dtype), make_parameters(dtype)
    ordinary, captured = (
        make_optimizer(
            parameters,
            lr=torch.tensor(1e-2) if tensor_lr else 1e-2,
            capturable=capturable,
            **options,
        )
        for parameters, capturable in zip(made, (False, True), strict=True)
    )
    start = [weight.clone() for weight in weights(made[0])]
    for number in range(20):
        bad = BAD[number % 4] if number % 5 == 2 else None
        for parameters, optimizer in zip(made, (ordinary, captured), strict=True):
            give_gradients(parameters, number, bad)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that parameters were left alone
                optimizer.step()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-4
    for before, one, other in zip(start, *map(weights, made), strict=True):
        assert (one - other).norm() <= tolerance * (one - before).norm()
    assert captured.skipped == ordinary.skipped
    assert captured.skipped.total() > 10


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_without_a_finite_gradient_is_left_alone_to_the_bit(bad, dtype):
    if dtype == torch.bfloat16 and bad == 3e38:
        bad = 1e38  # finite in bfloat16, and its momentum is not in float32
    parameters = make_parameters(dtype)
    optimizer = make_optimizer(parameters, lr=0.3, capturable=True)
    give_gradients(parameters, 0)
    optimizer.step()
    give_gradients(parameters, 1)
    matrix, vector = parameters[0][1][1], parameters[1][1][1]
    matrix.grad[2, 3] = bad
    vector.grad[3, 4] = float("nan")
    before = copy.deepcopy(optimizer.state_dict()["state"])
    start = [weight.clone() for weight in weights(parameters)]
    optimizer.step()
    after = optimizer.state_dict()["state"]
    for number, (old, new) in enumerate(zip(start, weights(parameters), strict=True)):
        alone = new.data_ptr() in (matrix.data_ptr(), vector.data_ptr())
        assert torch.equal(old, new) == alone
        same = [torch.equal(value, after[number][key]) for key, value in before[number].items()]
        assert all(same) if alone else not any(same)
    assert optimizer.skipped == {"matrix.1": 1, "vector.1": 1}


@pytest.mark.parametrize("options", [{}, {"outlier_quantile": None}, {"outlier_quantile": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_an_accelerator_no_number_reaches_the_host(options, dtype):
    """Meta tensors have no numbers: who asks for one is refused. They take an accelerator's way."""
    parameters = make_parameters(dtype, "meta")
    large = nn.Parameter(torch.empty(600, 700, dtype=dtype, device="meta"))
    parameters[0].append(("large", large))
    optimizer = make_optimizer(parameters, capturable=True, ns_dtype="bfloat16", **options)
    for number in range(2):
        give_gradients(parameters, number)
        optimizer.step()
    assert {t.device.type for s in optimizer.state.values() for t in s.values()} == {"meta"}


def test_on_an_accelerator_a_learning_rate_stays_where_it_is():
    """Of AdamW's part torch has no meta kernel with a tensor."""
    root, _ = parameters = (make_parameters(device="meta")[0], [])
    lr = torch.empty((), device="meta")
    optimizer = ROOT([{"role": "root", "params": root}], lr=lr, capturable=True)
    give_gradients(parameters, 0)
    optimizer.step()


def test_an_ordinary_step_does_ask():
    """That the tests above can fail."""
    parameters = make_parameters(device="meta")
    optimizer = make_optimizer(parameters)
    give_gradients(parameters, 0)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        optimizer.step()


def test_nothing_is_copied_from_the_host():
    """A graph would copy from the same place again, which holds something else by then."""
    parameters = make_parameters(device="meta")
    optimizer = make_optimizer(parameters, capturable=True)
    for number in range(2):
        give_gradients(parameters, number)
        with TensorsOfTheHost() as captured:
            optimizer.step()
    assert not captured.seen
    with TensorsOfTheHost() as ordinary, pytest.raises(NotImplementedError):
        make_optimizer(parameters).step()
    assert ordinary.seen  # the factors that the norms are multiplied by


def test_a_state_of_ordinary_steps_goes_on():
    made = make_parameters()
    ordinary = make_optimizer(made, fused=None)
    give_gradients(made, 0)
    ordinary.step()
    captured = make_optimizer(made, capturable=True, fused=None)
    captured.load_state_dict(ordinary.state_dict())
    for group in captured.param_groups:  # options come with the state, as torch has it
        assert not group["capturable"]
        group["capturable"] = True
    give_gradients(made, 1)
    captured.step()
    assert {float(s["step"]) for s in captured.state.values() if "step" in s} == {2.0}


@pytest.mark.parametrize("options", [{"foreach": True, "fused": None}, {"fused": False}], ids=str)
def test_it_needs_the_fused_adamw(options):
    with pytest.raises(ValueError, match="`capturable=True` needs torch's fused AdamW"):
        make_optimizer(make_parameters(), capturable=True, **options)


def test_a_learning_rate_must_be_where_the_parameters_are():
    parameters = make_parameters(device="meta")
    lr = torch.tensor(1e-2, device="cpu")
    optimizer = make_optimizer(parameters, capturable=True, lr=lr)
    give_gradients(parameters, 0)
    with pytest.raises(ValueError, match=r"`lr` must be on .* got 'cpu'; pass lr.to\('meta'"):
        optimizer.step()


def test_a_capture_needs_the_option_and_a_step_before(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for capturable, message in [(False, "only with `capturable=True`"), (True, "take one before")]:
        parameters = make_parameters()
        optimizer = make_optimizer(parameters, capturable=capturable, kernels="torch")
        give_gradients(parameters, 0)
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()


def test_every_group_with_the_option_is_checked():
    """Also one that comes after a group without it."""
    first, second = (nn.Parameter(torch.ones(2, 2, device="meta")) for _ in range(2))
    lr = torch.tensor(1e-2, device="cpu")
    groups = [{"params": [first], "role": "root", "capturable": False}]
    groups.append({"params": [second], "role": "root", "lr": lr, "capturable": True})
    optimizer = ROOT(groups)
    second.grad = torch.ones_like(second)
    with pytest.raises(ValueError, match="a tensor `lr` must be on the parameters' device"):
        optimizer.step()
