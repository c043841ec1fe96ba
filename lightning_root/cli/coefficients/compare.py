"""`coefficients compare` and `fit`: sets of others and of one's own on the same spectra."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lightning_root.cli.coefficients.picture import NAMED_SETS, Comparison, draw_comparisons
from lightning_root.cli.coefficients.show import (
    LEGEND,
    PROPERTIES,
    is_bounded,
    joint_range,
    print_sets,
    read_sets,
    set_by_name,
    set_title,
    sets_table,
    triples_text,
    why_unbounded,
)
from lightning_root.cli.output import (
    check_picture,
    counted,
    error_text,
    print_json,
    progress,
    range_text,
    text_table,
    wrapped,
)
from lightning_root.coefficients import (
    Spectrum,
    SpectrumHistogram,
    fit_coefficients,
    load_spectra,
    log_uniform,
    marchenko_pastur,
    mixture,
    save_coefficients,
    training_model,
)
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.coefficients.store import in_table

LOG_UNIFORM_SHARE: Final = 0.03
"""Keeps the values in view that a spectrum leaves out, where every step has its own triple."""


class Spectra(NamedTuple):
    """The spectra that `--spectrum` names, for matrices of any shape or of those captured."""

    description: str  # whose singular values these are
    spectrum: Callable[[Shape, int], Spectrum]  # of a shape, for schedules of so many triples
    captured: Mapping[Shape, SpectrumHistogram] = {}


THEORETICAL_SPECTRA: Final = {
    "training": Spectra(
        "the model of training", lambda shape, steps: training_model(*shape, steps)
    ),
    "gaussian": Spectra("Gaussian matrices", lambda shape, _: marchenko_pastur(*shape)),
    "log-uniform": Spectra(
        "singular values spread evenly in log sigma over [0.001, 1]", lambda *_: log_uniform()
    ),
}


def compare(options: argparse.Namespace) -> int:
    """The error of published sets, the default and your own, by shape.

    Compared are:
      Muon           K. Jordan et al., 2024: one triple for all shapes
      paper          ROOT, arXiv:2511.20626: one triple per shape, fitted to Gaussian matrices
      published      the ROOT authors' script: four shapes, Muon's triple elsewhere
      You            J. You; F. Cesista: a triple per step
      Polar Express  arXiv:2505.16932: a triple per step
      CANS           arXiv:2506.10935: a triple per step
      adaptive       the default: a triple per step and shape
    """
    spectra = _read_spectra(options.spectrum)
    files = {_label(path, options.files): read_sets(path) for path in options.files}
    comparisons = []
    for shape, steps in _cases(options, spectra, "comparing"):
        sets = {label: set_by_name(name, shape, steps) for label, (name, *_) in NAMED_SETS.items()}
        for label, entries in files.items():
            fitting = [e for e in entries if e.steps == steps and e.shape in (shape, None)]
            if fitting:
                sets[label] = fitting[0]
        comparisons.append(Comparison(shape, steps, spectra.spectrum(shape, steps), sets))
    names = [*NAMED_SETS, *files]
    if options.plot:
        draw_comparisons(options.plot, comparisons, names, spectra.description)
    if options.json:
        print_json([_as_dict(comparison) for comparison in comparisons])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {spectra.description}; * is the best bounded set"))
    for shape in dict.fromkeys(each.shape for each in comparisons):
        print(f"\n{_table([each for each in comparisons if each.shape == shape], names)}")
    notes = [
        f"! {name}, {each.title}: {reason}"
        for each in comparisons
        for name, entry in each.sets.items()
        if (reason := why_unbounded(entry))
    ]
    if notes:
        print("\n" + "\n".join(notes))
    return 0


def _table(comparisons: Sequence[Comparison], names: Sequence[str]) -> str:
    """Lay out one shape, a row for each set: "!" if it is unbounded, "*" if it is the best."""
    columns = [names]
    for each in comparisons:
        best = min(error for name, error in each.errors.items() if is_bounded(each.sets[name]))
        marks = {name: "" if error > best else " *" for name, error in each.errors.items()}
        marks |= {name: " !" for name, entry in each.sets.items() if not is_bounded(entry)}
        columns.append([error_text(each.errors.get(name)) + marks.get(name, "") for name in names])
    found = [[each.sets[name] for each in comparisons if name in each.sets] for name in names]
    columns.append([range_text(joint_range(sets)) if sets else "-" for sets in found])
    header = (shape_text(comparisons[0].shape), *(f"T = {each.steps}" for each in comparisons))
    return text_table((*header, PROPERTIES[0]), list(zip(*columns, strict=True)))


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    sets = [
        {
            "name": name,
            "source": entry.source,
            "error": comparison.errors[name],
            "range": entry.certificate,
            "bounded": is_bounded(entry),
            "reason": why_unbounded(entry),
            "triples": entry.triples,
        }
        for name, entry in comparison.sets.items()
    ]
    shape, spectrum = comparison.shape, comparison.spectrum.name
    return {"shape": shape, "steps": comparison.steps, "spectrum": spectrum, "sets": sets}


def _label(path: str, paths: Sequence[str]) -> str:
    """Return the file's name, or the path where two files, or a file and a set, share a name."""
    name = Path(path).stem
    taken = [*NAMED_SETS, *(Path(other).stem for other in paths if other != path)]
    return path if name in taken else name


