"""Small matrices of nearly equal shapes: a stack for every shape, or one that is padded with zeros.

    python -m examples.benchmarks.near_shapes
    python -m examples.benchmarks.near_shapes --quick             # seconds, to try it

Zero rows and columns change no singular value, so a padded stack gives the same updates. Both ways
evaluate the same polynomial here. A step could not do that: the coefficients belong to the true
shape, and a product whose sum is fused in takes one of them for the whole stack.

Writes `near_shapes.md` (the page) and `near_shapes.json` (all numbers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.clock import clock_of, interleave, quartiles, speed
from examples.benchmarks.speed.command import Command
from examples.benchmarks.speed.words import how_timed, milliseconds, quick_warning, ratio
from lightning_root.coefficients import lookup
from lightning_root.functional import Triple
from lightning_root.kernels import orthogonalize
from lightning_root.optim.local import STACK_ELEMENTS

MODULE = "examples.benchmarks.near_shapes"
BASELINE, PADDED = "by shape", "padded"

SETS: Final[Mapping[str, list[tuple[int, int, int]]]] = {
    "3 shapes, 60x250 to 64x256, 16 of each": [(16, 60, 250), (16, 62, 251), (16, 64, 256)],
    "3 shapes, 120x500 to 128x512, 4 of each": [(4, 120, 512), (4, 128, 500), (4, 128, 512)],
    "4 shapes, 61x250 to 64x256, 4 of each": [(4, 64 - i, 256 - 2 * i) for i in range(4)],
    "8 shapes, 57x242 to 64x256, 2 of each": [(2, 64 - i, 256 - 2 * i) for i in range(8)],
    "16 shapes, 57x241 to 64x256, 1 of each": [(1, 64 - i // 2, 256 - i) for i in range(16)],
}
"""Stacks, (k, m, n); matrices so small that they are stacked at all."""


def by_shape(stacks: Sequence[Tensor], triples: Sequence[Triple]) -> list[Tensor]:
    """What a step does."""
    return [orthogonalize(stack, triples) for stack in stacks]


def padded(stacks: Sequence[Tensor], triples: Sequence[Triple]) -> list[Tensor]:
    """All with the largest number of rows and columns, as many at a time as a step takes."""
    rows, columns = (max(stack.shape[dim] for stack in stacks) for dim in (1, 2))
    lengths = [len(stack) for stack in stacks]
    whole = stacks[0].new_zeros(sum(lengths), rows, columns)
    places = [
        part[:, : stack.shape[1], : stack.shape[2]]
        for part, stack in zip(torch.split(whole, lengths), stacks, strict=True)
    ]
    torch._foreach_copy_(places, list(stacks))
    for part in torch.split(whole, STACK_ELEMENTS["cpu"] // (rows * columns)):
        part.copy_(orthogonalize(part, triples))
    return [place.contiguous() for place in places]


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    about = numbers["about"]
    head = ["set", "by shape, ms", "padded, ms", "speed of padding"]
    body = [
        [name, milliseconds(row[BASELINE]), milliseconds(row[PADDED]), ratio(row["speed"])]
        for name, row in numbers["sets"].items()
    ]
    parts = [
        "# Nearly equal shapes: a stack for every shape, or one padded with zeros",
        "Orthogonalization of small float32 matrices, 5 steps of one polynomial.",
        provenance(about),
        quick_warning(about),
        how_timed(about, numbers["clock"]),
        markdown_table(head, body),
        "A padded stack is faster where there are many shapes with a matrix or two of each: what "
        "it saves is the cost of a call. Models have few shapes and many matrices of each, and "
        "there the padding, and cutting the updates out again, costs more than it saves. Larger "
        "matrices are not stacked, so padding could only cost. So `ROOT` does not pad; a stack "
        "also has one set of coefficients, and those belong to the true shape.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    command = Command(MODULE, __doc__, rounds=31)
    options = command.parse(arguments)
    clock = clock_of(options.device, options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    names = list(SETS)[-1:] if options.quick else list(SETS)
    sets = {}
    for name in names:
        stacks = [
            torch.randn(shape, generator=generator).to(options.device) for shape in SETS[name]
        ]
        triples = lookup(stacks[-1].shape[1:]).triples
        runs = {BASELINE: partial(by_shape, stacks, triples)}
        runs[PADDED] = partial(padded, stacks, triples)
        for run in runs.values():
            run()
        times = interleave(
            runs, options.rounds, device=options.device, seed=options.seed, label=name
        )
        medians = {way: quartiles(getattr(times[way], clock)).median for way in runs}
        ratios = speed(times[PADDED], times[BASELINE], clock)
        raw = {way: asdict(values) for way, values in times.items()}
        sets[name] = {**medians, "speed": ratios, "times": raw}
    print(f"Written to {command.write(options, {'clock': clock, 'sets': sets}, page_text)}")


if __name__ == "__main__":
    main()
