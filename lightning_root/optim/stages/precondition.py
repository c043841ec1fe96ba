"""Preconditioning by covariances of the gradient, between clip and orthogonalize.

    C_l <- b C_l + (1 - b) G G'       C_r <- b C_r + (1 - b) G' G        the first value seeds;
                 in every j-th step (`precondition_statistics_every`), with b^j for b
    covariance:  P = (C / max eig C + damping I)^-exponent, every `precondition_every` steps
                 B <- P_l B P_r
    soap:        Q the eigenvectors of C, kept by a QR step of C Q
                 V <- b V + (1 - b) (Q_l' G Q_r)^2
                 B <- Q_l ((Q_l' B Q_r) / sqrt(V + damping max V)) Q_r'

G is clipped as N is. C and V are kept relative to a running mean square of G, which is kept beside
them, so that no size of gradients overflows or vanishes; a factor common to B does not matter.

State of a matrix (m, n), flat: that size; for each side that is preconditioned, of size s,
s (s + 1) numbers, C in the lower and P in the upper triangle; with soap also Q, s^2, and V, m n.
And how many steps there were. Cost: for a side of size s, G G' and C B, and a decomposition now and
then. Sources: Shampoo (V. Gupta et al., arXiv:1802.09568), SOAP (N. Vyas et al., arXiv:2409.11321);
in front of an orthogonalization: modded-nanogpt's PMuon.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lightning_root.functional.inverse_roots import inverse_root, inverse_root_by_products
from lightning_root.functional.matrices import magnitude, nonzero
from lightning_root.kernels.forms import decomposed, symmetric_product
from lightning_root.optim.blocks import BoundParameter, Group, StateSpec, state_dtype

KEY: Final = "preconditioner"
AGE: Final = "precondition_step"

AUTO_ASPECT: Final = 2.0
"""Up to this ratio of its sides `precondition_sides="auto"` takes both of a matrix."""

AUTO_STATISTICS: Final = 5
"""In every so many steps a gradient is taken in by "auto"."""

NEWTON_ROOTS: Final = {1.0: 1, 0.5: 2, 0.25: 4}
"""Exponents of which the inverse root is found by products, where `eigh` is slow."""

_SAFE: Final = (1e-30, 1e30)  # what magnitudes are divided by, so that nothing overflows


@dataclass(frozen=True, slots=True)
class Preconditioner:
    """Sides and numbers by which matrices of one shape are preconditioned."""

    shape: tuple[int, int]
    sides: tuple[int, ...]  # 0 for the rows, 1 for the columns
    soap: bool
    beta: float  # what is kept of the covariances when they are advanced
    damping: float
    exponent: float

    @property
    def numbers(self) -> int:
        """Number of values that a matrix has of state."""
        sizes = [self.shape[side] for side in self.sides]
        own = self.shape[0] * self.shape[1] if self.soap else 0
        return 1 + own + sum(s * (s + 1) + (s * s if self.soap else 0) for s in sizes)


def plan_preconditioner(shape: Sequence[int], group: Group) -> Preconditioner | None:
    """Return how matrices of a shape are preconditioned; None where they are not."""
    rows, columns = shape
    method, sides = group["precondition"], group["precondition_sides"]
    if method == "none":
        return None
    if sides == "auto":
        near = max(rows, columns) <= AUTO_ASPECT * min(rows, columns)
        sides = "both" if near and method == "covariance" else "smaller"
    wanted = (0, 1) if sides == "both" else (int(rows > columns),)
    chosen = tuple(side for side in wanted if shape[side] <= group["precondition_max_dim"])
    if not chosen:
        return None
    exponent = group["precondition_exponent"]
    if exponent is None:
        exponent = 0.25 if len(chosen) == 2 else 0.5
    beta = group["precondition_beta"] ** statistics_every(group)
    damping = group["precondition_damping"]
    return Preconditioner((rows, columns), chosen, method == "soap", beta, damping, exponent)


def statistics_every(group: Group) -> int:
    """Return how many steps lie between two gradients that the covariances take in."""
    given = group["precondition_statistics_every"]
    return given or (AUTO_STATISTICS if group["precondition"] == "auto" else 1)


def is_on(group: Group) -> bool:
    """Return whether matrices of a group are preconditioned."""
    return bool(group["precondition"] != "none")


def _numbers(shape: Sequence[int], group: Group) -> int:
    how = plan_preconditioner(shape, group)
    return how.numbers if how is not None else 0


STATE: Final = (
    StateSpec(KEY, "matrices", lambda p, _: state_dtype(p), "root", is_on, _numbers, rests=True),
    StateSpec(AGE, "counter", lambda *_: torch.float32, "root", is_on),
)


def precondition_twin(
    base: Tensor,  # (m, n)
    gradient: Tensor,  # (m, n)
    covariances: Sequence[Tensor],  # of the rows and of the columns, before the step
    beta: float,
    damping: float,
    exponent: float,
) -> tuple[Tensor, list[Tensor]]:
    """Return P_l B P_r, and the covariances after the step, as the formula has it."""
    new = [gradient @ gradient.mT, gradient.mT @ gradient]
    new = [
        beta * old + (1 - beta) * c if old.any() else c
        for old, c in zip(covariances, new, strict=True)
    ]
    left, right = (inverse_root(c, exponent, damping) for c in new)
    return left @ base @ right, new


def count_steps(parameters: Sequence[BoundParameter], group: Group) -> None:
    """Note how old the roots of parameters are in this step, and count it."""
    # Not the fake step of torch's distributed checkpoints, which has a learning rate of 0, on the
    # host even where it is a tensor.
    lr, every, between = group["lr"], group["precondition_every"], statistics_every(group)
    counts = (isinstance(lr, Tensor) and lr.device.type != "cpu") or float(lr) != 0.0
    for bound in parameters:
        count = bound.state[AGE]
        bound.age = int(count) % every
        bound.measures = bound.age % between == 0
        count += counts


@dataclass(frozen=True, slots=True)
class _Parts:
    """The state of equal matrices, as views of one tensor (k, numbers)."""

    size: Tensor  # (k, 1, 1): root mean square of G
    factors: list[Tensor]  # of each side: (k, s, s + 1), C below and P above the diagonal
    bases: list[Tensor]  # of each side: (k, s, s), Q; none without soap
    moment: Tensor | None  # (k, m, n), V


def _parts(how: Preconditioner, state: Tensor) -> _Parts:
    sizes = [how.shape[side] for side in how.sides]
    own = [s * s for s in sizes] + [math.prod(how.shape)] if how.soap else []
    size, *rest = torch.split(state, [1, *(s * (s + 1) for s in sizes), *own], dim=1)
    count = len(sizes)
    factors = [flat.view(-1, s, s + 1) for flat, s in zip(rest, sizes, strict=False)]
    bases = [flat.view(-1, s, s) for flat, s in zip(rest[count:-1], sizes, strict=False)]
    moment = rest[-1].view(-1, *how.shape) if how.soap else None
    return _Parts(size[:, :, None], factors, bases if how.soap else [], moment)


def precondition(
    base: Tensor,  # B, (k, m, n); stays as it is
    source: Tensor | None,  # G, clipped, or B: (k, m, n); None where covariances stay
    how: Preconditioner,
    state: Sequence[Mapping[str, Tensor]],  # of each of the k
    is_due: bool,  # whether roots are renewed
) -> Tensor:  # (k, m, n)
    """Advance the covariances, renew their roots where due, and return the preconditioned B."""
    own = [of_block[KEY] for of_block in state]
    kept = torch.stack(own) if len(own) > 1 else own[0][None]
    parts = _parts(how, kept)
    new, before = None, parts.size.clone()
    if source is not None:
        new = unit, keep, weight = _advance_size_(parts.size, source.to(kept.dtype), how.beta)
        for side, factor in zip(how.sides, parts.factors, strict=True):
            low, gram = factor[..., :-1], _gram(unit if side == 0 else unit.mT)
            low.copy_((low * keep).add_(gram.mul_(weight)).tril_().add_(low.triu(1)))
    if is_due:
        _renew_(parts, how)
    elif kept.device.type == "cpu":  # elsewhere a look at the sizes costs more than it gives
        for number in ((before == 0) & (parts.size != 0)).flatten().nonzero().flatten().tolist():
            _renew_(_parts(how, kept[number : number + 1]), how)  # its first gradient but zeros
    # Roots enlarge, so the first factor brings B, whose size does not matter, near 1.
    shrink = magnitude(base).clamp_(*_SAFE).reciprocal_().to(kept.dtype)
    if parts.moment is None:
        result = base.to(kept.dtype)
        for side, factor in zip(how.sides, parts.factors, strict=True):
            result = _multiply(_root(factor).mul_(shrink), result, side)
            shrink = torch.ones_like(shrink)
    else:
        result = _adapted(base.to(kept.dtype), shrink, new, how, parts)
    if len(own) > 1:
        torch._foreach_copy_(own, list(kept))
    return result


def _advance_size_(size: Tensor, source: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return G with a mean square of 1, and the factors on what is kept and on what is added."""
    largest = magnitude(source)
    unit = source / nonzero(largest)
    rms = torch.linalg.vector_norm(unit, dim=(-2, -1), keepdim=True)
    rms = rms / math.sqrt(unit.shape[-2] * unit.shape[-1])
    unit, new = unit.div_(nonzero(rms)), largest * rms
    fresh = size == 0
    old_share = torch.full_like(size, beta).masked_fill_(fresh, 0.0)
    new_share = torch.full_like(size, 1.0 - beta).masked_fill_(fresh, 1.0)
    total = torch.hypot(old_share.sqrt() * size, new_share.sqrt() * new)
    keep = old_share * (size / nonzero(total)).square_()
    weight = new_share * (new / nonzero(total)).square_()
    size.copy_(total)
    return unit, keep, weight


