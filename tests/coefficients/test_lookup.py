"""Every name gives the triples it stands for; unbounded sets are refused with the reason."""

from typing import get_args

import numpy as np
import pytest
import torch

from lightning_root import fit_coefficients, lookup
from lightning_root.coefficients import (
    COEFFICIENT_NAMES,
    CoefficientName,
    output_range,
    save_coefficients,
    training_model,
)
from lightning_root.coefficients.published import (
    AUTHORS_SCRIPT,
    MUON,
    NEWTON_SCHULZ,
    PUBLISHED,
    TABLE_1,
)
from lightning_root.coefficients.solver import equioscillating
from lightning_root.coefficients.store import RATIOS, ROWS, grid_shape, nearest, shipped
from lightning_root.functional import newton_schulz

CANS = PUBLISHED["cans"].triples
POLAR_EXPRESS = PUBLISHED["polar_express"].triples


@pytest.mark.parametrize("steps", range(1, 13))
def test_the_default_never_exceeds_1_3_even_past_1(steps):
    low, high = output_range(lookup((3, 4), "adaptive", steps).triples, upper=1.02)
    assert low >= 0
    assert high <= 1.3


@pytest.mark.parametrize("steps", range(1, 9))
def test_nothing_in_the_shipped_table_exceeds_1_3_even_past_1(steps):
    for rows in ROWS:
        for ratio in RATIOS:
            triples, shape = shipped(grid_shape(rows, ratio), steps)
            assert shape == grid_shape(rows, ratio)
            low, high = output_range(triples, upper=1.02)
            assert low >= 0
            assert high <= 1.3


@pytest.mark.parametrize("steps", [3, 4, 5, 6])
@pytest.mark.parametrize("shape", [(48, 48), (192, 768), (320, 320), (768, 3072), (1536, 8960)])
def test_a_shape_between_loses_little_against_a_schedule_of_its_own(shape, steps):
    """A fit also starts from the table's schedule, so it is no worse."""
    table = lookup(shape, "adaptive", steps)
    spectrum = training_model(*shape, steps)
    own = fit_coefficients(shape, steps, spectrum, starts=[table.triples])
    loss = spectrum.mean_square_error(table.triples) - own.mse
    assert loss <= (0.1 if steps < 5 else 0.03) * own.mse + 1e-4


@pytest.mark.parametrize(("steps", "floor"), [(4, 0.15), (5, 0.6), (6, 0.6), (8, 0.6)])
def test_the_default_brings_small_singular_values_up(steps, floor):
    for shape in ((64, 64), (768, 768), (768, 3072), (4096, 4096), (16384, 53248)):
        low, high = output_range(lookup(shape, steps=steps).triples, lower=1e-3)
        assert low > floor
        assert high < 1.16


@pytest.mark.parametrize("shape", [(320, 320), (512, 512), (300, 900), (1000, 1500), (128, 2048)])
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


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("steps", [5, 6, 8])
def test_others_schedules_are_bounded_past_1_too(name, steps):
    assert output_range(lookup((7, 9), name, steps).triples, upper=1.02)[1] <= 1.3


def test_the_default_depends_on_the_shape_and_not_on_its_order():
    assert lookup((768, 3072)).triples != lookup((768, 768)).triples
    assert lookup((3072, 768)) == lookup((768, 3072))
    assert nearest((760, 770)) == nearest((768, 768))


def test_names_give_their_numbers():
    assert lookup((7, 9), "muon").triples == (MUON,) * 5
    assert lookup((3072, 2048), "paper").triples == (TABLE_1[2048, 3072],) * 5
    assert lookup((3072, 2048), "published").triples == (AUTHORS_SCRIPT[2048, 3072],) * 5
    assert lookup((768, 768), "published").triples == (MUON,) * 5
    assert lookup((7, 9), "cans").triples[-1] == CANS[-1]
    assert lookup((7, 9), "cans", 3).triples == lookup((7, 9), "cans").triples[:3]
    a, b, c = lookup((7, 9), "polar_express").triples[0]
    margin = 1.01 * 1.02  # the authors' and ours
    assert (a * margin, b * margin**3, c * margin**5) == pytest.approx(
        (8.28721, -23.59588, 17.30038), abs=1e-4
    )


