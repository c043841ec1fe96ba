"""Distance of an update's singular values from 1, without a singular value decomposition.

From a start vector v, j products with a symmetric A give a tridiagonal (j, j) matrix T whose
eigenvalues lie within those of A, the extreme ones first, and v' f(A) v is close to (f(T))_11 for
smooth f (Lanczos' method; G. Golub and G. Meurant, "Matrices, Moments and Quadrature", 2010).
Several start vectors of random signs estimate a trace (M. Hutchinson, 1990). Products and sums are
all it takes, so it runs on every device and never waits for one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_root.functional.matrices import magnitude, nonzero, norm, normalise, slices, widen

STEPS = 16  # products with the matrix; more change a trace's estimate by less than its noise
MAX_UNIT_VECTORS = 32  # of so few rows every unit vector is a start: traces are not sampled
MIN_PROBES = 4  # start vectors of large matrices; so many also find the extreme eigenvalues
SQUARINGS = 20  # 2^20 steps of power iteration on a (j, j) matrix
TINY = 1e-30  # keeps a quotient of zeros at zero
NODES = 64  # of the quadrature; see `square_root_error`
# e^2, e^3, e^4: near (sqrt(1 + e) - 1)^2, by 24 % at most for singular values in [0, 1.3].
QUARTIC = (0.1985, -0.1982, 0.3628)
MAX_FOR_QUARTIC = 0.7  # e = sigma^2 - 1; beyond it the quartic is no help
MAX_ROWS_FOR_EIGENVALUES = 64  # on a CPU they cost less then than any estimate, in float64


class Tridiagonal(NamedTuple):
    """Symmetric tridiagonal matrices, (*batch, probes, j) and (*batch, probes, j - 1)."""

    diagonal: Tensor
    off_diagonal: Tensor


class Orthogonality(NamedTuple):
    """Singular values sigma of every matrix of a stack, each field (*batch)."""

    error: Tensor  # mean of (sigma - 1)^2
    smallest: Tensor
    largest: Tensor
    size: Tensor  # Frobenius norm, in units of the largest magnitude


def orthogonalization_error(update: Tensor, exact: bool = False) -> Tensor:
    """Mean over the singular values of each matrix of (sigma - 1)^2.

    This is the error of the paper's Table 1 and of `Coefficients.mse`. A direction that the
    momentum does not have stays at sigma = 0 and counts as 1.

    With E = U U' - I, of the smaller side, and e = sigma^2 - 1, it is the mean of f(e) = (sqrt(1 +
    e) - 1)^2. The traces of E^2, E^3 and E^4 give what a quartic catches of f, and Lanczos' method
    from a few fixed vectors of signs estimates the rest: 1 to 2 % off for updates of 33 to 1536
    rows (root mean square), at most 7 %, and below 33 rows at most 1 %. It takes two (m, m)
    matrices of memory and 4 MiB. Up to 64 rows a CPU takes the eigenvalues, in float64.

    Args:
        update: U, shape (*batch, m, n), any floating dtype, wide or tall; not modified.
        exact: Take the eigenvalues of G: right to 2e-3 in float32, where singular values are 0,
            and to 1e-4 elsewhere. Up to four times slower on a CPU; an accelerator is waited for.

    Returns:
        Errors, shape (*batch), float32 (float64 for float64): 1 for a matrix of zeros, 0 for one
        without entries, NaN where an entry is not finite.

    Raises:
        TypeError, ValueError: If `update` is no floating point tensor (*batch, m, n).

    Example:
        >>> import torch
        >>> from lightning_root.functional import orthogonalization_error
        >>> orthogonalization_error(torch.diag(torch.tensor([1.0, 0.5, 0.0, 1.0])))
        tensor(0.3125)
    """
    values = widen(update, "update")
    if update.numel() == 0:
        return values.new_zeros(values.shape[:-2])
    largest = magnitude(values)
    if exact and not _is_small(values):
        return _by_eigenvalues(_scaled_gram(values, largest)).error
    return orthogonality(values, largest).error


def singular_value_range(matrix: Tensor, iterations: int = STEPS) -> tuple[Tensor, Tensor]:
    """Estimates of the least and the greatest singular value of each matrix.

    Both lie within the true range (but for rounding, 1e-3 of the greatest near zero). For updates
    of up to 1536 rows, 16 iterations leave the greatest 0.3 % too small at most; the least is off
    by up to 6 % of the greatest where many singular values lie near zero, and by less elsewhere.

    Args:
        matrix: Shape (*batch, m, n), any floating dtype, any scale, wide or tall; not modified.
        iterations: Products with X X' from 4 or more fixed vectors (Lanczos' method).

    Returns:
        sigma_min and sigma_max of the min(m, n) singular values, each (*batch); 0 for zeros, NaN
        where an entry is not finite.

    Raises:
        TypeError: If `matrix` is not a floating point tensor, or `iterations` not an integer.
        ValueError: If `matrix` has fewer than 2 dimensions, or `iterations` is below 1.

    Example:
        >>> import torch
        >>> from lightning_root.functional import singular_value_range
        >>> torch.stack(singular_value_range(torch.diag(torch.tensor([3.0, 0.5, 1.0]))))
        tensor([0.5000, 3.0000])
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"`iterations` must be an integer, got {iterations!r}; {STEPS} is usual")
    if iterations < 1:
        raise ValueError(f"`iterations` must be >= 1, got {iterations}; {STEPS} is usual")
    values, largest = normalise(matrix)
    if matrix.numel() == 0:
        return values.new_zeros(values.shape[:-2]), values.new_zeros(values.shape[:-2])
    wide = _wide(values)
    size = norm(wide)
    wide = wide / nonzero(size)[..., None, None]
    small = tridiagonalise(lambda rows: rows @ wide @ wide.mT, _start(wide), iterations)
    least, greatest = extreme_eigenvalues(small, wide.shape[-2])
    scale = largest[..., 0, 0]
    return least.clamp(min=0).sqrt() * size * scale, greatest.clamp(min=0).sqrt() * size * scale


