"""All forms of the iteration compute p_T on the singular values; the oracle is an SVD by numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root import lookup
from lightning_root.coefficients.published import MUON, NEWTON_SCHULZ, PUBLISHED
from lightning_root.functional import newton_schulz
from lightning_root.functional.orthogonalize import iterate
from lightning_root.kernels import orthogonalize
from lightning_root.kernels.forms import Products, evaluate, segments

CANS = PUBLISHED["cans"].triples

FORMS = ["standard", "gram", "eigh"]
ITERATIONS = [*FORMS, "auto"]
SHAPES = [(1, 1), (1, 9), (7, 7), (12, 40), (40, 12), (3, 16, 20), (2, 3, 9, 5), (300, 310)]


def by_svd(matrix, triples):
    """U p_T(S / ||S||) V' in float64."""
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    s = s / np.where(norm == 0, 1.0, norm)
    for a, b, c in triples:
        s = s * (a + s**2 * (b + c * s**2))
    return torch.from_numpy((u * s[..., None, :]) @ vh)


def relative(result, expected):
    """Distance in units of the expected matrix's norm, or of one where that is zero."""
    return ((result.double() - expected).norm() / max(expected.norm(), 1.0)).item()


def matrix_of(kind, *shape, seed=0):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
    if kind == "rank one":
        return (matrix[..., :1] @ matrix[..., :1, :]).float()
    if kind == "decaying":
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        s = torch.logspace(0, -9, s.shape[-1], dtype=torch.float64)
        return ((u * s) @ vh).float()
    return (matrix * {"plain": 1.0, "tiny": 1e-36, "huge": 1e36, "zero": 0.0}[kind]).float()


@pytest.mark.parametrize("form", ITERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "tiny", "huge", "zero"])
def test_every_form_is_the_polynomial_of_the_singular_values(form, shape, kind):
    matrix = matrix_of(kind, *shape)
    triples = lookup(shape[-2:]).triples
    result = orthogonalize(matrix, triples, form=form)
    assert result.shape == matrix.shape
    assert result.dtype == matrix.dtype
    assert relative(result, by_svd(matrix, triples)) < 1e-3


@pytest.mark.parametrize("form", ITERATIONS)
@pytest.mark.parametrize("shape", [(40, 40), (64, 200), (4, 48, 64), (300, 310)], ids=str)
@pytest.mark.parametrize("kind", ["rank one", "decaying"])
def test_forms_stand_badly_conditioned_matrices(form, shape, kind):
    """Singular values below 1e-7 of the largest are rounding and may come out as any small ones."""
    matrix = matrix_of(kind, *shape)
    triples = lookup(shape[-2:]).triples
    assert relative(orthogonalize(matrix, triples, form=form), by_svd(matrix, triples)) < 2e-2


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([(MUON,) * 5, CANS, (NEWTON_SCHULZ,) * 3, ((1.0, 0.0, 0.0),)]),
    st.integers(0, 99),
)
def test_in_float64_forms_agree_with_the_plain_iteration(form, m, n, triples, seed):
    matrix = matrix_of("plain", m, n, seed=seed).double()
    result = orthogonalize(matrix, triples, form=form)
    assert relative(result, newton_schulz(matrix, triples)) < 1e-8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [6, 8, 12])
@pytest.mark.parametrize("kind", ["plain", "rank one", "decaying"])
def test_long_schedules_stay_bounded(form, steps, kind):
    """Without a Gram matrix made anew its rounding would diverge from about the eighth step on."""
    matrix = matrix_of(kind, 96, 128)
    triples = lookup((96, 128), steps=steps).triples
    largest = torch.linalg.matrix_norm(orthogonalize(matrix, triples, form=form), 2)
    assert largest < 1.2


def test_the_gram_matrix_is_made_anew_before_rounding_grows_large():
    """The rule itself: slopes at zero multiply the rounding of R by their square."""
    triples = ((8.0, 0.0, 0.0),) * 6
    parts = segments(triples, torch.float32)
    assert sum(parts, ()) == triples
    assert [len(part) for part in parts] == [4, 2]  # 8^3 < 648 = sqrt(0.05 / 2^-23) < 8^4
    assert len(segments(triples, torch.float64)) == 1
    assert [len(part) for part in segments(triples, torch.float16)] == [1] * 6


def test_one_segment_too_long_would_diverge(monkeypatch):
    """That the test above can fail: eight steps on one Gram matrix in float32."""
    matrix = matrix_of("decaying", 96, 128)
    triples = lookup((96, 128), steps=12).triples
    monkeypatch.setattr("lightning_root.kernels.forms.segments", lambda triples, dtype: [triples])
    result = orthogonalize(matrix, triples, form="gram")
    assert not torch.linalg.matrix_norm(result.nan_to_num(nan=1e9), 2) < 1.2


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16), (3, 20, 30)], ids=str)
def test_polar_is_the_polar_factor(shape):
    matrix = matrix_of("plain", *shape)
    u, _, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    assert relative(orthogonalize(matrix, (), form="polar"), torch.from_numpy(u @ vh)) < 1e-5


def test_polar_leaves_out_what_a_matrix_does_not_have():
    """Of rank one: the one direction, with singular value 1; of a zero matrix: zero."""
    column, row = torch.randn(30, 1), torch.randn(1, 50)
    result = orthogonalize(column @ row, (), form="polar")
    expected = (column / column.norm()) @ (row / row.norm())
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert not orthogonalize(torch.zeros(5, 6), (), form="polar").any()


@pytest.mark.parametrize("form", [*ITERATIONS, "polar"])
def test_a_matrix_that_is_not_finite_gives_nothing_finite_in_its_place(form):
    matrix = torch.randn(2, 8, 12)
    matrix[0, 3, 3] = torch.nan
    result = orthogonalize(matrix, lookup((8, 12)).triples, form=form)
    assert not result[0].isfinite().all()


@pytest.mark.parametrize("form", ["gram", "standard"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_within_its_rounding(form, dtype):
    """Also in Gram space, where one Gram matrix for all five steps explodes in bfloat16."""
    matrix = matrix_of("plain", 64, 160)
    triples = lookup((64, 160)).triples
    result = orthogonalize(matrix, triples, form=form, dtype=dtype)
    assert relative(result, by_svd(matrix, triples)) < (0.08 if dtype == torch.bfloat16 else 0.03)


def test_a_transposed_view_is_answered_in_kind():
    """So that tall parameters are updated without a copy."""
    matrix = torch.randn(200, 60).mT
    for form in FORMS:
        for stack in (matrix, torch.stack([matrix.mT] * 2).mT):
            result = orthogonalize(stack, lookup((60, 200)).triples, form=form)
            assert result.stride() == stack.stride()


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match=r"`form` must be one of \['auto', .*got 'fast'"):
        orthogonalize(torch.eye(3), (MUON,), form="fast")


@pytest.mark.parametrize("form", ["standard", "gram"])
def test_other_ways_to_the_products_are_given_what_they_ask_for(form):
    """`symmetric` the factors, `quadratic` a symmetric matrix and two of the triple's numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    triples = [(3.4445, -4.7750, 2.0315)] * 3
    products = Products(
        lambda a, b, mirror=True: torch.einsum("kmn,knp->kmp", a, b),
        lambda r, b, c: b * r + c * torch.einsum("kmn,knp->kmp", r, r),
    )
    unit = x / x.norm(dim=(-2, -1), keepdim=True)
    found = evaluate(x, triples, form, products=products)
    torch.testing.assert_close(found, iterate(unit, triples), rtol=1e-12, atol=1e-12)
