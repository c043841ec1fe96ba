"""Triton's kernels as Python on CPU tensors, each beside torch in float64.

Run as a program, because Triton must be told before it is imported; writes the error of every case.
Memory that a kernel forgets to write is NaN, and an error of NaN passes no test.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from lightning_root import ROOT, lookup
from lightning_root.coefficients.published import MUON
from lightning_root.functional import newton_schulz, outlier_threshold
from lightning_root.kernels import orthogonalize
from lightning_root.kernels.triton.tiles import ALL_KERNELS, Tile

ALREADY_IMPORTED: Final = "lightning_root.kernels.triton.language" in sys.modules

from lightning_root.kernels.triton import (  # noqa: E402
    measurement,
    passes,
    products,
    rounding,
)
from lightning_root.optim.low_precision import float8_decoded, float8_encoded  # noqa: E402
from lightning_root.optim.stages.momentum import (  # noqa: E402
    momentum_step_,
    momentum_step_float8_,
)

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES: Final = {"plain": 1.0, "zero": 0.0, "tiny": 1e-30, "huge": 1e30}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(result, exact):
    """In units of the exact result's norm, or of one where that is zero."""
    exact = exact.double()
    return ((result.double() - exact).norm() / (exact.norm() or 1.0)).item()


def product(shape, dtype, tile, layout):
    """X X' and b R + c R^2, of matrices that lie contiguously, transposed, or within others."""
    *stack, m, n = shape
    whole = random(*stack, n, m) if layout == "transposed" else random(*stack, m, 2 * n)
    x = (whole.mT if layout == "transposed" else whole[..., ::2]).to(DTYPES[dtype])
    gram = products.symmetric_product(x, x.mT, tile)
    first = distance(gram, x.double() @ x.double().mT)
    r = gram / (gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] + 1.0)
    r = (r + r.mT).to(DTYPES[dtype])
    result = products.quadratic(r, -1.5, 0.7, tile)
    wide = r.double()
    return max(first, distance(result, -1.5 * wide + 0.7 * wide @ wide))


def mirrored():
    """More rows of tiles than a group has; outside the diagonal's the halves are equal."""
    x = random(130, 8)
    gram = products.symmetric_product(x, x.mT, Tile(16, 16, 4, 1))
    below = torch.ones(130, 130).tril(-16).bool()
    return distance(gram, x.double() @ x.double().mT) + (gram - gram.mT)[below].abs().max().item()


def two_polynomials():
    """Different factors whose product is symmetric."""
    r = random(2, 20, 20)
    r = r @ r.mT
    square = r @ r
    result = products.symmetric_product(r, square, Tile(16, 16, 4, 1))
    return distance(result, r.double() @ square.double())


class OnDevice(torch.Tensor):
    """A number that the host must not ask for."""

    def __float__(self):
        raise AssertionError("the host has waited for the device")


def rounded_to_bits(size, name, dtype, finite, scale=1.0):
    """How many differ from torch's, where sums are exact: of few bits, but more than are kept."""
    group = {"momentum": 0.5, "nesterov": size % 3 > 0, "maximize": size % 2 == 0}
    flag = None if finite is None else torch.tensor(finite)
    bits = 1024 if dtype == "float32" else 16
    alone = size == 1  # and a power of two, which both of two exponents can hold
    start = torch.ones(1) if alone else (bits * random(size)).round() / bits * scale
    kept = {"bfloat16": lambda: start.bfloat16(), "float8": lambda: float8_encoded(start)}
    ours, torchs = kept[name](), kept[name]()
    step = torch.tensor(3.0)
    for turn in range(3):
        gradient = ((bits * random(size, seed=turn)).round() / bits * scale).to(DTYPES[dtype])
        if alone:
            gradient.zero_()
        if scale > 1.0:
            gradient[0] = torch.finfo(torch.float32).max  # more than bfloat16 has
        out, expected = torch.empty(size), torch.empty(size)
        how = {"nesterov": group["nesterov"], "maximize": group["maximize"], "finite": flag}
        if name == "float8":
            captured = turn == 1
            steps = step.as_subclass(OnDevice).clone() if captured else step.clone(), step.clone()
            rounding.momentum_step_float8_(
                gradient, ours, steps[0], out, 0.5, capturable=captured, **how
            )
            momentum_step_float8_(gradient, torchs, steps[1], expected, group, flag)
            if not torch.equal(*steps):
                return float("nan")
            step = steps[1]
            if not torch.equal(rounding.decoded(ours, size), float8_decoded(ours).float()):
                return float("nan")
        else:
            largest = torch.empty(passes.blocks(ours))
            passes.momentum_step_(gradient, ours, out, 0.5, largest, **how)
            momentum_step_(gradient, torchs, expected, group, flag)
        if not torch.equal(out, expected):
            return float("nan")
    differ = ours != torchs
    if name == "float8":
        differ[:size] &= rounding.decoded(ours, size) != 0  # whose sign may be lost
    return float(differ.sum())


