"""What makes a step fast changes nothing but rounding: forms, threads, stacks, memory."""

import pytest
import torch

from examples.benchmarks.speed.memory import allocated
from lightning_root import ROOT
from lightning_root.optim import local
from lightning_root.optim.stages.apply import apply_update_

SHAPES = (
    [(40, 40)] * 3 + [(24, 90)] * 5 + [(90, 24)] * 2 + [(16, 3, 3, 3)] * 2 + [(300, 310), (7, 5)]
)


def trained(steps=3, hooks=False, shapes=SHAPES, dtype=torch.float32, **options):
    """Weights after some steps on gradients of different sizes."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes
    ]
    optimizer = ROOT([{"role": "root", "params": weights}], lr=0.02, **options)
    seen = []
    if hooks:
        optimizer.register_stack_hook(lambda stack: seen.append(stack.update.sum()))
    for _ in range(steps):
        for number, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator) * 10.0 ** (number % 7 - 3)
            weight.grad = gradient.to(dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_threads_changes_only_rounding(threads, count):
    """In float64: products of other sizes round differently, and float32 shows it most."""
    alone = trained(ns_form="gram", dtype=torch.float64)
    threads(count)
    for a, b in zip(alone, trained(ns_form="gram", dtype=torch.float64), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hooks_change_no_bit(threads, count):
    threads(count)
    pairs = zip(trained(), trained(hooks=True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_from_run_to_run_no_bit_changes(threads):
    threads(2)
    first, second = trained(), trained()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("elements", [1, 3000, 1 << 30])
def test_how_many_go_into_a_stack_changes_only_rounding(monkeypatch, elements):
    usual = trained(steps=1, ns_form="gram")
    monkeypatch.setitem(local.STACK_ELEMENTS, "cpu", elements)
    other = trained(steps=1, ns_form="gram")
    for a, b in zip(usual, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_half_of_the_precision_gives_the_same_update():
    """bfloat16 parameters iterate in float32 on a CPU: they differ by their own rounding alone."""
    exact, rounded = trained(steps=1), trained(steps=1, dtype=torch.bfloat16)
    for weight, low in zip(exact, rounded, strict=True):
        torch.testing.assert_close(low.float(), weight, rtol=2**-7, atol=2e-3)


@pytest.mark.parametrize(
    "shapes", [[(400, 1600)] * 3, [(500, 500)] * 4, [(64, 256)] * 64, [(1600, 400)] * 2]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_needs_little_memory_beside_the_state(shapes, dtype):
    """Three times what is orthogonalized at a time, five times one large matrix, however many.

    Of the five, an eigendecomposition takes three where the matrix is square.
    """
    weights = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = ROOT([{"role": "root", "params": weights}])
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()  # makes the state
    peak = allocated(optimizer.step)
    matrix = weights[0].numel()
    batch = min(local.STACK_ELEMENTS["cpu"], matrix * len(weights))
    assert 0 < peak <= 4 * max(3 * batch, 5 * matrix) + (64 << 10)


@pytest.mark.parametrize(
    "of_weight, of_update",
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "lay", [lambda w: w, lambda w: w.mT.contiguous().mT], ids=["rows", "turned"]
)
def test_a_weight_takes_its_update_to_the_bit_however_it_is_cut(lay, of_weight, of_update):
    """Cuts at any entry, strided memory, updates that travelled in bfloat16; rounded once."""
    generator = torch.Generator().manual_seed(0)
    weight, update = (torch.randn(37, 41, generator=generator) for _ in range(2))
    weight, update = weight.to(of_weight), update.to(of_update)
    options = {"lr": 0.02, "weight_decay": 0.1, "weight_decay_mode": "decoupled"}
    exact = (1 - 0.02 * 0.1) * weight.double() - 0.02 * 3.0 * update.double()
    whole = weight.clone()
    apply_update_([whole], [update], 3.0, options)
    half_unit = torch.finfo(of_weight).eps / 2 if of_weight.itemsize == 2 else 0.0
    torch.testing.assert_close(whole.double(), exact, rtol=half_unit, atol=1e-6)
    for row, column in ((1, 1), (16, 8), (29, 40), (36, 17)):
        cut = lay(weight.clone())
        blocks = [(slice(row), slice(None)), (slice(row, None), slice(column))]
        blocks.append((slice(row, None), slice(column, None)))
        apply_update_([cut[b] for b in blocks], [update[b] for b in blocks], 3.0, options)
        assert torch.equal(cut, whole)
