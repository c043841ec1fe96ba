"""Every name gives the triples it stands for; unbounded sets are refused with the reason."""

import pytest
import torch

from lightning_root import lookup
from lightning_root.coefficients import COEFFICIENT_NAMES, output_range
from lightning_root.coefficients.schedules import CANS, MUON, PUBLISHED, TABLE_1


@pytest.mark.parametrize("steps", range(1, 13))
def test_the_default_never_exceeds_1_3_even_past_1(steps):
    low, high = output_range(lookup((3, 4), "adaptive", steps).triples, upper=1.02)
    assert low >= 0
    assert high <= 1.3


@pytest.mark.parametrize(("steps", "floor"), [(4, 0.61), (5, 0.97), (6, 0.98), (8, 0.99)])
def test_the_default_brings_small_singular_values_up(steps, floor):
    """From 3e-3 of the norm on, the range that the schedules were fitted to."""
    low, high = output_range(lookup((3, 4), steps=steps).triples, lower=3e-3)
    assert low > floor
    assert high < 1.11


@pytest.mark.parametrize("shape", [(512, 512), (300, 900), (1000, 1500), (128, 2048)])
@pytest.mark.parametrize("other", ["muon", "polar_express", "cans"])
def test_the_default_beats_the_published_schedules_on_gaussian_matrices(shape, other):
    """Mean (sigma - 1)^2 by SVD, for shapes that the default was not fitted to."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.linalg.svdvals(matrix).double() / matrix.norm()

    def error(name):
        x = sigma
        for a, b, c in lookup(shape, name).triples:
            x = a * x + b * x**3 + c * x**5
        return (x - 1).square().mean().item()

    assert error("adaptive") < error(other)


def test_names_give_their_numbers():
    assert lookup((7, 9), "muon").triples == (MUON,) * 5
    assert lookup((3072, 2048), "paper").triples == (TABLE_1[2048, 3072],) * 5
    assert lookup((3072, 2048), "published").triples == (PUBLISHED[2048, 3072],) * 5
    assert lookup((768, 768), "published").triples == (MUON,) * 5
    assert lookup((7, 9), "cans").triples == CANS
    assert lookup((7, 9), "cans", 3).triples == CANS[:3]
    a, b, c = lookup((7, 9), "polar_express").triples[0]
    assert (a * 1.01, b * 1.01**3, c * 1.01**5) == pytest.approx(
        (8.28721, -23.59588, 17.30038), abs=1e-4
    )


@pytest.mark.parametrize("name", COEFFICIENT_NAMES)
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_every_name_has_every_length(name, steps):
    result = lookup((6, 8), name, steps)
    assert len(result.triples) == steps
    assert result.certificate == output_range(result.triples)


def test_explicit_triples():
    assert lookup((6, 8), (2.0, -1.5, 0.5), 3).triples == ((2.0, -1.5, 0.5),) * 3
    assert lookup((6, 8), [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)], 2).triples[1] == (1.5, -0.5, 0.0)
    with pytest.raises(ValueError, match=r"holds 2 triples.* `steps` is 5"):
        lookup((6, 8), [(2.0, -1.5, 0.5)] * 2)


def test_the_unstable_published_triple_is_let_through_up_to_5_steps_only():
    assert lookup((2048, 2048), "published", 5).certificate[1] > 3
    with pytest.raises(ValueError, match=r"unbounded: .* Take fewer steps"):
        lookup((2048, 2048), "published", 6)


@pytest.mark.parametrize(
    ("coefficients", "steps", "message"),
    [
        ("muno", 5, r"must be one of \['adaptive', .*\], a triple .*, got 'muno'"),
        ("muon", 0, "`steps` must be a whole number >= 1, got 0"),
        ("muon", True, "`steps` must be a whole number >= 1, got True"),
        ((5.0, 1.0, 1.0), 5, "unbounded"),
    ],
)
def test_bad_input_is_named(coefficients, steps, message):
    with pytest.raises(ValueError, match=message):
        lookup((6, 8), coefficients, steps)
