"""Levenberg-Marquardt for compositions of odd quintics, from many starting points at a time.

A schedule of T triples is fitted to intervals: at every node x, p_T(x) shall lie in [low, high],
and the sum of weight * distance^2 is minimised. A spectrum asks for [1, 1]; a bound asks for less
than a ceiling. Derivatives are exact, so a few hundred cheap steps reach optima that lie at the end
of long flat valleys. float64 and deterministic; what overflows is a step that is not taken.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

_TRIALS = ((15, 12), (25, 4))
"""After so many iterations, so many of the starting points are left."""

_ITERATIONS = 200  # of those that are left
_TOLERANCE = 1e-4  # relative gain of the best in 50 iterations, below which nothing more is done


@dataclass(frozen=True)
class Targets:
    """Where p_T shall lie; every field has the shape (nodes,) and dtype float64.

    Args:
        x: Inputs.
        low: Smallest output that costs nothing.
        high: Largest output that costs nothing.
        weight: Price of the squared distance to [low, high].
        stretch: Factor on what enters every step: 1, or a little more where p_T shall keep its
            place although round-off pushes singular values up on the way.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor
    stretch: Tensor

    def __add__(self, other: "Targets") -> "Targets":
        """Both demands."""
        names = [field.name for field in fields(self)]
        return Targets(*(torch.cat((getattr(self, n), getattr(other, n))) for n in names))


def compose(
    triples: Tensor,  # (*batch, T, 3)
    x: Tensor,  # (nodes,)
    stretch: Tensor | float = 1.0,  # (nodes,)
) -> Tensor:  # (*batch, nodes)
    """p_T at every x; not finite where it overflows."""
    for a, b, c in (step.unsqueeze(-1).unbind(-2) for step in triples.unbind(-2)):
        x = stretch * x
        square = x * x
        x = x * (a + square * (b + square * c))
    return x


def descend(
    starts: Tensor,  # (k, T, 3)
    targets: Targets,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:  # (j, T, 3), (j,)
    """Minimise the misfit from each starting point; best first.

    Args:
        starts: Schedules to start from.
        targets: What p_T shall do.
        shared: One triple for all steps; all rows of each start must be equal.

    Returns:
        Those that were not given up on the way, at most 4, and their misfits.
    """
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
    """Damped Gauss-Newton steps; each schedule has its own damping and never gets worse."""
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
    """Misfit (k,), half its gradient (k, P) and its Gauss-Newton Hessian (k, P, P)."""
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
