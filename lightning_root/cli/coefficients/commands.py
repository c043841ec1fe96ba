"""The four subcommands of `coefficients`; `help/coefficients-*.txt` says what each is for."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lightning_root.cli import output
from lightning_root.cli.coefficients import catalog
from lightning_root.cli.coefficients.catalog import is_bounded
from lightning_root.cli.coefficients.picture import NAMED_SETS, Comparison, draw_comparisons
from lightning_root.cli.output import counted, error_text, wrapped
from lightning_root.coefficients import (
    Coefficients,
    Spectrum,
    SpectrumHistogram,
    fit_coefficients,
    load_spectra,
    log_uniform,
    marchenko_pastur,
    output_range,
    save_coefficients,
    training_model,
)
from lightning_root.coefficients.shapes import Shape, shape_text
from lightning_root.coefficients.store import RATIOS, ROWS, grid_shape, in_table
from lightning_root.diagnostics.adaptation import LOG_UNIFORM_SHARE, fit_target


def show(options: argparse.Namespace) -> int:
    """Print sets, or the errors of the shipped table."""
    shipped = options.coefficients == "adaptive" and not options.shapes
    counts = dict.fromkeys(options.steps or [5])
    if shipped:
        grid = [grid_shape(rows, ratio) for rows in ROWS for ratio in RATIOS]
        sets = [entry for count in counts for entry in catalog.find_sets("adaptive", grid, [count])]
    else:
        sets = catalog.find_sets(options.coefficients, options.shapes, options.steps)
    if options.json:
        catalog.print_sets(
            sets, lambda e: {"bounded": is_bounded(e), "errors": catalog.errors_of(e)}
        )
    elif shipped:
        tables = [_shipped_table(count, sets) for count in counts]
        header = ("m", *(f"n = {ratio:g} m" for ratio in RATIOS))
        _print("shipped", tables=tables, header=header)
    else:
        _print("show", sets=sets, all_bounded=all(map(is_bounded, sets)))
    return 0


def _print(name: str, **values: Any) -> None:
    print(output.render(f"coefficients-{name}", catalog=catalog, **values))


def _shipped_table(count: int, sets: Sequence[Coefficients]) -> tuple[Any, ...]:
    """Return so many steps, their sets of the grid behind "adaptive", and rows of errors."""
    own = [entry for entry in sets if entry.steps == count]
    errors = [error_text(catalog.errors_of(entry)["training"]) for entry in own]
    columns = [errors[place :: len(RATIOS)] for place in range(len(RATIOS))]
    return count, own, list(zip(map(str, ROWS), *columns, strict=True))


def certify(options: argparse.Namespace) -> int:
    """Print ranges of p_T, and return 1 if one is too wide."""
    sets = catalog.find_sets(options.set, options.shapes, options.steps)
    failed = [entry for entry in sets if not is_bounded(entry)]
    if options.json:
        catalog.print_sets(sets, _certificate)
        return 1 if failed else 0
    single = dict.fromkeys(triple for entry in sets if (triple := catalog.shared_triple(entry)))
    _print("certify", sets=sets, single=single, failed=failed)
    return 1 if failed else 0


def _certificate(entry: Coefficients) -> dict[str, Any]:
    triple = catalog.shared_triple(entry)
    return {
        "range_to_1.02": output_range(entry.triples, upper=1.02),
        "fixed_points": [x for x, _ in catalog.fixed_points(triple)] if triple else None,
        "bounded": is_bounded(entry),
        "reason": catalog.why_unbounded(entry),
    }


class Spectra(NamedTuple):
    """The spectra that `--spectrum` names, for matrices of any shape or of those captured."""

    name: str
    description: str  # whose singular values these are
    captured: Mapping[Shape, SpectrumHistogram] = {}

    def of(self, shape: Shape, steps: int) -> Spectrum:
        """Return the spectrum of a shape, for schedules of so many triples."""
        if self.captured:
            matrices = counted(self.captured[shape].matrices, "matrix", "matrices")
            return self.captured[shape].spectrum(f"captured {shape_text(shape)} ({matrices})")
        if self.name == "training":
            return training_model(*shape, steps)
        return marchenko_pastur(*shape) if self.name == "gaussian" else log_uniform()


DESCRIPTIONS: Final = {
    "training": "the model of training",
    "gaussian": "Gaussian matrices",
    "log-uniform": "singular values spread evenly in log sigma over [0.001, 1]",
}


def _read_spectra(choice: str) -> Spectra:
    """Read what follows `--spectrum`: a name, or a file of captured spectra."""
    if choice in DESCRIPTIONS:
        return Spectra(choice, DESCRIPTIONS[choice])
    if not choice.endswith(".json"):
        raise ValueError(
            f"`--spectrum` must be one of {list(DESCRIPTIONS)} or a .json file of captured "
            f"spectra, got {choice!r}"
        )
    return Spectra(choice, f"the singular values captured in {choice}", load_spectra(choice))


def _cases(
    options: argparse.Namespace, spectra: Spectra, doing: str
) -> Iterator[tuple[Shape, int]]:
    """Yield each shape, by default those captured, with each number of steps, after checks."""
    if options.plot:
        output.check_picture(options.plot)
    if not options.shapes and not spectra.captured:
        raise ValueError("name at least one SHAPE, for example 768x3072")
    missing = [shape_text(shape) for shape in options.shapes if shape not in spectra.captured]
    if spectra.captured and missing:
        known = ", ".join(map(shape_text, spectra.captured))
        raise ValueError(f"`{options.spectrum}` holds no spectrum of {missing[0]}; it has {known}")
    shapes = dict.fromkeys(options.shapes or spectra.captured)
    cases = [(shape, steps) for shape in shapes for steps in options.steps]
    yield from output.progress(cases, doing)


def fit(options: argparse.Namespace) -> int:
    """Fit sets, print them, and write them to a file."""
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
        spectrum = fit_target(shape, spectra.of(shape, steps), share, extra)
        comparisons.append(_fit(shape, steps, spectrum, single=options.single))
    sets = [comparison.sets["fitted"] for comparison in comparisons]
    names = ("Muon", "adaptive", "fitted")
    if options.output:
        save_coefficients(options.output, sets)
    if options.plot:
        draw_comparisons(options.plot, comparisons, names, goal)
    if options.json:
        catalog.print_sets(sets)
        return 0
    errors = {name: [error_text(c.errors.get(name)) for c in comparisons] for name in names}
    _print("fit", sets=sets, goal=goal, names=names, errors=errors, file=options.output)
    return 0


def _fit(shape: Shape, steps: int, spectrum: Spectrum, *, single: bool) -> Comparison:
    """Fit a set and put it beside what the shape has without it; no worse than the table's."""
    sets = {"Muon": catalog.set_by_name("muon", shape, steps)}
    if in_table(shape):
        sets["adaptive"] = catalog.set_by_name("adaptive", shape, steps)
    starts = [sets["adaptive"].triples] if "adaptive" in sets and not single else []
    fitted = fit_coefficients(shape, steps, spectrum, per_step=not single, starts=starts)
    return Comparison(shape, steps, spectrum, {**sets, "fitted": fitted})


