"""The optimizer against the textbook twin, on every option of the matrix rule."""

import pytest
import torch

from lightning_root import ROOT, lookup
from tests.reference.root import root_step, twin_options

SHAPES = {
    "square": (12, 12),
    "wide": (8, 20),
    "tall": (20, 8),
    "another_wide": (8, 20),
    "row": (1, 7),
    "conv": (6, 3, 2, 2),
    "conv_tall": (30, 2, 3),
}
DEFAULTS = {
    "lr": 0.02,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "coefficients": "adaptive",
    "outlier_quantile": 0.9,
    "ns_steps": 5,
    "adjust_lr_fn": "match_rms_adamw",
    "maximize": False,
}
CHANGES = [
    {},
    {"lr": 0.3},
    {"lr": torch.tensor(0.02)},
    {"lr": torch.tensor([0.02], dtype=torch.float64)},
    {"weight_decay": 0.0},
    {"weight_decay": 1.5},
    {"momentum": 0.0},
    {"momentum": 0.5, "nesterov": False},
    {"nesterov": False},
    {"outlier_quantile": None},
    {"outlier_quantile": 0.5},
    {"outlier_quantile": 1.0},
    {"outlier_quantile": "auto"},
    {"ns_steps": 3},
    {"ns_steps": 9},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": None},
    {"adjust_lr_fn": "spectral_unclamped"},
    {"maximize": True},
    {"ns_form": "standard"},
    {"ns_form": "gram"},
    {"ns_form": "eigh"},
    {"coefficients": "published"},
    {"coefficients": "paper"},
    {"coefficients": "muon"},
    {"coefficients": "polar_express"},
    {"coefficients": "cans"},
    {"coefficients": (2.0, -1.5, 0.5)},
    {"coefficients": [(3.0, -3.2, 1.2), (1.5, -0.5, 0.0)], "ns_steps": 2},
]


def gradients(t):
    generator = torch.Generator().manual_seed(t)
    result = {}
    for name, shape in SHAPES.items():
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        outliers = torch.rand(shape, generator=generator) < 0.03
        gradient[outliers] *= 20
        gradient[torch.rand(shape, generator=generator) < 0.1] = 0
        result[name] = gradient
    return result


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=["f64", "f32"]
)
def test_agrees_with_the_textbook(change, dtype, tolerance):
    """Relative to the path travelled in 6 steps; float32 loses digits where the iteration is steep.

    CANS is steepest, at sigma = 1, which is where a single row is.
    """
    options = DEFAULTS | change
    if dtype == torch.float32 and options["coefficients"] == "cans":
        tolerance = 5e-3
    if isinstance(options["lr"], torch.Tensor) and options["lr"].dtype == torch.float32:
        tolerance = max(tolerance, 5e-5)  # 1 - lr * weight_decay is rounded to float32
    generator = torch.Generator().manual_seed(99)
    weights = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in SHAPES.items()
    }
    start = {name: weight.detach().double().clone() for name, weight in weights.items()}
    expected, momenta = (
        dict(start),
        {name: torch.zeros(s, dtype=torch.float64) for name, s in SHAPES.items()},
    )
    optimizer = ROOT([{"role": "root", "params": list(weights.items())}], **options)
    for t in range(6):
        for name, gradient in gradients(t).items():
            weights[name].grad = gradient.to(dtype)
            matrix = gradient.reshape(len(gradient), -1).shape
            triples = lookup(matrix, options["coefficients"], options["ns_steps"]).triples
            expected[name], momenta[name] = root_step(
                expected[name],
                gradient,
                momenta[name],
                **twin_options(options, triples),
            )
        optimizer.step()
    for name, weight in weights.items():
        path = (expected[name] - start[name]).norm()
        assert (weight.double() - expected[name]).norm() < tolerance * path, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_keep_float32_momentum_and_round_once(dtype):
    """Every step is the textbook's on the rounded weight: half a unit in the last place."""
    weight = torch.nn.Parameter(torch.randn(8, 20).to(dtype))
    optimizer = ROOT([{"role": "root", "params": [weight]}], lr=0.02, coefficients="muon")
    momentum = torch.zeros(8, 20, dtype=torch.float64)
    for t in range(4):
        weight.grad = gradients(t)["wide"].to(dtype)
        exact, momentum = root_step(
            weight.detach().double(),
            weight.grad.double(),
            momentum,
            lr=0.02,
            weight_decay=0.1,
            momentum=0.95,
            nesterov=True,
            p=0.9,
            triples=lookup((8, 20), "muon").triples,
            adjust="match_rms_adamw",
        )
        optimizer.step()
        assert optimizer.state[weight]["momentum_buffer"].dtype == torch.float32
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(weight.detach().double(), exact, rtol=0.51 * unit, atol=1e-4)


def test_same_shape_matrices_are_orthogonalized_together():
    """Plain and flattened matrices of equal size in one stack; tall ones in a stack of theirs."""
    seen = []
    shapes = [(8, 20), (20, 8), (8, 5, 2, 2), (9, 9)]
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = ROOT([{"role": "root", "params": weights}])
    optimizer.register_stack_hook(lambda stack: seen.append(tuple(stack.update.shape)))
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert sorted(seen) == [(1, 8, 20), (1, 9, 9), (2, 8, 20)]
