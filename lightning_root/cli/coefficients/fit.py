"""`coefficients fit`: sets of one's own, for given shapes and given or captured spectra."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_root.cli.coefficients.arguments import Spectra
from lightning_root.cli.coefficients.contest import Contest
from lightning_root.cli.coefficients.picture import draw_contests
from lightning_root.cli.coefficients.sets import named, title
from lightning_root.cli.coefficients.show import (
    ABILITIES,
    LEGEND,
    abilities,
    print_sets,
    triples_text,
)
from lightning_root.cli.plots import check_picture
from lightning_root.cli.terminal import progress, small, text_table, wrapped
from lightning_root.coefficients import (
    Coefficients,
    Spectrum,
    fit_coefficients,
    log_uniform,
    marchenko_pastur,
    mixture,
    save_coefficients,
)
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.coefficients.store import in_table

FITTED = "fitted"


def fit(options: argparse.Namespace) -> int:
    """Fit, print how much was gained, and write what was asked for."""
    spectra = Spectra.read(options.spectrum)
    if options.captured_share is not None and not spectra.captured:
        raise ValueError("`--captured-share` needs captured spectra; add `--spectrum FILE.json`")
    if options.plot:
        check_picture(options.plot)
    share, single = options.captured_share or 0.75, options.single
    jobs = [(shape, count) for shape in spectra.shapes(options.shapes) for count in options.steps]
    contests = [
        _contest(shape, count, target(spectra, shape, count, share, single=single), single=single)
        for shape, count in progress(jobs, "fitting")
    ]
    goal = _target_text(spectra, share, single=single)
    sets = [entry for contest in contests if (entry := contest.sets[FITTED])]
    if options.output:
        save_coefficients(options.output, sets)
    if options.plot:
        draw_contests(options.plot, contests, goal)
    if options.json:
        print_sets([entry.as_dict() for entry in sets])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {goal}"))
    print(f"\n{_table(contests, sets)}\n\n{LEGEND}")
    print(_written(options.output, sets) if options.output else _listed(sets))
    return 0


def target(spectra: Spectra, shape: Shape, steps: int, share: float, *, single: bool) -> Spectrum:
    """What to fit to.

    Captured spectra have the weight `share`, the Gaussian law the rest, because a run's spectra go
    on changing. Where every step has its own triple, 3 % log-uniform keep the values in view that
    these leave out, as in `fit_coefficients`.
    """
    parts = [(1.0, spectra.of(shape, steps))]
    if spectra.captured and share < 1.0:
        parts = [(share, spectra.of(shape, steps)), (1.0 - share, marchenko_pastur(*shape))]
    if _adds_log_uniform(spectra, single=single):
        parts = [(0.97 * weight, spectrum) for weight, spectrum in parts]
        parts.append((0.03, log_uniform()))
    return mixture(*parts) if len(parts) > 1 else parts[0][1]


def _adds_log_uniform(spectra: Spectra, *, single: bool) -> bool:
    return not single and (bool(spectra.captured) or spectra.choice == "gaussian")


def _target_text(spectra: Spectra, share: float, *, single: bool) -> str:
    words = spectra.description
    if spectra.captured and share < 1.0:
        words += f" and Gaussian ones, {share:g} : {1.0 - share:g}"
    return words + (", with 3 % log-uniform" if _adds_log_uniform(spectra, single=single) else "")


def _contest(shape: Shape, steps: int, spectrum: Spectrum, *, single: bool) -> Contest:
    """The fitted set beside what the shape has without it; no worse where the table has one."""
    adaptive = named("adaptive", shape, steps) if in_table(shape) else None
    starts = [adaptive.triples] if adaptive and not single else []
    fitted = fit_coefficients(shape, steps, spectrum, per_step=not single, starts=starts)
    muon = named("muon", shape, steps)
    return Contest(shape, steps, spectrum, {"Muon": muon, "adaptive": adaptive, FITTED: fitted})


def _table(contests: Sequence[Contest], sets: Sequence[Coefficients]) -> str:
    header = ("shape", "T", *contests[0].sets, *ABILITIES)
    rows = []
    for contest, entry in zip(contests, sets, strict=True):
        name = shape_text(contest.shape)
        errors = map(small, contest.errors.values())
        rows.append((name, str(contest.steps), *errors, *abilities(entry)))
    return text_table(header, rows)


def _listed(sets: Sequence[Coefficients]) -> str:
    """The triples, where no file takes them."""
    blocks = [f"\n{title(entry)}\n{triples_text(entry)}" for entry in sets]
    hint = "\nTo train with them: `--output FILE.json`, then `--optimizer.coefficients FILE.json`"
    return "\n".join([*blocks, hint])


def _written(output: Path, sets: Sequence[Coefficients]) -> str:
    """How to train with the file."""
    counts = sorted({entry.steps for entry in sets})
    steps = "" if 5 in counts else f" --optimizer.ns_steps {counts[-1]}"
    count = f"{len(sets)} set{'s' if len(sets) > 1 else ''}"
    return (
        f"\n{count} written to {output}. To train with it: --optimizer.coefficients {output}{steps}"
    )