def compare(options: argparse.Namespace) -> int:
    """Print the errors of published sets, the default and those of files, by shape."""
    spectra = _read_spectra(options.spectrum)
    files = {_label(path, options.files): catalog.read_sets(path) for path in options.files}
    comparisons = []
    for shape, steps in _cases(options, spectra, "comparing"):
        named = {name: each["lookup"] for name, each in NAMED_SETS.items()}
        sets = {n: catalog.set_by_name(called, shape, steps) for n, called in named.items()}
        for label, entries in files.items():
            fitting = [e for e in entries if e.steps == steps and e.shape in (shape, None)]
            if fitting:
                sets[label] = fitting[0]
        comparisons.append(Comparison(shape, steps, spectra.of(shape, steps), sets))
    names = [*NAMED_SETS, *files]
    if options.plot:
        draw_comparisons(options.plot, comparisons, names, spectra.description)
    if options.json:
        output.print_json([_as_dict(comparison) for comparison in comparisons])
        return 0
    print(wrapped(f"Mean (p_T(sigma) - 1)^2 on {spectra.description}; * is the best bounded set"))
    for shape in dict.fromkeys(each.shape for each in comparisons):
        print(f"\n{_table([each for each in comparisons if each.shape == shape], names)}")
    notes = [
        f"! {name}, {each.title}: {reason}"
        for each in comparisons
        for name, entry in each.sets.items()
        if (reason := catalog.why_unbounded(entry))
    ]
    if notes:
        print("\n" + "\n".join(notes))
    return 0


def _label(path: str, paths: Sequence[str]) -> str:
    """Return the file's name, or the path where two files, or a file and a set, share a name."""
    name = Path(path).stem
    taken = [*NAMED_SETS, *(Path(other).stem for other in paths if other != path)]
    return path if name in taken else name


def _table(comparisons: Sequence[Comparison], names: Sequence[str]) -> str:
    """Lay out one shape, a row for each set: "!" if it is unbounded, "*" if it is the best."""
    columns = [names]
    for each in comparisons:
        best = min(error for name, error in each.errors.items() if is_bounded(each.sets[name]))
        marks = {name: "" if error > best else " *" for name, error in each.errors.items()}
        marks |= {name: " !" for name, entry in each.sets.items() if not is_bounded(entry)}
        columns.append([error_text(each.errors.get(name)) + marks.get(name, "") for name in names])
    found = [[each.sets[name] for each in comparisons if name in each.sets] for name in names]
    columns.append(
        [output.range_text(catalog.joint_range(sets)) if sets else "-" for sets in found]
    )
    header = (shape_text(comparisons[0].shape), *(f"T = {each.steps}" for each in comparisons))
    return output.text_table((*header, catalog.PROPERTIES[0]), list(zip(*columns, strict=True)))


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    sets = [
        {
            "name": name,
            "source": entry.source,
            "error": comparison.errors[name],
            "range": entry.certificate,
            "bounded": is_bounded(entry),
            "reason": catalog.why_unbounded(entry),
            "triples": entry.triples,
        }
        for name, entry in comparison.sets.items()
    ]
    shape, spectrum = comparison.shape, comparison.spectrum.name
    return {"shape": shape, "steps": comparison.steps, "spectrum": spectrum, "sets": sets}
