"""torch.optim's own Muon and AdamW as oracles."""

import copy

import pytest
import torch

from lightning_root import ROOT
from tests.helpers import params_by_role


def small_mlp():
    return torch.nn.Sequential(
        torch.nn.Linear(8, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 4),
    )


def train(model, optimizers, steps=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(32, 8, generator=generator, dtype=dtype)
        targets = torch.randn(32, 4, generator=generator, dtype=dtype)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    return dict(model.named_parameters())


def matrices_and_rest(model):
    return params_by_role(ROOT(model.parameters())).values()


def relative_differences(nesterov, adjust_lr_fn):
    """|ours - theirs| after 20 steps, per parameter: relative to the weight, and to its path."""
    torch.manual_seed(0)
    ours = small_mlp()
    theirs = copy.deepcopy(ours)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    options = {"lr": 1e-2, "weight_decay": 0.1}
    muon = {"nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    root = ROOT(ours.parameters(), coefficients="muon", outlier_quantile=None, **muon, **options)
    matrices, rest = matrices_and_rest(theirs)
    assert len(matrices) == 2
    result = train(ours, [root])
    expected = train(
        theirs,
        [
            torch.optim.Muon(matrices, **muon, **options),
            torch.optim.AdamW(rest, betas=(0.9, 0.95), **options),
        ],
    )
    with torch.no_grad():
        return {
            name: (
                float((result[name] - other).norm() / other.norm()),
                float((result[name] - other).norm() / (other - start[name]).norm()),
            )
            for name, other in expected.items()
        }


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_without_threshold_it_is_torchs_muon_and_adamw(nesterov, adjust_lr_fn):
    """To the bfloat16 rounding of torch's iteration: two units in the last place of the weights."""
    differences = relative_differences(nesterov, adjust_lr_fn)
    for name, (of_weight, _) in differences.items():
        assert of_weight < 2 * torch.finfo(torch.bfloat16).eps, name


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.usefixtures("torchs_muon_in_float32")
def test_it_is_torchs_muon_once_that_iterates_in_float32(nesterov, adjust_lr_fn):
    """Torch's unchanged code, with its cast to bfloat16 made a copy: what is left is round-off."""
    differences = relative_differences(nesterov, adjust_lr_fn)
    for name, (_, of_path) in differences.items():
        assert of_path < 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"maximize": True}])
def test_the_adamw_half_is_torchs_adamw_bit_for_bit(dtype, options):
    ours = small_mlp().to(dtype)
    theirs = copy.deepcopy(ours)
    common = {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3, **options}
    root = ROOT([{"role": "adamw", "params": list(ours.named_parameters())}], **common)
    result = train(ours, [root], dtype=dtype)
    expected = train(theirs, [torch.optim.AdamW(theirs.parameters(), **common)], dtype=dtype)
    for name, parameter in result.items():
        assert torch.equal(parameter, expected[name]), name


def test_low_precision_adamw_computes_in_float32_and_rounds_once():
    weight = torch.nn.Parameter(torch.randn(50).bfloat16())
    gradient = torch.randn(50).bfloat16()
    wide = torch.nn.Parameter(weight.detach().float())
    root = ROOT([{"role": "adamw", "params": [weight]}], lr=1e-2)
    adamw = torch.optim.AdamW([wide], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(3):
        weight.grad, wide.grad = gradient.clone(), gradient.float()
        before = weight.detach().float()
        wide.data.copy_(before)
        root.step()
        adamw.step()
        assert torch.equal(weight, wide.bfloat16())
