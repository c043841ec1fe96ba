"""Coefficients for one shape, fitted to the singular values that its matrices have.

The paper minimises the mean of (sigma_out - 1)^2 after T steps with one triple for all steps (ROOT,
arXiv:2511.20626, Sec. 3.2). Given the spectrum that mean is an integral, so a fit needs neither
random matrices nor decompositions; and nothing demands that all steps use the same triple.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from lightning_root.coefficients.certificate import compose, output_range
from lightning_root.coefficients.published import MUON, TABLE_1
from lightning_root.coefficients.record import Coefficients, certified
from lightning_root.coefficients.shapes import check_shape
from lightning_root.coefficients.solver import Targets, descend, greedy_schedule
from lightning_root.coefficients.spectra import Spectrum, log_uniform, marchenko_pastur, mixture
from lightning_root.functional import Triple

MAX_INPUT = 1.02  # round-off pushes singular values past 1, in bfloat16 by less than this
MAX_OUTPUT = 1.3  # no fitted set sends a singular value in [0, `MAX_INPUT`] above this
# Nor does a schedule with a triple per step when every singular value is off by this share, one
# unit of bfloat16, at every step. The steepest schedules that ignore round-off are a little better
# on paper, and overflow in practice: published ones turn a constant matrix into 1e11.
SLACK = 2.0**-8
_PRICE = 10.0  # of the mean squared violation of a bound, beside the mean square error
_MARGIN = 0.005  # how far p_T may break a bound, which are all set tighter by this much
_ROUNDS = 8


def fit_coefficients(
    shape: Sequence[int],
    steps: int = 5,
    spectrum: Spectrum | None = None,
    *,
    per_step: bool = True,
    starts: Sequence[Sequence[Triple]] = (),
) -> Coefficients:
    """Fit coefficients for matrices of one shape: float64, deterministic, less than a second.

    The mean of (p_T(sigma) - 1)^2 over the spectrum is minimised (arXiv:2511.20626, Sec. 3.2) among
    schedules that send no singular value in [0, 1.02] outside [0, 1.3]. With a triple for every
    step p_T is also asked to stay below 1.15 on [0, 1] and, from 5 steps on, above 0.6 on
    [1e-3, 1].

    Args:
        shape: (m, n) in either order.
        steps: T, from 1 to 12.
        spectrum: Which singular values the matrices have. Default: the Gaussian law of the shape,
            with 3 % log-uniform in [1e-3, 1] where every step has its own triple. `training_model`
            is what the default coefficients are fitted to; `SpectrumHistogram` holds measured ones.
        per_step: A triple for every step; False fits one triple for all, as the paper does.
        starts: Schedules of T triples to start from, besides the standing ones.

    Returns:
        The coefficients, whose `mse` is that on the spectrum.

    Raises:
        ValueError: If `shape` or `steps` is out of range.

    Example:
        >>> from lightning_root import fit_coefficients
        >>> paper = fit_coefficients((2048, 3072), per_step=False)  # Table 1: 2.9091, MSE 0.0024
        >>> round(paper.triples[0][0], 2), round(paper.mse, 4)
        (2.91, 0.0024)
        >>> from lightning_root.coefficients import marchenko_pastur
        >>> per_step = fit_coefficients((2048, 3072)).triples
        >>> marchenko_pastur(2048, 3072).mean_square_error(per_step) < 0.0002
        True
    """
    m, n = check_shape(shape)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 12:
        raise ValueError(f"`steps` must be a whole number from 1 to 12, got {steps!r}; 5 is usual")
    if spectrum is None:
        spectrum = marchenko_pastur(m, n)
        if per_step:
            spectrum = mixture((0.97, spectrum), (0.03, log_uniform()))
    triples = fit_schedule(spectrum, steps, per_step=per_step, starts=starts)
    source = f"{'a triple per step' if per_step else 'one triple'}, fitted to {spectrum.name}"
    return certified(triples, source, shape=(m, n), spectrum=spectrum)


def fit_schedule(
    spectrum: Spectrum,
    steps: int,
    *,
    per_step: bool = True,
    starts: Sequence[Sequence[Triple]] = (),
) -> tuple[Triple, ...]:
    """Find the schedule with the smallest mean of (p_T(sigma) - 1)^2 among the bounded ones."""
    # Bounds are demanded at a few hundred points; where p_T breaks one between them, that point is
    # added and the fit goes on (the exchange method of semi-infinite programming).
    single: Sequence[Sequence[Triple]] = [(triple,) * steps for triple in (MUON, *TABLE_1.values())]
    first = [*starts, *(minimax_schedules(steps) if per_step else single)]
    schedules = torch.tensor(first, dtype=torch.float64, device="cpu")
    bounds, one = _bounds(per_step, steps), torch.ones_like(spectrum.sigma)
    demands = Targets(spectrum.sigma, one, one, spectrum.weight, one) + _thinned(bounds)
    muon = torch.tensor([(MUON,) * steps], dtype=torch.float64, device="cpu")
    found = _ranked(muon, spectrum, bounds)  # bounded at any length: there is always a result
    found += _ranked(schedules, spectrum, bounds)
    for _ in range(_ROUNDS):
        schedules, _ = descend(schedules, demands, shared=not per_step)
        found += _ranked(schedules, spectrum, bounds)
        broken = _broken(schedules, bounds)
        if not broken[0].any() and is_bounded(_as_triples(schedules[0])):
            break
        missed = _chosen(bounds, broken.any(0))
        demands = demands + replace(missed, weight=torch.ones_like(missed.x))
    return min(found)[1]


def is_bounded(triples: Sequence[Triple]) -> bool:
    """Return whether no value in [0, 1.02] is sent outside [0, 1.3], round-off included."""
    slack = SLACK if len(set(triples)) > 1 else 0.0
    low, high = output_range(triples, upper=MAX_INPUT / (1.0 + slack), slack=slack)
    return low >= 0.0 and high <= MAX_OUTPUT


@lru_cache(maxsize=16)
def _bounds(per_step: bool, steps: int) -> Targets:
    """Return bounds at 6400 inputs up to 1, and at as many up to 1.02 with round-off."""
    small = torch.logspace(-4, -1, 1600, dtype=torch.float64, device="cpu")
    large = torch.linspace(0.1, 1.0, 4801, dtype=torch.float64, device="cpu")
    x = torch.cat([small, large[1:]])
    one = torch.ones_like(x)
    low = (2.0 * x).clamp(max=0.1)  # positive: no direction is ever turned round
    price = one * (_PRICE / len(x))
    high = one * (MAX_OUTPUT - 0.05 - _MARGIN)
    stretch = 1.0 + (SLACK if per_step else 0.0)
    safe = Targets(x * (MAX_INPUT / stretch), low + _MARGIN, high, price, one * stretch)
    if not per_step:
        return safe
    if steps >= 5:
        low = torch.where(x >= 1e-3, 0.6, low)
    return Targets(x, low + _MARGIN, one * (1.15 - _MARGIN), price, one) + safe


def _thinned(targets: Targets, stride: int = 32) -> Targets:
    """Take every `stride`-th node, more where p_T is steepest, at the price of all."""
    number = torch.arange(len(targets.x), device="cpu").flip(0)  # the largest input is one of them
    every = torch.where(targets.x > 0.98, stride // 8, stride)
    thinned = _chosen(targets, number % every == 0)
    return replace(thinned, weight=thinned.weight * (len(targets.x) / len(thinned.x)))


def _ranked(
    schedules: Tensor, spectrum: Spectrum, bounds: Targets
) -> list[tuple[float, tuple[Triple, ...]]]:
    """Return the bounded ones with their errors, a tenth more where a lesser bound is broken."""
    result = []
    for schedule, broken in zip(schedules, _broken(schedules, bounds).any(1).tolist(), strict=True):
        triples = _as_triples(schedule)
        if is_bounded(triples):
            error = spectrum.mean_square_error(triples)
            result.append((error * (1.1 if broken else 1.0), triples))
    return result


def _as_triples(schedule: Tensor) -> tuple[Triple, ...]:
    """Round a schedule to nine digits."""
    rows = [[float(f"{value:.9g}") for value in row] for row in schedule.tolist()]
    return tuple((a, b, c) for a, b, c in rows)


def _chosen(targets: Targets, mask: Tensor) -> Targets:
    """Return the nodes under the mask."""
    return Targets(*(field[mask] for field in vars(targets).values()))


def _broken(schedules: Tensor, bounds: Targets) -> Tensor:  # (k, nodes), bool
    """Mark where each schedule breaks a bound by more than the margin, worst places only."""
    value = compose(schedules, bounds.x, bounds.stretch)
    excess = torch.maximum(value - bounds.high, bounds.low - value).nan_to_num(nan=torch.inf)
    peak = torch.ones_like(excess, dtype=torch.bool)
    inner = excess[:, 1:-1]
    peak[:, 1:-1] = (inner >= excess[:, :-2]) & (inner >= excess[:, 2:])
    return peak & (excess > _MARGIN)


@lru_cache(maxsize=16)
def minimax_schedules(steps: int) -> tuple[tuple[Triple, ...], ...]:
    """Return the schedules that are best for the worst singular value of one of many intervals."""
    return tuple(
        greedy_schedule(lower, steps, MAX_INPUT + 0.01, cushion, SLACK)
        for lower in (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 1e-2, 3e-2)
        for cushion in (0.0, 0.02, 0.05, 0.1)
    )