@pytest.mark.parametrize("name", ["cans", "polar_express"])
def test_room_for_round_off_is_a_division_of_what_enters_a_step(name):
    """By 1.02 before the first step, by one unit of bfloat16 before those between."""
    published = {"cans": CANS, "polar_express": POLAR_EXPRESS}[name][:5]
    x = y = torch.linspace(0, 1, 101, dtype=torch.float64)
    divisors = [1.02, *[1 + 2**-8] * 4]
    if name == "cans":
        divisors[4] = 1.0  # its last; Polar Express goes on
    for (a, b, c), (d, e, f), by in zip(
        lookup((7, 9), name).triples, published, divisors, strict=True
    ):
        x = a * x + b * x**3 + c * x**5
        y = y / by
        y = d * y + e * y**3 + f * y**5
    assert torch.allclose(x, y)


@pytest.mark.parametrize("name", ["adaptive", "paper", *PUBLISHED])
@pytest.mark.parametrize("steps", [5, 6, 8])
def test_no_schedule_overflows_in_bfloat16(name, steps):
    """Constant, blockwise constant and equal singular values: where round-off adds up coherently.

    CANS as published ends at 1e11 on the first of them.
    """
    triples = lookup((256, 512), name, steps).triples
    orthogonal = torch.linalg.qr(torch.randn(64, 64))[0]
    for rank in (1, 2, 3, 5, 6, 7, 9, 16, 27):
        block = torch.block_diag(*[torch.ones(64 // rank, 96 // rank)] * rank)
        equal = orthogonal[:, :rank] @ torch.linalg.qr(torch.randn(96, rank))[0].T
        for matrix in (block, equal):
            update = newton_schulz(matrix, triples, dtype=torch.bfloat16)
            assert torch.linalg.matrix_norm(update.double(), 2) < 1.35


def test_the_names_that_type_checkers_know_are_those_that_are_looked_up():
    assert get_args(CoefficientName) == COEFFICIENT_NAMES


def quintic_of_modded_nanogpt(matrix):
    """As KellerJordan/modded-nanogpt, train_gpt_medium.py, writes it, but for bfloat16."""
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_quintic_is_the_published_iteration_as_it_stands():
    matrix = torch.randn(48, 96, dtype=torch.float64)
    found = lookup((48, 96), "quintic")
    expected = quintic_of_modded_nanogpt(matrix)
    update = newton_schulz(matrix, found.triples)
    torch.testing.assert_close(update, expected, rtol=1e-6, atol=1e-6)
    assert lookup((48, 96), "quintic", 7).triples == (*found.triples, *[NEWTON_SCHULZ] * 2)


def test_quintic_needs_no_room_for_round_off():
    """Past 1, with each value off by a unit of bfloat16 at every step, and in bfloat16 itself."""
    found = lookup((64, 96), "quintic")
    assert output_range(found.triples, upper=1.02, slack=2.0**-8)[1] < 1.15
    assert found.stable_up_to > lookup((64, 96), "muon").stable_up_to > 1.2
    assert found.bfloat16_error < lookup((64, 96), "muon").bfloat16_error


def test_as_published_cans_overflows_in_bfloat16():
    """Why `lookup` leaves room; also that the test above can fail."""
    update = newton_schulz(torch.ones(64, 96), CANS, dtype=torch.bfloat16)
    assert torch.linalg.matrix_norm(update.double(), 2) > 1e3


@pytest.mark.parametrize("name", COEFFICIENT_NAMES)
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_every_name_has_every_length(name, steps):
    result = lookup((6, 8), name, steps)
    assert len(result.triples) == result.steps == steps
    assert result.certificate == output_range(result.triples)
    assert type(result).from_json(result.to_json()) == result


def test_explicit_triples():
    assert lookup((6, 8), (2.0, -1.5, 0.5), 3).triples == ((2.0, -1.5, 0.5),) * 3
    assert lookup((6, 8), [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)], 2).triples[1] == (1.5, -0.5, 0.0)
    with pytest.raises(ValueError, match=r"holds 2 triples.* `steps` is 5"):
        lookup((6, 8), [(2.0, -1.5, 0.5)] * 2)


def test_a_mapping_gives_each_shape_its_own_and_the_rest_the_default():
    own = ((2.0, -1.5, 0.5),) * 5
    mapping = {"6x8": own, "otherwise": "muon"}
    assert lookup((8, 6), mapping).triples == own
    assert lookup((7, 9), mapping).triples == (MUON,) * 5
    assert lookup((7, 9), {"6x8": own}) == lookup((7, 9), "adaptive")
    with pytest.raises(ValueError, match=r"holds 5 triples.* `steps` is 4"):
        lookup((6, 8), mapping, 4)


def test_a_json_file_gives_each_shape_its_own_and_the_rest_the_default(tmp_path):
    path = str(tmp_path / "mine.json")
    sets = [fit_coefficients((24, 40), steps) for steps in (3, 4)]
    save_coefficients(path, sets)
    assert lookup((40, 24), path, 3).triples == sets[0].triples
    assert lookup((24, 40), path, 4).triples == sets[1].triples
    assert lookup((24, 41), path, 4) == lookup((24, 41), "adaptive", 4)
    with pytest.raises(ValueError, match=r"holds schedules of \[3, 4\] steps for shapes, not of 5"):
        lookup((24, 40), path)
    with pytest.raises(ValueError, match=r"nowhere\.json` cannot be read: No such file"):
        lookup((24, 40), str(tmp_path / "nowhere.json"))


def test_the_error_that_a_lookup_states_is_that_on_gaussian_matrices():
    matrix = torch.randn(200, 600, generator=torch.Generator().manual_seed(1))
    sigma = torch.linalg.svdvals(matrix).double() / matrix.norm()
    found = lookup((200, 600), "muon")
    for a, b, c in found.triples:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    assert found.mse == pytest.approx((sigma - 1).square().mean().item(), rel=0.05)
    assert found.spectrum == "Gaussian 200x600"


def test_the_unstable_published_triple_is_let_through_up_to_5_steps_only():
    assert lookup((2048, 2048), "published", 5).certificate[1] > 3
    with pytest.raises(ValueError, match=r"unbounded: .* Take fewer steps"):
        lookup((2048, 2048), "published", 6)


@pytest.mark.parametrize(
    ("coefficients", "steps", "message"),
    [
        ("muno", 5, r"must be one of \['adaptive', .*\], a JSON file, a triple .*, got 'muno'"),
        ("muon", 0, "`steps` must be a whole number >= 1, got 0"),
        ("muon", True, "`steps` must be a whole number >= 1, got True"),
        ((5.0, 1.0, 1.0), 5, "unbounded"),
    ],
)
def test_bad_input_is_named(coefficients, steps, message):
    with pytest.raises(ValueError, match=message):
        lookup((6, 8), coefficients, steps)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_set_is_refused_on_either_side_of_zero(sign):
    assert lookup((6, 8), (sign * 2.0, 0.0, 0.0), 1).certificate == (
        min(0, sign * 2),
        max(0, sign * 2),
    )
    with pytest.raises(ValueError, match="unbounded"):
        lookup((6, 8), (sign * 2.01, 0.0, 0.0), 1)


@pytest.mark.parametrize("shape", [(3, 4), (768, 768)])
def test_beyond_eight_steps_the_classical_one_follows(shape):
    triples = lookup(shape, "adaptive", 10).triples
    assert triples[8:] == (NEWTON_SCHULZ,) * 2
    assert NEWTON_SCHULZ not in triples[:8]


@pytest.mark.parametrize(("lower", "upper"), [(0.01, 1.0), (0.3, 1.0), (0.5, 2.0), (0.9, 0.95)])
def test_the_worst_error_of_a_minimax_step_alternates(lower, upper):
    """Chebyshev's theorem: four extremes of one size and of alternating sign, and none larger."""
    a, b, c = equioscillating(lower, upper)
    x = np.linspace(lower, upper, 200_001)
    error = a * x + b * x**3 + c * x**5 - 1
    inner = np.flatnonzero(np.diff(np.sign(np.diff(error)))) + 1
    extremes = error[[0, *inner, -1]]
    worst = np.abs(error).max()
    assert len(extremes) == 4
    np.testing.assert_allclose(extremes, worst * np.array([-1, 1, -1, 1]), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (2.0, 2.0005), (0.4999, 0.5)])
def test_where_nothing_is_left_to_flatten_the_classical_step_is_taken(lower, upper):
    """p = 1 and p' = p'' = 0 in the middle."""
    a, b, c = equioscillating(lower, upper)
    middle = 0.5 * (lower + upper)
    p = np.polynomial.Polynomial([0, a, 0, b, 0, c])
    found = [p(middle), p.deriv(1)(middle), p.deriv(2)(middle)]
    assert found == pytest.approx([1, 0, 0], abs=1e-12)