def _gram(unit: Tensor) -> Tensor:  # (k, s, other) -> (k, s, s), the lower triangle of it
    if len(unit) == 1:
        return symmetric_product(unit[0], unit[0].mT, mirror=False)[None]
    return torch.bmm(unit, unit.mT)


def _multiply(left: Tensor, matrices: Tensor, side: int, transpose: bool = False) -> Tensor:
    """Multiply matrices (k, m, n) from the left by L, or from the right by L'; L is (k, s, s).

    Alone without a batch's overhead.
    """
    left = left.mT if transpose else left
    if len(matrices) == 1:
        product = left[0] @ matrices[0] if side == 0 else matrices[0] @ left[0].mT
        return product[None]
    return torch.bmm(left, matrices) if side == 0 else torch.bmm(matrices, left.mT)


def _root(factor: Tensor) -> Tensor:  # (k, s, s + 1) -> (k, s, s)
    upper = factor[..., 1:]
    return upper.triu().add_(upper.triu(1).mT)


def _renew_(parts: _Parts, how: Preconditioner) -> None:
    """Find roots, or bases, from the covariances; where that fails the last ones stay."""
    for number, factor in enumerate(parts.factors):
        low, upper = factor[..., :-1], factor[..., 1:]
        if parts.moment is not None:
            _turn_(parts, number, low.tril().add_(low.tril(-1).mT), how.sides[number])
        else:
            root = _found(partial(_inverse_root, how=how), low)
            upper.copy_(_finite(root, _root(factor)).triu().add_(upper.tril(-1)))


