"""`coefficients compare` and `fit`: sets of others and of one's own on the same spectra."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lightning_root.cli.coefficients.picture import draw_comparisons
from lightning_root.cli.coefficients.sets import (
    CoefficientComparison,
    Spectra,
    is_bounded,
    read_sets,
    set_by_name,
    set_title,
    why_unbounded,
)
from lightning_root.cli.coefficients.show import (
    LEGEND,
    PROPERTIES,
    print_sets,
    property_cells,
    triples_text,
)
from lightning_root.cli.output import (
    check_picture,
    error_text,
    print_json,
    progress,
    range_text,
    text_table,
    wrapped,
)
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

NAMES: Final[Mapping[str, str]] = {
    "Muon": "muon",
    "paper": "paper",
    "published": "published",
    "You": "quintic",
    "Polar Express": "polar_express",
    "CANS": "cans",
    "adaptive": "adaptive",
}
"""Names to show, and what `lookup` calls them."""

FITTED: Final = "fitted"


def compare(options: argparse.Namespace) -> int:
    """Print the error of every set, for every shape and number of steps."""
    spectra = Spectra.read(options.spectrum)
    files = {_label(path, options.files): read_sets(path) for path in options.files}
    if options.plot:
        check_picture(options.plot)
    jobs = [(shape, count) for shape in spectra.shapes(options.shapes) for count in options.steps]
    comparisons = [
        CoefficientComparison(
            shape, count, spectra.spectrum(shape, count), _sets(shape, count, files)
        )
        for shape, count in progress(jobs, "comparing")
    ]
    if options.plot:
        draw_comparisons(options.plot, comparisons, spectra.description)
    if options.json:
        print_json([_as_dict(comparison) for comparison in comparisons])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {spectra.description}; * is the best bounded set"))
    for shape in dict.fromkeys(shape for shape, _ in jobs):
        print(f"\n{_compared_table([each for each in comparisons if each.shape == shape])}")
    notes = [
        f"! {name}, {comparison.title}: {why_unbounded(entry)}"
        for comparison in comparisons
        for name, entry in comparison.sets.items()
        if entry is not None and not is_bounded(entry)
    ]
    if notes:
        print("\n" + "\n".join(notes))
    return 0


def _label(path: str, paths: Sequence[str]) -> str:
    """Return the file's name, or the path where two files, or a file and a set, share a name."""
    name = Path(path).stem
    taken = [*NAMES, *(Path(other).stem for other in paths if other != path)]
    return path if name in taken else name


def _sets(
    shape: Shape, steps: int, files: Mapping[str, Sequence[Coefficients]]
) -> dict[str, Coefficients | None]:
    sets: dict[str, Coefficients | None] = {
        label: set_by_name(name, shape, steps) for label, name in NAMES.items()
    }
    for label, entries in files.items():
        fitting = (e for e in entries if e.steps == steps and e.shape in (shape, None))
        sets[label] = next(fitting, None)
    return sets


def _compared_table(comparisons: Sequence[CoefficientComparison]) -> str:
    """Lay out the sets of one shape: a row for each set, a column for each number of steps."""
    shape = shape_text(comparisons[0].shape)
    header = (shape, *(f"T = {comparison.steps}" for comparison in comparisons), PROPERTIES[0])
    rows = []
    for name in comparisons[0].sets:
        ranges = [entry.certificate for each in comparisons if (entry := each.sets[name])]
        reach = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
        cells = [_cell(comparison, name) for comparison in comparisons]
        rows.append((name, *cells, range_text(reach) if reach else "-"))
    return text_table(header, rows)


def _cell(comparison: CoefficientComparison, name: str) -> str:
    """Format the error of a set, with "!" if it is unbounded and "*" if it is the best."""
    entry, error = comparison.sets[name], comparison.errors[name]
    if entry is None or error is None:
        return "-"
    if not is_bounded(entry):
        return f"{error_text(error)} !"
    return f"{error_text(error)} *" if error <= comparison.best else error_text(error)


def _as_dict(comparison: CoefficientComparison) -> dict[str, Any]:
    sets = [
        {
            "name": name,
            "source": entry.source,
            "error": comparison.errors[name],
            "range": entry.certificate,
            "bounded": is_bounded(entry),
            "reason": None if is_bounded(entry) else why_unbounded(entry),
            "triples": entry.triples,
        }
        for name, entry in comparison.sets.items()
        if entry is not None
    ]
    shape, spectrum = comparison.shape, comparison.spectrum.name
    return {"shape": shape, "steps": comparison.steps, "spectrum": spectrum, "sets": sets}


