"""Symmetric products in blocks, against the whole product in float64."""

import pytest
import torch

from lightning_root.kernels import symmetric_product
from lightning_root.kernels.forms import quadratic


@pytest.mark.parametrize("m", [5, 255, 256, 300, 384, 513, 800])
@pytest.mark.parametrize("n", [1, 300])
def test_it_is_the_product_and_symmetric(m, n):
    x = torch.randn(m, n, generator=torch.Generator().manual_seed(m))
    result = symmetric_product(x, x.mT)
    exact = x.double() @ x.double().mT
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5 * n)
    if m >= 256:
        below = torch.tril(torch.ones(m, m, dtype=torch.bool), -256)
        assert torch.equal(result[below], result.mT[below])  # mirrored, not computed twice


def test_without_a_mirror_the_lower_triangle_is_right():
    x = torch.randn(700, 40, generator=torch.Generator().manual_seed(0))
    whole = symmetric_product(x, x.mT)
    assert torch.equal(symmetric_product(x, x.mT, mirror=False).tril(), whole.tril())


@pytest.mark.parametrize("shape", [(3, 20), (300, 300), (2, 4, 30)])
def test_a_quadratic_of_a_symmetric_matrix(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    r = x @ x.mT / x.square().sum()
    exact = -1.5 * r.double() + 0.7 * r.double() @ r.double()
    torch.testing.assert_close(quadratic(r, -1.5, 0.7).double(), exact, rtol=0, atol=1e-6)