def look_ahead(size, dtype, nesterov, maximize, finite):
    gradient, momentum = random(size, 3).to(DTYPES[dtype]), random(size, 3, seed=1)
    flag = None if finite is None else torch.tensor(finite)
    before, g = momentum.double(), gradient.double() * (-1.0 if maximize else 1.0)
    if finite is False:
        gradient[0, 0], g = torch.nan, torch.zeros_like(g)
    advanced = before if finite is False else g + 0.95 * before
    direction = g + 0.95 * advanced if nesterov else advanced
    out, largest = torch.empty_like(momentum), torch.empty(passes.blocks(momentum))
    passes.momentum_step_(
        gradient, momentum, out, 0.95, largest, nesterov=nesterov, maximize=maximize, finite=flag
    )
    if finite is False and not torch.equal(momentum.double(), before):
        return float("nan")
    peak = abs(largest.max().item() - direction.abs().max().item())
    return max(distance(momentum, advanced), distance(out, direction), peak)


def descent(size, of_weight, of_update, how):
    """The weight, in units of its own, from float64; unchanged where its gradient is not finite."""
    weight, update = random(size, 3).to(DTYPES[of_weight]), random(size, 3, seed=1)
    update, before = update.to(DTYPES[of_update]), weight.double()
    exact = (1 - 0.02 * 0.1) * before - 0.02 * 3.0 * update.double()
    lr = torch.tensor(0.02) if how == "tensor" else 0.02
    flag = torch.tensor(how == "finite") if how in ("finite", "not finite") else None
    passes.apply_update_(weight, update, lr, 0.1, 3.0, flag)
    if how == "not finite":
        return 0.0 if torch.equal(weight.double(), before) else float("nan")
    return distance(weight, exact)


def sampled(shape, kind, quantile):
    """The sample's threshold, by sorting."""
    matrices = random(*shape) * SCALES[kind]
    matrices[:, ::3, ::2] = 0.0
    exact = outlier_threshold(matrices.double(), quantile, mode="sampled")
    found = passes.sampled_threshold(matrices, quantile).double()
    return ((found - exact).abs() / exact.masked_fill(exact == 0, 1.0)).max().item()


def clipped(shape, kind, dtype):
    matrices = random(*shape) * SCALES[kind]
    bounds = matrices.abs().amax(dim=(1, 2)) * 0.5
    exact = matrices.double().clamp(-bounds[:, None, None], bounds[:, None, None])
    exact /= exact.norm(dim=(1, 2), keepdim=True).masked_fill(bounds[:, None, None] == 0, 1.0)
    return distance(passes.clipped_unit(matrices, bounds, DTYPES[dtype]), exact)


def form(name, shape):
    matrix, triples = random(*shape), lookup(shape[-2:]).triples
    result = orthogonalize(matrix, triples, form=name, tuning=ALL_KERNELS)
    return distance(result, newton_schulz(matrix.double(), triples))


def trained(kernels, shapes, bad, dtype=torch.float32, lay=torch.Tensor.contiguous, **options):
    """Weights after three steps, in the second of which some gradients are not finite."""
    weights = [torch.nn.Parameter(lay(random(*shape, seed=9).to(dtype))) for shape in shapes]
    options = {"lr": 0.1, "kernels": kernels, **options}
    optimizer = ROOT([{"role": "root", "params": weights}], **options)
    for step in range(3):
        for number, weight in enumerate(weights):
            weight.grad = random(*weight.shape, seed=10 * step + number).to(dtype)
            if bad and step == 1 and number % 2:
                weight.grad[0, 0] = torch.inf
        optimizer.step()
    return torch.cat([weight.detach().flatten().double() for weight in weights])


def turned(weight):
    """The same, column by column in memory."""
    return weight.mT.contiguous().mT


def steps(shapes, bad=False, **options):
    start = torch.cat([random(*shape, seed=9).flatten() for shape in shapes])
    exact = trained("torch", shapes, bad, **options) - start
    return distance(trained("triton", shapes, bad, **options) - start, exact)


