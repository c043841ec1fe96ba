"""A parameter that holds several matrices is updated as those matrices are, bit for bit."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_root import ROOT

OPTIONS = {"lr": 0.02, "adjust_lr_fn": "original"}  # the scale that tells rows from columns


def train(named, rules=None, steps=4, **options):
    """Heavy-tailed gradients that depend on the name's own seed; returns the optimizer."""
    optimizer = ROOT(named, rules=rules, **{**OPTIONS, **options})
    for _ in range(steps):
        optimizer.step()
    return optimizer


def gradient(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).pow(3)


def pair(shape, cut, rule):
    """Train one parameter as the rule cuts it, and its parts as parameters of their own."""
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(shape))
    whole.grad = gradient(shape, 1)
    parts = [nn.Parameter(part.detach().clone()) for part in cut(whole)]
    for part, part_gradient in zip(parts, cut(whole.grad), strict=True):
        part.grad = part_gradient.clone()
    train([("blocks.0.fused.weight", whole)], {"*": {"role": "root", **rule}})
    train([(f"blocks.0.{i}.weight", part) for i, part in enumerate(parts)], {"*": "root"})
    return whole, parts


CASES = {
    "fused qkv": ((24, 20), {"rows": 3}, lambda x: x.chunk(3)),
    "grouped queries": ((16, 12), {"rows": [8, 4, 4]}, lambda x: x.split([8, 4, 4])),
    "heads of an output projection": ((12, 16), {"columns": 4}, lambda x: x.chunk(4, dim=1)),
    "rows and columns": (
        (8, 12),
        {"rows": 2, "columns": [4, 8]},
        lambda x: [part for row in x.chunk(2) for part in row.split([4, 8], dim=1)],
    ),
    "experts": ((5, 6, 10), {"stack": 1}, lambda x: x.unbind()),
    "experts with a fused gate": (
        (3, 16, 6),
        {"stack": 1, "rows": 2},
        lambda x: [part for expert in x.unbind() for part in expert.chunk(2)],
    ),
    "grouped convolution": ((8, 3, 2, 2), {"rows": 2}, lambda x: x.chunk(2)),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_updated_as_separate_matrices_are(case):
    shape, rule, cut = CASES[case]
    whole, parts = pair(shape, cut, rule)
    for block, part in zip(cut(whole), parts, strict=True):
        assert torch.equal(block, part)


def test_a_transposed_parameter_is_scaled_as_the_matrix_it_stands_for():
    """(in, out) storage with the scale sqrt(max(1, out / in))."""
    torch.manual_seed(0)
    stored = nn.Parameter(torch.randn(6, 24))
    plain = nn.Parameter(stored.detach().T.clone())
    stored.grad = gradient((6, 24), 2)
    plain.grad = stored.grad.T.clone()
    train([("blocks.0.stored.weight", stored)], {"*": {"transposed": True}})
    train([("blocks.0.plain.weight", plain)], {"*": "root"})
    torch.testing.assert_close(stored.T, plain, rtol=1e-6, atol=1e-7)


def test_every_block_has_a_threshold_of_its_own():
    """A block a thousand times louder must not decide what is an outlier in the others."""
    shape, rule, cut = CASES["fused qkv"]
    torch.manual_seed(0)
    whole = nn.Parameter(torch.zeros(shape))
    whole.grad = gradient(shape, 3)
    quiet = [part.clone() for part in cut(whole.grad)]
    whole.grad[:8] *= 1000
    train([("blocks.0.qkv.weight", whole)], {"*": rule}, steps=1)
    for index, part in enumerate(cut(whole)):
        alone = nn.Parameter(torch.zeros(8, 20))
        alone.grad = quiet[index]
        train([("blocks.0.alone.weight", alone)], {"*": "root"}, steps=1)
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_cut(copier):
    weight = nn.Parameter(torch.randn(24, 20))
    weight.grad = gradient((24, 20), 4)
    optimizer = train([("blocks.0.qkv.weight", weight)], {"*": {"rows": 3}}, steps=1)
    other_weight, other = copier((weight, optimizer))
    other_weight.grad = weight.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(weight, other_weight)


@pytest.mark.parametrize("saved", [torch.contiguous_format, torch.channels_last], ids=str)
def test_momentum_goes_on_in_whatever_order_it_was_saved(saved):
    """A convolution's may come from a run in which it lay in another order in memory."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(8, 4, 3, 3, generator=generator) for _ in range(5))

    def trained(layout):
        weight = nn.Parameter(start.clone())
        optimizer = ROOT([{"params": [weight], "role": "root"}], lr=1e-2)
        for number, gradient in enumerate(gradients):
            if number == 2:
                state = optimizer.state_dict()
                momentum = state["state"][0]["momentum_buffer"]
                state["state"][0]["momentum_buffer"] = momentum.contiguous(memory_format=layout)
                optimizer.load_state_dict(state)
            weight.grad = gradient
            optimizer.step()
        return weight, optimizer.state[weight]["momentum_buffer"]

    for found, expected in zip(trained(saved), trained(torch.preserve_format), strict=True):
        assert torch.equal(found, expected)
