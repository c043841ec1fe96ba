"""ROOT on DTensors: two ranks must end where one process ends."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from lightning_root import ROOT
from lightning_root.distributed import gather
from tests.models import CNN, GPT

STEPS = 20


def gpt():
    torch.manual_seed(0)
    return GPT(tied=False)


def cnn():
    torch.manual_seed(0)
    return CNN()


class Uneven(nn.Module):
    """First dimensions that two ranks cannot share evenly: 5, 3, and 1, none for rank 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 1)
        self.head = nn.Linear(1, 3)

    def forward(self, x):
        return self.head(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))


MODELS = {"gpt": gpt, "cnn": cnn, "uneven": Uneven}


def gradients(model, step):
    """Gradients that do not depend on forward passes, heavy-tailed, some missing on some steps."""
    generator = torch.Generator().manual_seed(step)
    result = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        gradient = torch.randn(parameter.shape, generator=generator).pow(3)
        result[name] = None if (index + step) % 5 == 0 else gradient
    return result


def set_gradients(model, step, poison=None):
    for (name, parameter), gradient in zip(
        model.named_parameters(), gradients(model, step).values(), strict=True
    ):
        if gradient is None:
            parameter.grad = None
            continue
        if poison == name:
            gradient.view(-1)[0] = float("nan")  # lies on rank 0 alone
        if isinstance(parameter.data, torch.distributed.tensor.DTensor):
            gradient = torch.distributed.tensor.distribute_tensor(
                gradient, parameter.device_mesh, parameter.placements
            )
        parameter.grad = gradient.to(parameter.dtype)


def run(model, steps=STEPS, poison=None, **options):
    optimizer = ROOT(model.parameters(), lr=1e-2, **options)
    for step in range(steps):
        set_gradients(model, step, poison)
        optimizer.step()
    return optimizer


def sharded(name, ranks):
    model = MODELS[name]()
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
    return fully_shard(model, mesh=mesh)


def on_ranks(rank, ranks, name, options):
    torch.set_num_threads(1)
    model = sharded(name, ranks)
    run(model, **options)
    return {n: gather(p.detach()) for n, p in model.named_parameters()}


def poisoned_on_ranks(rank, ranks, poison):
    model = sharded("uneven", ranks)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = run(model, steps=3, poison=poison)
    weights = {n: gather(p.detach()) for n, p in model.named_parameters()}
    return weights, dict(optimizer.skipped)


def saving_changes_nothing(rank, ranks):
    """A distributed checkpoint runs a fake step when there is no state yet."""
    model = sharded("gpt", ranks)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    before = {n: gather(p.detach()).clone() for n, p in model.named_parameters()}
    get_optimizer_state_dict(model, optimizer)
    return all(torch.equal(before[n], gather(p.detach())) for n, p in model.named_parameters())


def save_and_resume(rank, ranks, kept):
    """6 steps, state out by name, in again into a fresh optimizer, 6 more; against 12 in one go."""
    options = {"momentum_dtype": kept}
    whole = sharded("cnn", ranks)
    run(whole, steps=12, **options)
    model = sharded("cnn", ranks)
    optimizer = run(model, steps=6, **options)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    fresh = ROOT(model.parameters(), lr=1e-2, **options)
    set_optimizer_state_dict(model, fresh, saved)
    assert len(fresh.param_groups) == 1
    for step in range(6, 12):
        set_gradients(model, step)
        fresh.step()
    pairs = zip(whole.parameters(), model.parameters(), strict=True)
    return all(torch.equal(gather(a.detach()), gather(b.detach())) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "outlier_quantile": None}])
def test_two_ranks_end_where_one_process_ends(gloo_pool, name, options):
    """Bit for bit: each rank computes the same whole-matrix update and keeps its part."""
    alone = MODELS[name]()
    run(alone, **options)
    expected = {n: p.detach() for n, p in alone.named_parameters()}
    for result in gloo_pool.run(on_ranks, name, options):
        for n, weight in result.items():
            torch.testing.assert_close(weight, expected[n], rtol=0, atol=0)


def test_all_ranks_skip_the_same_matrix_when_one_shard_has_a_nan(gloo_pool):
    first, second = gloo_pool.run(poisoned_on_ranks, "a.weight")
    assert first[1] == second[1]
    assert set(first[1]) == {"a.weight"}
    for weights, _ in (first, second):
        assert torch.equal(weights["a.weight"], Uneven().a.weight)
        assert not torch.equal(weights["b.weight"], Uneven().b.weight)
        assert all(weight.isfinite().all() for weight in weights.values())


def test_saving_before_the_first_step_changes_nothing(gloo_pool):
    assert gloo_pool.run(saving_changes_nothing) == [True, True]


@pytest.mark.parametrize("kept", ["auto", "bfloat16", "float8"])
def test_sharded_state_resumes_bit_for_bit(gloo_pool, kept):
    assert gloo_pool.run(save_and_resume, kept) == [True, True]