def orthogonality(
    update: Tensor,  # (*batch, m, n), with at least one entry
    largest: Tensor,  # its `magnitude`, (*batch, 1, 1), in float32 or better
) -> Orthogonality:
    """Compute error and range of the singular values of each matrix, from one Gram matrix."""
    if not _is_small(update):
        return _by_lanczos(_scaled_gram(update, largest))
    found = _by_eigenvalues(_scaled_gram(update.double(), largest.double()))
    return Orthogonality(*(value.to(largest.dtype) for value in found))


def _is_small(matrix: Tensor) -> bool:
    """Return whether all eigenvalues cost next to nothing."""
    return matrix.device.type == "cpu" and min(matrix.shape[-2:]) <= MAX_ROWS_FOR_EIGENVALUES


class _Gram(NamedTuple):
    """Gram matrices G = root^2 (I + excess) of matrices X."""

    excess: Tensor  # (*batch, m, m)
    root: Tensor  # (*batch)
    mean_square: Tensor  # mean of the diagonal of I + excess, (*batch)
    size: Tensor  # Frobenius norm of X / max|X|, (*batch)


def _scaled_gram(matrix: Tensor, largest: Tensor) -> _Gram:
    """Compute the Gram matrix less the identity, scaled down if it is far from an update's."""
    gram = _gram(_wide(matrix), largest)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    size = diagonal.sum(dim=-1).sqrt()
    scale = largest[..., 0, 0]
    highest = diagonal.amax(dim=-1)
    root = highest.sqrt() * scale  # the norm of the longest row
    oversized = root > 2**0.5
    factor = torch.where(oversized, 1 / nonzero(highest), scale.square())
    gram.mul_(factor[..., None, None])
    mean_square = diagonal.mean(dim=-1)
    diagonal.sub_(1)
    return _Gram(gram, torch.where(oversized, root, torch.ones_like(root)), mean_square, size)


def _gram(wide: Tensor, largest: Tensor) -> Tensor:
    """Compute X X' of X = `wide / largest` over slices of columns: no copy of X as a whole."""
    rows, columns = wide.shape[-2:]
    batch = wide.shape[:-2]
    divisor = nonzero(largest)
    gram = largest.new_empty((0, rows, rows))
    for part in slices(columns, batch.numel() * rows, min_length=rows):
        unit = wide[..., part] / divisor
        unit = unit.reshape(-1, *unit.shape[-2:])
        gram = unit @ unit.mT if part.start == 0 else gram.baddbmm_(unit, unit.mT)
        del unit  # before the next one is made
    return gram.reshape(*batch, rows, rows)


