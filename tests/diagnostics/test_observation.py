"""Norms of weights, matrix by matrix, against numpy in float64. Sharded ones: tests/distributed."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from lightning_root import ROOT
from lightning_root.diagnostics.observation import weight_norms

SHAPES = {"plain": (5, 8), "qkv": (12, 6), "filters": (4, 3, 2, 2), "experts": (3, 4, 5)}
RULES = {
    "plain": "root",
    "qkv": {"rows": [6, 4, 2]},
    "filters": "root",
    "experts": {"stack": 1, "columns": [2, 3]},
}


def optimizer_of(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["bias"] = torch.ones(7)
    return ROOT(
        [(name, Parameter(value.to(device, dtype))) for name, value in tensors.items()], rules=RULES
    )


def expected_of(optimizer):
    group = optimizer.param_groups[0]
    arrays = {
        name: p.detach().double().numpy()
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    query, key, value = np.split(arrays["qkv"], [6, 10])
    blocks = {
        "plain": [arrays["plain"]],
        "qkv": [query, key, value],
        "filters": [arrays["filters"]],
    }
    blocks["experts"] = [part for expert in arrays["experts"] for part in np.split(expert, [2], 1)]
    return {
        (name, number): np.sqrt((block**2).sum())
        for name, parts in blocks.items()
        for number, block in enumerate(parts)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_matrix_has_the_norm_of_its_own_entries(dtype):
    """In float32 or better, whatever they are kept in; parameters of AdamW have none."""
    optimizer = optimizer_of(dtype)
    found = weight_norms(optimizer)
    assert {norm.dtype for norm in found.values()} == {torch.promote_types(dtype, torch.float32)}
    assert not any(norm.requires_grad for norm in found.values())
    values = {key: float(norm) for key, norm in found.items()}
    assert values == pytest.approx(expected_of(optimizer), rel=1e-6)


def test_no_value_is_fetched_from_the_device():
    """A meta tensor has no values: reading one raises."""
    assert all(norm.is_meta for norm in weight_norms(optimizer_of(device="meta")).values())


def test_an_optimizer_without_matrices_has_none():
    assert weight_norms(ROOT([("bias", Parameter(torch.ones(3)))])) == {}