def missed_by_the_sample():
    """Of a matrix that is zero but for one entry nothing is clipped, and the update is not zero."""
    weight = torch.nn.Parameter(torch.zeros(40, 3401))
    weight.grad = torch.zeros(40, 3401)
    weight.grad[0, 1] = 3.0
    if passes.sampled_threshold(weight.grad[None], 0.9).any():
        return float("nan")  # the sample has met it
    options = {"coefficients": MUON, "ns_steps": 1, "adjust_lr_fn": None, "weight_decay": 0.0}
    ROOT([{"role": "root", "params": [weight]}], lr=1.0, kernels="triton", **options).step()
    return distance(-weight, newton_schulz(weight.grad.double(), MUON, 1))


def passes_beside_torch():
    """The measurement takes passes that are right and faster than torch, and no others."""
    measurement.PASSES_SHAPE = (2, 40, 70)
    cpu, right, descend = torch.device("cpu"), passes.clipped_unit, passes.apply_update_

    def taken(torch_takes, they_take, clipped=right, descended=descend):
        times = iter([torch_takes, they_take])
        measurement.milliseconds = lambda run: next(times)
        passes.clipped_unit, passes.apply_update_ = clipped, descended
        return measurement.passes_are_faster(cpu, torch.float32)

    def wrong(*arguments):
        return 1.1 * right(*arguments)

    def nothing(*arguments):
        pass

    found = taken(1.0, 0.9), taken(1.0, 0.98), taken(1.0, 0.9, wrong)
    found += (taken(1.0, 0.9, descended=nothing),)
    passes.clipped_unit, passes.apply_update_ = right, descend
    return float(found != (True, False, False, False))


def measurement_of_rounding():
    """Of kernels that are right, wrong in one format or the other, and that fail."""
    measurement.PASSES_SHAPE = (2, 40, 70)
    cpu, half, codes = torch.device("cpu"), passes.momentum_step_, rounding.momentum_step_float8_

    def but(wrong):
        def advance(gradient, momentum, *others, **options):
            of_half = momentum.dtype == torch.bfloat16
            kept, out = momentum.clone(), others[0] if of_half else others[1]
            if wrong == "forgets":
                momentum.zero_()
            (half if of_half else codes)(gradient, momentum, *others, **options)
            if wrong == "stays":
                momentum.copy_(kept)
            if wrong == "overshoots":
                out *= 1.01

        return advance

    def fails(*arguments, **options):
        raise RuntimeError("out of resources")

    found = []
    wrong = [but(how) for how in ("forgets", "stays", "overshoots")] + [fails]
    pairs = [(half, codes), *((w, codes) for w in wrong), *((half, w) for w in wrong)]
    for of_half, of_codes in pairs:
        passes.momentum_step_, rounding.momentum_step_float8_ = of_half, of_codes
        found.append(measurement.rounding_is_correct(cpu))
    passes.momentum_step_, rounding.momentum_step_float8_ = half, codes
    return float(found != [True] + [False] * 8)