def _by_lanczos(gram: _Gram) -> Orthogonality:
    """Estimate from a few products with the Gram matrix."""
    excess, rows = gram.excess, gram.excess.shape[-1]
    small = tridiagonalise(lambda vectors: vectors @ excess, _start(excess), STEPS)
    least, greatest = extreme_eigenvalues(small, rows)
    error = square_root_error(small).mean(dim=-1)
    if rows > MAX_UNIT_VECTORS:  # the probes are a sample
        rest = _quartic_of_gram(excess) - _quartic_of_samples(small)
        error = error + torch.where(greatest <= MAX_FOR_QUARTIC, rest, 0 * error)
    return _unscaled(error, least, greatest, gram)


def _by_eigenvalues(gram: _Gram) -> Orthogonality:
    """Compute from all eigenvalues; NaN for matrices that are not finite."""
    broken = ~torch.isfinite(gram.excess).all(dim=-1).all(dim=-1)
    matrices = torch.where(broken[..., None, None], torch.zeros_like(gram.excess), gram.excess)
    if matrices.device.type not in ("cpu", "cuda"):  # others have no such routine
        matrices = matrices.cpu()
    eigenvalues = torch.linalg.eigvalsh(matrices).to(gram.excess.device)
    eigenvalues = eigenvalues.masked_fill(broken[..., None], torch.nan)
    roots = (1 + eigenvalues).clamp(min=0).sqrt()
    error = (eigenvalues / (1 + roots)).square().mean(dim=-1)
    return _unscaled(error, eigenvalues[..., 0], eigenvalues[..., -1], gram)


def _unscaled(error: Tensor, least: Tensor, greatest: Tensor, gram: _Gram) -> Orthogonality:
    """Turn error of sigma and range of e = sigma^2 - 1 into error and range of root * sigma."""
    root = gram.root
    return Orthogonality(
        (root - 1) * (root * gram.mean_square - 1) + root * error,
        (1 + least).clamp(min=0).sqrt() * root,
        (1 + greatest).clamp(min=0).sqrt() * root,
        gram.size,
    )


def _quartic_of_gram(excess: Tensor) -> Tensor:
    """Compute the mean of the quartic over the eigenvalues from traces, in one more matrix."""
    square = excess @ excess
    second, fourth = norm(excess).square(), norm(square).square()
    third = square.mul_(excess).sum(dim=(-2, -1))
    a, b, c = QUARTIC
    return (a * second + b * third + c * fourth) / excess.shape[-1]


def _quartic_of_samples(small: Tridiagonal) -> Tensor:
    """Estimate it from Lanczos' start vectors: the mean over them of v' q(E) v."""
    alpha, beta = small.diagonal.unbind(dim=-1), small.off_diagonal.unbind(dim=-1)
    once = (alpha[0], beta[0])  # T e_1
    twice = (once[0] ** 2 + once[1] ** 2, beta[0] * (alpha[0] + alpha[1]), beta[0] * beta[1])
    third = once[0] * twice[0] + once[1] * twice[1]
    fourth = twice[0] ** 2 + twice[1] ** 2 + twice[2] ** 2
    a, b, c = QUARTIC
    return (a * twice[0] + b * third + c * fourth).mean(dim=-1)


def _start(matrix: Tensor) -> Tensor:
    """Return the probes for each of (*batch, m, n): (*batch, count, m)."""
    vectors = probes(matrix.shape[-2], like=matrix)
    return vectors.expand(*matrix.shape[:-2], *vectors.shape)


def _wide(values: Tensor) -> Tensor:
    """Return (*batch, m, n) with m <= n."""
    return values.mT if values.shape[-2] > values.shape[-1] else values


# Lanczos' method.


