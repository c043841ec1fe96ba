"""Numerical methods for compositions of odd quintics: least squares, and the best worst case.

Levenberg-Marquardt, with exact derivatives and from many starting points at a time, minimises the
sum of weight * distance^2 of p_T(x) from [low, high]: [1, 1] for a spectrum, less than a ceiling
for a bound. Remez exchange finds the best odd quintic on [l, u], whose largest error alternates in
sign at l, two points between, and u; applied to what the steps before have left it is optimal for
the worst singular value (arXiv:2505.16932), and where a fit starts from.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from lightning_root.coefficients.certificate import critical_points, output_range
from lightning_root.functional import Triple

_TRIALS = ((15, 12), (25, 4))  # after so many iterations, so many starting points are left
_ITERATIONS = 200  # of those that are left
_TOLERANCE = 1e-4  # relative gain of the best in 50 iterations, below which nothing more is done


@dataclass(frozen=True)
class Targets:
    """Intervals in which p_T shall lie; every field has the shape (nodes,) and dtype float64."""

    x: Tensor  # inputs
    low: Tensor  # smallest output that costs nothing
    high: Tensor  # largest output that costs nothing
    weight: Tensor  # price of the squared distance to [low, high]
    stretch: Tensor  # factor on what enters every step, above 1 as room for round-off

    def __add__(self, other: "Targets") -> "Targets":
        """Join the nodes of both."""
        names = [field.name for field in fields(self)]
        return Targets(*(torch.cat((getattr(self, n), getattr(other, n))) for n in names))


def descend(
    starts: Tensor,  # (k, T, 3)
    targets: Targets,
    shared: bool = False,  # one triple for all steps; all rows of each start must be equal
) -> tuple[Tensor, Tensor]:  # (j, T, 3), (j,)
    """Minimise the misfit from each start; return the best 4 or fewer and their misfits."""
    triples = starts
    for iterations, left in _TRIALS:
        if len(triples) > left:
            triples, misfit = _iterate(triples, targets, shared, iterations)
            triples = triples[misfit.argsort()[:left]]
    triples, misfit = _iterate(triples, targets, shared, _ITERATIONS)
    order = misfit.argsort()
    return triples[order], misfit[order]


def _iterate(
    triples: Tensor, targets: Targets, shared: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    """Take damped Gauss-Newton steps; each schedule has its own damping and never gets worse."""
    count = len(triples)
    misfit, gradient, hessian = _normal_equations(triples, targets, shared)
    damping = misfit.new_full((count, 1), 1e-3)
    history: list[float] = []
    for _ in range(iterations):
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        ridge = damping * diagonal + 1e-14 * diagonal.amax(1, keepdim=True)
        move = torch.linalg.solve_ex(hessian + ridge.diag_embed(), gradient).result
        trial = triples - move.view(count, -1, 3)  # one shared row is broadcast
        new_misfit, new_gradient, new_hessian = _normal_equations(trial, targets, shared)
        better = new_misfit < misfit  # False where it overflowed or the system was singular
        triples = torch.where(better[:, None, None], trial, triples)
        misfit = torch.where(better, new_misfit, misfit)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        hessian = torch.where(better[:, None, None], new_hessian, hessian)
        damping = torch.where(better[:, None], damping * 0.2, damping * 4.0).clamp_(1e-12, 1e12)
        history.append(float(misfit.min()))
        if len(history) > 50 and history[-50] - history[-1] <= _TOLERANCE * history[-1]:
            break
    return triples, misfit


def _normal_equations(
    triples: Tensor, targets: Targets, shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return misfit (k,), half its gradient (k, P) and its Gauss-Newton Hessian (k, P, P)."""
    value, jacobian = _value_and_jacobian(triples, targets.x, targets.stretch)
    distance = value - value.clamp(targets.low, targets.high)
    price = targets.weight.sqrt()
    jacobian = jacobian.sum(2) if shared else jacobian.flatten(2)
    jacobian = jacobian * (price * (distance != 0)).unsqueeze(-1)
    residual = price * distance
    gradient = (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1)
    return residual.square().sum(1), gradient, jacobian.mT @ jacobian


def _value_and_jacobian(
    triples: Tensor,  # (k, T, 3)
    x: Tensor,  # (nodes,)
    stretch: Tensor,  # (nodes,)
) -> tuple[Tensor, Tensor]:  # (k, nodes), (k, nodes, T, 3)
    """Evaluate p_T and its derivatives with respect to the triples."""
    inputs, slopes = [], []
    x = x.expand(len(triples), -1)
    for a, b, c in (step.unsqueeze(-1).unbind(1) for step in triples.unbind(1)):
        x = stretch * x
        square = x * x
        inputs.append((x, square))
        slopes.append(stretch * (a + square * (3.0 * b + 5.0 * c * square)))
        x = x * (a + square * (b + square * c))
    jacobian = x.new_empty(*x.shape, triples.shape[1], 3)
    chain = torch.ones_like(x)  # d p_T / d (output of this step)
    for step in reversed(range(triples.shape[1])):
        term, square = inputs[step]
        term = chain * term
        for power in range(3):
            jacobian[:, :, step, power] = term
            term = term * square
        chain = chain * slopes[step]
    return x, jacobian


def equioscillating(lower: float, upper: float) -> Triple:
    """Find the odd quintic with the smallest maximum of |p(x) - 1| on [lower, upper]."""
    if upper - lower < 1e-3 * upper:  # nothing left to flatten; the classical step at this scale
        middle = 0.5 * (lower + upper)
        return 1.875 / middle, -1.25 / middle**3, 0.375 / middle**5
    inner = [lower + share * (upper - lower) for share in (0.25, 0.75)]
    a = b = c = 0.0
    for _ in range(30):
        points = zip([lower, *inner, upper], (1.0, -1.0, 1.0, -1.0), strict=True)
        system = [[x, x**3, x**5, sign] for x, sign in points]
        matrix = torch.tensor(system, dtype=torch.float64, device="cpu")
        solution = torch.linalg.solve(matrix, matrix.new_ones(4))
        a, b, c = solution[:3].tolist()
        moved = sorted(x for x in critical_points((a, b, c)) if lower < x < upper)
        if len(moved) != 2 or max(abs(x - y) for x, y in zip(moved, inner, strict=True)) < 1e-12:
            break
        inner = moved
    return a, b, c


@lru_cache(maxsize=256)
def greedy_schedule(
    lower: float, steps: int, upper: float = 1.0, cushion: float = 0.0, slack: float = 0.0
) -> tuple[Triple, ...]:
    """Compose best quintics for singular values in [lower, upper]."""
    # No step looks at values below the share `cushion` of the largest, so that the first ones lift
    # small values less and treat large ones better. `slack` is the relative error of each step.
    triples = []
    low, high = lower, upper
    for _ in range(steps):
        triple = equioscillating(max(low, cushion * high), high)
        low, high = output_range([triple], upper=high, lower=low)
        low, high = low * (1.0 - slack), high * (1.0 + slack)
        triples.append(triple)
    return tuple(triples)