def _found(decompose: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Return what a decomposition makes of each matrix, NaN where it fails."""
    try:
        return decompose(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if len(matrices) > 1:  # one of them may have failed for all
            return torch.cat([_found(decompose, one) for one in torch.split(matrices, 1)])
        return torch.full_like(matrices, torch.nan)


def _inverse_root(low: Tensor, how: Preconditioner) -> Tensor:
    order = NEWTON_ROOTS.get(how.exponent)
    if low.device.type == "cpu" or order is None:
        return inverse_root(low, how.exponent, how.damping)
    return inverse_root_by_products(low.tril().add_(low.tril(-1).mT), order, how.damping)


def _eigenvectors(covariance: Tensor) -> Tensor:
    return decomposed(covariance)[1].flip(-1)


def _orthonormal(product: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(product)[0]
    return basis


def _turn_(parts: _Parts, number: int, covariance: Tensor, side: int) -> None:
    """Turn the basis of a side to the eigenvectors of its C, the largest first, and V with it."""
    basis, moment = parts.bases[number], parts.moment
    assert moment is not None
    start = _finite(basis, basis)  # the identity at first
    product = torch.matmul(covariance, start)
    quotients = (start * product).sum(-2)  # Rayleigh's
    order = quotients.argsort(dim=-1, descending=True, stable=True)
    turned = _found(_orthonormal, product.gather(-1, order.unsqueeze(-2).expand_as(product)))
    if basis.device.type == "cpu":
        for place, of_one in enumerate(moment):
            if not of_one.any():  # there was no gradient so far
                turned[place] = _found(_eigenvectors, covariance[place : place + 1])[0]
    order = torch.where(
        _is_good(turned)[:, None], order, torch.arange(order.shape[-1], device=order.device)
    )
    basis.copy_(_finite(turned, start))
    along = order.unsqueeze(2 - side).expand_as(moment)
    moment.copy_(moment.gather(1 + side, along))


def _is_good(matrices: Tensor) -> Tensor:  # (k, s, s) -> (k,)
    return matrices.isfinite().all(-1).all(-1) & (matrices != 0).any(-1).any(-1)


def _finite(new: Tensor, old: Tensor) -> Tensor:
    """Return each matrix of `new` that is finite, else the old one, or the identity without one."""
    good = _is_good(new)
    if new.device.type == "cpu" and good.all():
        return new
    identity = torch.eye(new.shape[-1], dtype=new.dtype, device=new.device)
    there = (old != 0).any(-1).any(-1)[:, None, None]
    return torch.where(good[:, None, None], new, torch.where(there, old, identity))


def _adapted(
    base: Tensor,
    shrink: Tensor,  # factor on it
    new: tuple[Tensor, Tensor, Tensor] | None,  # G, and the shares of the old V and of the new
    how: Preconditioner,
    parts: _Parts,
) -> Tensor:
    """Divide B by the root of V in the eigenbases, and turn it back."""
    assert parts.moment is not None
    bases = list(zip(how.sides, parts.bases, strict=True))
    if new is not None:
        unit, keep, weight = new
        for side, basis in bases:
            unit = _multiply(basis, unit, side, transpose=True)
        parts.moment.mul_(keep).add_(unit.square_().mul_(weight))
    for side, basis in bases:
        base = _multiply(basis * shrink, base, side, transpose=True)
        shrink = torch.ones_like(shrink)
    largest = magnitude(parts.moment)
    base = base / (parts.moment + how.damping * nonzero(largest)).sqrt_()
    for side, basis in bases:
        base = _multiply(basis, base, side)
    return base


def condition_numbers(how: Preconditioner, state: Tensor) -> Tensor:  # (k, numbers) -> (k,)
    """Return the condition numbers of the damped covariances, the larger one of two sides."""
    found = []
    for factor in _parts(how, state).factors:
        values = torch.linalg.eigvalsh(factor[..., :-1].mT, UPLO="U").clamp(min=0.0)
        largest = nonzero(values[:, -1:])
        damped = (values / largest).add_(how.damping)
        found.append(damped[:, -1] / damped[:, 0])
    return torch.stack(found).amax(0)