def probes(rows: int, like: Tensor) -> Tensor:  # (count, rows)
    """Return unit vectors to start from, on the device of `like`, the same in every call."""
    # Every coordinate direction for small matrices; else pseudo-random signs, so many vectors that
    # the noise of a trace is about the same up to 512 rows.
    if rows <= MAX_UNIT_VECTORS:
        return torch.eye(rows, dtype=like.dtype, device=like.device)
    count = max(MIN_PROBES, 2048 // rows)
    index = torch.arange(1, rows * count + 1, device=like.device)
    for _ in range(2):  # an integer hash: nothing that another draw of random numbers could notice
        index = ((index >> 16) ^ index) * 0x45D9F3B & 0xFFFFFFFF
    signs = ((index >> 16) & 1).to(like.dtype).mul_(2).sub_(1)
    return signs.reshape(count, rows) / math.sqrt(rows)


def tridiagonalise(
    product: Callable[[Tensor], Tensor],  # (*batch, probes, m) -> times A
    start: Tensor,  # unit vectors, (*batch, probes, m)
    steps: int,  # j; more than m make up for rounding, which a small matrix shows sooner
) -> Tridiagonal:
    """Run Lanczos' method from every start vector at once, without reorthogonalization."""
    # Copies of converged eigenvalues appear in T, which neither its extreme eigenvalues nor
    # (f(T))_11 mind. Vectors are rows: products with the matrix on the right are faster on a CPU.
    previous, current = torch.zeros_like(start), start
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    beta = start.new_zeros((*start.shape[:-1], 1))
    for _ in range(steps):
        image = product(current)
        alpha = (image * current).sum(dim=-1, keepdim=True)
        image = torch.addcmul(image, alpha, current, value=-1).addcmul_(beta, previous, value=-1)
        if diagonal:  # an exhausted start vector repeats a value from within the spectrum
            alpha = torch.where(beta == 0, diagonal[0], alpha)
            off_diagonal.append(beta)
        diagonal.append(alpha)
        beta = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        previous, current = current, image / beta.masked_fill(beta == 0, 1.0)
    return Tridiagonal(torch.cat(diagonal, dim=-1), torch.cat([beta[..., :0], *off_diagonal], -1))


def extreme_eigenvalues(
    matrix: Tridiagonal,  # started from `probes`
    rows: int,  # of the matrix that was tridiagonalised
) -> tuple[Tensor, Tensor]:  # (*batch), (*batch)
    """Compute the least and the greatest eigenvalue that the probes have seen."""
    # By repeated squaring, of c - T and c + T: averages of eigenvalues, so within the spectrum.
    # Each unit vector may see an invariant subspace of its own; of random ones a few are enough.
    count = rows if rows <= MAX_UNIT_VECTORS else MIN_PROBES
    dense = _dense(matrix.diagonal[..., :count, :], matrix.off_diagonal[..., :count, :])
    bound = dense.abs().sum(dim=-1).amax(dim=-1)[..., None, None]  # no eigenvalue is larger
    shift = 2 * bound * torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device)
    power = torch.stack([shift - dense, shift + dense])
    for _ in range(SQUARINGS):
        largest = power.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
        power = power / largest.clamp(min=TINY)[..., None, None]
        power = power @ power
    weight = power.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp(min=TINY)
    least, greatest = (power * dense).sum(dim=(-2, -1)) / weight
    return least.amin(dim=-1) + 0.0, greatest.amax(dim=-1) + 0.0  # no negative zero


def square_root_error(matrix: Tridiagonal) -> Tensor:  # (*batch, probes)
    """Compute (f(T))_11 of f(e) = (sqrt(1 + e) - 1)^2 for each probe."""
    # sqrt(x) is the mean of x / (sin^2 t + x cos^2 t) over t in [0, pi / 2], and so f is the mean
    # of sin^2(2 t) / 2 times e^2 / (1 + e cos^2 t): positive terms, so nothing cancels where the
    # error is small. With 64 midpoints sqrt(x) is off by at most 0.003, with 16 by 0.012.
    angles = torch.arange(0.5, NODES, dtype=matrix.diagonal.dtype, device=matrix.diagonal.device)
    angles = angles * (math.pi / (2 * NODES))
    cosines, weights = angles.cos().square(), (2 * angles).sin().square() / 2
    diagonal, off_diagonal = matrix.diagonal[..., None], matrix.off_diagonal[..., None]
    first = diagonal[..., 0, :]
    if diagonal.shape[-2] == 1:
        return (first.square() / (1 + cosines * first) * weights).mean(dim=-1)
    # Elimination from the last row of 1 + cos^2 T upwards, for all nodes at once.
    pivot = 1 + cosines * diagonal[..., -1, :]
    for row in range(diagonal.shape[-2] - 2, 0, -1):
        coupling = (cosines * off_diagonal[..., row, :]).square()
        pivot = 1 + cosines * diagonal[..., row, :] - coupling / pivot
    beta = off_diagonal[..., 0, :]
    determinant = (1 + cosines * first) * pivot - (cosines * beta).square()
    values = first.square() * pivot + beta.square() * (1 - cosines * first)
    return (values / determinant * weights).mean(dim=-1)


def _dense(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """Write tridiagonal matrices out, (*batch, probes, j, j)."""
    sides = torch.diag_embed(off_diagonal, offset=1) + torch.diag_embed(off_diagonal, offset=-1)
    return torch.diag_embed(diagonal) + sides if off_diagonal.numel() else diagonal[..., None]