SMALL, MIDDLE = Tile(16, 16, 4, 1), Tile(32, 64, 4, 1)
HALF, SINGLE = 6e-3, 2e-6  # the interpreter cuts bfloat16 off where a GPU rounds
CASES: Final[dict[str, tuple[float, Callable[[], float]]]] = {
    **{
        f"product {shape} {dtype} {layout}": (
            SINGLE if dtype == "float32" else HALF,
            partial(product, shape, dtype, tile, layout),
        )
        for shape, tile in [
            ((1, 1), SMALL),
            ((2, 5, 7), SMALL),
            ((2, 40, 70), MIDDLE),
            ((2, 33, 48), SMALL),  # whose depth is a whole number of tiles
        ]
        for dtype in DTYPES
        for layout in ("contained", "transposed")
        if layout == "contained" or dtype != "float16"
    },
    "product mirrored": (SINGLE, mirrored),
    "product of two": (SINGLE, two_polynomials),
    **{
        f"look ahead {size} {dtype} {nesterov} {maximize} {finite}": (
            SINGLE,
            partial(look_ahead, size, dtype, nesterov, maximize, finite),
        )
        for size, dtype in [(1, "float32"), (1400, "bfloat16"), (1400, "float16")]
        for nesterov in (False, True)
        for maximize in (False, True)
        for finite in (None, True, False)
    },
    **{
        f"descent {size} {of_weight} {of_update} {how}": (
            SINGLE if of_weight == "float32" else HALF,
            partial(descent, size, of_weight, of_update, how),
        )
        for size, of_weight, of_update in [
            (1, "float32", "float32"),
            (1400, "float32", "bfloat16"),
            (1400, "bfloat16", "float32"),
            (1400, "float16", "bfloat16"),
        ]
        for how in ("plain", "tensor", "finite", "not finite")
    },
    **{
        f"threshold {shape} {kind} {quantile}": (2e-7, partial(sampled, shape, kind, quantile))
        for shape in [(1, 1, 1), (2, 33, 20)]
        for kind in SCALES
        for quantile in (0.9, 0.5, 1.0)
    },
    "threshold of a sample": (2e-7, partial(sampled, (1, 450, 600), "plain", 0.9)),
    **{
        f"clip {shape} {kind} {dtype}": (
            SINGLE if dtype == "float32" else 1e-2,
            partial(clipped, shape, kind, dtype),
        )
        for shape in [(1, 1, 1), (2, 90, 101)]
        for kind in SCALES
        for dtype in DTYPES
    },
    "form gram": (1e-3, partial(form, "gram", (2, 20, 50))),
    "steps": (1e-3, partial(steps, [(20, 50), (50, 20)], ns_steps=3)),
    "steps without a threshold": (
        1e-3,
        partial(steps, [(9, 9)], outlier_quantile=None, nesterov=False, ns_steps=2),
    ),
    "steps, exact threshold": (
        1e-3,
        partial(steps, [(9, 9)], outlier_quantile_mode="exact", ns_steps=2),
    ),
    "steps, capturable": (
        1e-3,
        partial(steps, [(20, 50)] * 2, bad=True, capturable=True, ns_steps=2),
    ),
    **{
        f"rounded {size} {name} {dtype} {finite}": (
            0.0,
            partial(rounded_to_bits, size, name, dtype, finite),
        )
        for name in ("bfloat16", "float8")
        for size, dtype in [(1, "float32"), (128, "float32"), (8193, "bfloat16")]
        for finite in (None, True, False)
    },
    **{
        f"rounded {name}, huge": (
            0.0,
            partial(rounded_to_bits, 500, name, "float32", None, scale=2.0**124),
        )
        for name in ("bfloat16", "float8")
    },
    **{
        f"steps, momentum in {name}, capturable {capturable}": (
            0.05,  # a sum that is rounded otherwise may go to the other neighbour
            partial(
                steps,
                [(20, 50), (50, 20)],
                bad=capturable,
                momentum_dtype=name,
                capturable=capturable,
                ns_steps=2,
            ),
        )
        for name in ("bfloat16", "float8")
        for capturable in (False, True)
    },
    "steps in bfloat16": (0.1, partial(steps, [(20, 50)], ns_dtype="bfloat16", ns_steps=2)),
    "steps of float16 parameters": (
        1e-2,  # a few end on the other side of a unit
        partial(steps, [(20, 50), (50, 20)], bad=True, dtype=torch.float16, ns_steps=2),
    ),
    "steps by a rate in a tensor": (
        1e-3,
        partial(steps, [(20, 50), (50, 20)], lr=torch.tensor(0.1), ns_steps=2),
    ),
    "steps of float64 parameters": (
        0.05,  # a rate that float32 weights would not notice
        partial(steps, [(20, 50)], dtype=torch.float64, momentum_dtype="float8", lr=1e-9),
    ),
    "steps without a threshold, momentum in float8": (
        0.05,
        partial(steps, [(20, 50)], outlier_quantile=None, momentum_dtype="float8", ns_steps=2),
    ),
    "steps of turned parameters": (
        0.05,
        partial(steps, [(20, 50)], lay=turned, momentum_dtype="float8", ns_steps=2),
    ),
    "missed by the sample": (1e-3, missed_by_the_sample),
    "the measurement of passes": (0.0, passes_beside_torch),
    "the measurement of rounding": (0.0, measurement_of_rounding),
    "the package imports kernels by itself": (0.0, lambda: float(ALREADY_IMPORTED)),
}
"""Name, largest error that is allowed, and what gives the error."""


def main() -> None:
    torch.use_deterministic_algorithms(True)  # what is not written is NaN
    found: dict[str, float | str] = {}
    for name, (_, run) in CASES.items():
        try:
            found[name] = run()
        except Exception as error:
            found[name] = repr(error)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