def _read_spectra(choice: str) -> Spectra:
    """Read what follows `--spectrum`: a name, or a file of captured spectra."""
    if choice in THEORETICAL_SPECTRA:
        return THEORETICAL_SPECTRA[choice]
    if not choice.endswith(".json"):
        raise ValueError(
            f"`--spectrum` must be one of {list(THEORETICAL_SPECTRA)} or a .json file of captured "
            f"spectra, got {choice!r}"
        )
    captured = load_spectra(choice)

    def spectrum(shape: Shape, _: int) -> Spectrum:
        matrices = counted(captured[shape].matrices, "matrix", "matrices")
        return captured[shape].spectrum(f"captured {shape_text(shape)} ({matrices})")

    return Spectra(f"the singular values captured in {choice}", spectrum, captured)


def _cases(
    options: argparse.Namespace, spectra: Spectra, doing: str
) -> Iterator[tuple[Shape, int]]:
    """Yield each shape, by default those captured, with each number of steps, after checks."""
    if options.plot:
        check_picture(options.plot)
    if not options.shapes and not spectra.captured:
        raise ValueError("name at least one SHAPE, for example 768x3072")
    missing = [shape_text(shape) for shape in options.shapes if shape not in spectra.captured]
    if spectra.captured and missing:
        known = ", ".join(map(shape_text, spectra.captured))
        raise ValueError(f"`{options.spectrum}` holds no spectrum of {missing[0]}; it has {known}")
    shapes = dict.fromkeys(options.shapes or spectra.captured)
    yield from progress([(shape, steps) for shape in shapes for steps in options.steps], doing)


def fit(options: argparse.Namespace) -> int:
    """Fit sets for shapes, less than a second each, and write them to a file.

    A fit minimises the error on the spectrum among sets that keep [0, 1.02] within [0, 1.3].
    """
    spectra = _read_spectra(options.spectrum)
    if options.captured_share is not None and not spectra.captured:
        raise ValueError("`--captured-share` needs captured spectra; add `--spectrum FILE.json`")
    share = (options.captured_share or 0.75) if spectra.captured else 1.0
    narrow = bool(spectra.captured) or options.spectrum == "gaussian"
    extra = LOG_UNIFORM_SHARE if narrow and not options.single else 0.0
    goal = spectra.description
    if share < 1.0:
        goal += f" and Gaussian ones, {share:g} : {1.0 - share:g}"
    if extra > 0.0:
        goal += f", with {100 * extra:g} % log-uniform"
    comparisons = []
    for shape, steps in _cases(options, spectra, "fitting"):
        spectrum = _fit_target(spectra.spectrum(shape, steps), shape, share, extra)
        comparisons.append(_fit(shape, steps, spectrum, single=options.single))
    sets = [comparison.sets["fitted"] for comparison in comparisons]
    names = ("Muon", "adaptive", "fitted")
    if options.output:
        save_coefficients(options.output, sets)
    if options.plot:
        draw_comparisons(options.plot, comparisons, names, goal)
    if options.json:
        print_sets([entry.as_dict() for entry in sets])
        return 0
    errors = {name: [error_text(c.errors.get(name)) for c in comparisons] for name in names}
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {goal}"))
    print(f"\n{sets_table(sets, ('shape', 'T', *names, *PROPERTIES), errors)}\n\n{LEGEND}")
    if options.output:
        counts = {entry.steps for entry in sets}
        longest = "" if 5 in counts else f" --optimizer.ns_steps {max(counts)}"
        print(
            f"\n{counted(len(sets), 'set')} written to {options.output}. To train with it: "
            f"--optimizer.coefficients {options.output}{longest}"
        )
    else:
        for entry in sets:
            print(f"\n{set_title(entry)}\n{triples_text(entry)}")
        hint = "`--output FILE.json`, then `--optimizer.coefficients FILE.json`"
        print(f"\nTo train with them: {hint}")
    return 0


def _fit_target(spectrum: Spectrum, shape: Shape, share: float, extra: float) -> Spectrum:
    """Mix a share of a spectrum with the Gaussian law, as a run's go on changing, and some more.

    `extra` is the share of log-uniform singular values in the whole.
    """
    parts = [(share, spectrum), (1.0 - share, marchenko_pastur(*shape))]
    parts = [((1.0 - extra) * weight, part) for weight, part in parts] + [(extra, log_uniform())]
    used = [(weight, part) for weight, part in parts if weight > 0.0]
    return mixture(*used) if len(used) > 1 else spectrum


def _fit(shape: Shape, steps: int, spectrum: Spectrum, *, single: bool) -> Comparison:
    """Fit a set and put it beside what the shape has without it; no worse than the table's."""
    sets = {"Muon": set_by_name("muon", shape, steps)}
    if in_table(shape):
        sets["adaptive"] = set_by_name("adaptive", shape, steps)
    starts = [sets["adaptive"].triples] if "adaptive" in sets and not single else []
    fitted = fit_coefficients(shape, steps, spectrum, per_step=not single, starts=starts)
    return Comparison(shape, steps, spectrum, {**sets, "fitted": fitted})