def fit(options: argparse.Namespace) -> int:
    """Fit sets, print how much was gained, and write what was asked for."""
    spectra = Spectra.read(options.spectrum)
    if options.captured_share is not None and not spectra.captured:
        raise ValueError("`--captured-share` needs captured spectra; add `--spectrum FILE.json`")
    if options.plot:
        check_picture(options.plot)
    share, single = options.captured_share or 0.75, options.single
    jobs = [(shape, count) for shape in spectra.shapes(options.shapes) for count in options.steps]
    comparisons = [
        _fit(shape, count, fit_target(spectra, shape, count, share, single=single), single=single)
        for shape, count in progress(jobs, "fitting")
    ]
    goal = _target_text(spectra, share, single=single)
    sets = [entry for comparison in comparisons if (entry := comparison.sets[FITTED])]
    if options.output:
        save_coefficients(options.output, sets)
    if options.plot:
        draw_comparisons(options.plot, comparisons, goal)
    if options.json:
        print_sets([entry.as_dict() for entry in sets])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {goal}"))
    print(f"\n{_fitted_table(comparisons, sets)}\n\n{LEGEND}")
    print(_written_text(options.output, sets) if options.output else _listed_text(sets))
    return 0


def fit_target(
    spectra: Spectra, shape: Shape, steps: int, share: float, *, single: bool
) -> Spectrum:
    """Return the spectrum to fit to.

    Captured spectra have the weight `share`, the Gaussian law the rest, because a run's spectra go
    on changing. Where every step has its own triple, 3 % log-uniform keep the values in view that
    these leave out, as in `fit_coefficients`.
    """
    parts = [(1.0, spectra.spectrum(shape, steps))]
    if spectra.captured and share < 1.0:
        parts = [(share, parts[0][1]), (1.0 - share, marchenko_pastur(*shape))]
    if _adds_log_uniform(spectra, single=single):
        parts = [(0.97 * weight, spectrum) for weight, spectrum in parts]
        parts.append((0.03, log_uniform()))
    return mixture(*parts) if len(parts) > 1 else parts[0][1]


def _adds_log_uniform(spectra: Spectra, *, single: bool) -> bool:
    return not single and (bool(spectra.captured) or spectra.choice == "gaussian")


def _target_text(spectra: Spectra, share: float, *, single: bool) -> str:
    text = spectra.description
    if spectra.captured and share < 1.0:
        text += f" and Gaussian ones, {share:g} : {1.0 - share:g}"
    return text + (", with 3 % log-uniform" if _adds_log_uniform(spectra, single=single) else "")


def _fit(shape: Shape, steps: int, spectrum: Spectrum, *, single: bool) -> CoefficientComparison:
    """Fit a set and put it beside what the shape has without it; no worse than the table's."""
    adaptive = set_by_name("adaptive", shape, steps) if in_table(shape) else None
    starts = [adaptive.triples] if adaptive and not single else []
    fitted = fit_coefficients(shape, steps, spectrum, per_step=not single, starts=starts)
    sets = {"Muon": set_by_name("muon", shape, steps), "adaptive": adaptive, FITTED: fitted}
    return CoefficientComparison(shape, steps, spectrum, sets)


def _fitted_table(
    comparisons: Sequence[CoefficientComparison], sets: Sequence[Coefficients]
) -> str:
    rows = []
    for comparison, entry in zip(comparisons, sets, strict=True):
        errors = map(error_text, comparison.errors.values())
        name, steps = shape_text(comparison.shape), str(comparison.steps)
        rows.append((name, steps, *errors, *property_cells(entry)))
    return text_table(("shape", "T", *comparisons[0].sets, *PROPERTIES), rows)


def _listed_text(sets: Sequence[Coefficients]) -> str:
    """Format the triples, where no file takes them."""
    blocks = [f"\n{set_title(entry)}\n{triples_text(entry)}" for entry in sets]
    hint = "\nTo train with them: `--output FILE.json`, then `--optimizer.coefficients FILE.json`"
    return "\n".join([*blocks, hint])


def _written_text(output: Path, sets: Sequence[Coefficients]) -> str:
    """Say how to train with the file."""
    counts = sorted({entry.steps for entry in sets})
    steps = "" if 5 in counts else f" --optimizer.ns_steps {counts[-1]}"
    count = f"{len(sets)} set{'s' if len(sets) > 1 else ''}"
    return (
        f"\n{count} written to {output}. To train with it: --optimizer.coefficients {output}{steps}"
    )
