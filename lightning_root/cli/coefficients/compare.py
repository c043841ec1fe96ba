"""`coefficients compare`: published sets, the default and files on the same singular values."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lightning_root.cli.coefficients.arguments import Spectra
from lightning_root.cli.coefficients.contest import Contest
from lightning_root.cli.coefficients.picture import draw_contests
from lightning_root.cli.coefficients.sets import (
    from_file,
    is_bounded,
    named,
    pick,
    why_unbounded,
)
from lightning_root.cli.plots import check_picture
from lightning_root.cli.terminal import interval, print_json, progress, small, text_table, wrapped
from lightning_root.coefficients import Coefficients
from lightning_root.coefficients.shapes import Shape, shape_text

NAMES: Final[Mapping[str, str]] = {
    "Muon": "muon",
    "paper": "paper",
    "published": "published",
    "You": "quintic",
    "Polar Express": "polar_express",
    "CANS": "cans",
    "adaptive": "adaptive",
}
"""What to show, and what `lookup` calls it."""


def compare(options: argparse.Namespace) -> int:
    """Print the error of every set, for every shape and number of steps."""
    spectra = Spectra.read(options.spectrum)
    files = {_label(path, options.files): from_file(path) for path in options.files}
    if options.plot:
        check_picture(options.plot)
    jobs = [(shape, count) for shape in spectra.shapes(options.shapes) for count in options.steps]
    contests = [
        Contest(shape, count, spectra.of(shape, count), _sets(shape, count, files))
        for shape, count in progress(jobs, "comparing")
    ]
    if options.plot:
        draw_contests(options.plot, contests, spectra.description)
    if options.json:
        print_json([_as_dict(contest) for contest in contests])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {spectra.description}; * is the best bounded set"))
    for shape in dict.fromkeys(shape for shape, _ in jobs):
        print(f"\n{_table([contest for contest in contests if contest.shape == shape])}")
    refusals = _refusals(contests)
    if refusals:
        print("\n" + "\n".join(refusals))
    return 0


def _label(path: str, paths: Sequence[str]) -> str:
    """The file's name, or the path where two files have the same name or a set's."""
    name = Path(path).stem
    taken = [*NAMES, *(Path(other).stem for other in paths if other != path)]
    return path if name in taken else name


def _sets(
    shape: Shape, steps: int, files: Mapping[str, Sequence[Coefficients]]
) -> dict[str, Coefficients | None]:
    sets: dict[str, Coefficients | None] = {
        label: named(name, shape, steps) for label, name in NAMES.items()
    }
    return {**sets, **{label: pick(entries, shape, steps) for label, entries in files.items()}}


def _table(contests: Sequence[Contest]) -> str:
    """One shape: a row for each set, a column for each number of steps."""
    header = [shape_text(contests[0].shape), *(f"T = {contest.steps}" for contest in contests)]
    rows = []
    for name in contests[0].sets:
        ranges = [entry.certificate for contest in contests if (entry := contest.sets[name])]
        reach = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
        cells = [_cell(contest, name) for contest in contests]
        rows.append((name, *cells, interval(reach) if reach else "-"))
    return text_table((*header, "p_T on [0, 1]"), rows)


def _cell(contest: Contest, name: str) -> str:
    entry, error = contest.sets[name], contest.errors[name]
    if entry is None or error is None:
        return "-"
    if not is_bounded(entry):
        return f"{small(error)} !"
    return f"{small(error)} *" if error <= contest.best else small(error)


def _refusals(contests: Sequence[Contest]) -> list[str]:
    """Why sets that are marked with "!" are out of the contest."""
    return [
        f"! {name}, {contest.title}: {why_unbounded(entry)}"
        for contest in contests
        for name, entry in contest.sets.items()
        if entry is not None and not is_bounded(entry)
    ]


def _as_dict(contest: Contest) -> dict[str, Any]:
    sets = [
        {
            "name": name,
            "source": entry.source,
            "error": contest.errors[name],
            "range": entry.certificate,
            "bounded": is_bounded(entry),
            "reason": None if is_bounded(entry) else why_unbounded(entry),
            "triples": entry.triples,
        }
        for name, entry in contest.sets.items()
        if entry is not None
    ]
    shape, spectrum = contest.shape, contest.spectrum.name
    return {"shape": shape, "steps": contest.steps, "spectrum": spectrum, "sets": sets}
