"""Change the code in small ways, one at a time, and see whether the tests notice.

    pip install mutmut==3.8.1
    python -m examples.benchmarks.mutants
    python -m examples.benchmarks.mutants --packages functional --count 20     # to try it

mutmut makes the mutants of `functional`, `optim` and `coefficients` and runs, on each one of a
sample, the quickest of its package's tests that call the function it changes. What survives those,
or is called in other processes alone, and is not known to be harmless, meets whole folders of tests
in a new process. What only changes a message is left out. The copy of the project is kept, so that
a run that was stopped goes on.

Writes `mutants.md` (the page) and `mutants.json` (every mutant). Which survivors are harmless, and
why, is said in `mutating/harmless.toml`; the exit status is 1 if there are others.
"""

import argparse
import shlex
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from examples.benchmarks.mutating.runs import ROOT, Mutant, Package
from examples.benchmarks.page import RESULTS, environment, markdown_table, provenance
from examples.sweep import positive
from lightning_root._files import write_json

MODULE = "examples.benchmarks.mutants"
TESTS = {
    "functional": ("functional", "kernels", "diagnostics"),
    "optim": ("distributed", "optim", "kernels", "diagnostics"),
    "coefficients": ("coefficients", "optim", "cli"),
}
"""Packages, and the folders of tests that use them most, those first that may notice first."""
HARMLESS = Path(__file__).with_name("mutating") / "harmless.toml"
OUTCOMES = ("killed", "timeout", "survived")
UNJUDGED = "**not judged**"
Known: TypeAlias = tuple[str, str]

# Where mutmut's word says less than it knows: a test that cannot even start has noticed.
WORDS = {"check was interrupted by user": "killed", "segfault": "killed", "no tests": "not called"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0]
    )
    add = found.add_argument
    add("--packages", nargs="+", choices=TESTS, default=list(TESTS), help="default: all three")
    add("--count", type=positive, default=150, metavar="N", help="of a package (default: 150)")
    add("--seconds", type=float, default=5.0, help="of tests for a mutant at first (default: 5)")
    add("--seed", type=int, default=0, help="of the sample (default: 0)")
    add("--folder", type=Path, default=ROOT / "build/mutants", help="default: build/mutants")
    add("--output", type=Path, default=RESULTS, metavar="FOLDER", help="for page and numbers")
    return found


def outcomes(options: argparse.Namespace, harmless: Mapping[Known, str]) -> list[dict[str, Any]]:
    """Try the mutants of all packages; what became of each, and why survivors are harmless.

    Args:
        options: Of the command line.
        harmless: Why a mutant is, by its function and what the changed lines become.
    """
    found = []
    for name in options.packages:
        package = Package(name, options.folder.resolve() / name)
        package.generate()
        sample = package.sample(options.count, options.seed)
        if new := [mutant for mutant in sample if mutant.outcome == "not checked"]:
            print(f"{name}: {len(new)} mutants, with the quickest tests", file=sys.stderr)
            package.run(new, options.seconds)
            sample = package.sample(options.count, options.seed)
        tests = [f"tests/{folder}" for folder in TESTS[name]]
        for mutant in sample:
            one = record(name, mutant)
            reason = harmless.get((one["function"], one["new"]))
            if one["outcome"] in ("survived", "not called"):
                one["outcome"] = "survived" if reason else package.whole(mutant, tests)
            if one["outcome"] == "survived":
                one["reason"] = reason or UNJUDGED
            found.append(one)
    return found


def record(package: str, mutant: Mutant) -> dict[str, Any]:
    """What the JSON file holds of a mutant."""
    module, _, function = mutant.name.removeprefix("lightning_root.").rpartition(".")
    function = function.rpartition("__mutmut_")[0].removeprefix("x_")
    name = ".".join(part for part in function.removeprefix("xǁ").split("ǁ"))
    outcome = WORDS.get(mutant.outcome, mutant.outcome)
    where = {"package": package, "function": f"{module}.{name}"}
    return {**where, **mutant.change._asdict(), "outcome": outcome}


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    mutants, about = numbers["mutants"], numbers["about"]
    survivors = [mutant for mutant in mutants if mutant["outcome"] == "survived"]
    counts = Counter(mutant["outcome"] for mutant in mutants)
    parts = [
        "# Mutants",
        "The code is changed in one small way, and the tests are run: if they pass, they have "
        "not noticed. mutmut changes functions and methods of `functional`, `optim` and "
        "`coefficients`, except decorated ones and the wording of messages; of its mutants "
        f"{numbers['count']} of a package are drawn (seed {numbers['seed']}). Each meets the "
        "quickest tests of its package that call what it changes. What survives them, or is called "
        "in other processes alone, meets whole folders of tests, each time in new processes: "
        f"{_folders()}.",
        provenance(
            about,
            f"mutmut {about['mutmut']}; commit {about['commit']}.",
            "The minutes are those of the last run, which goes on from earlier ones.",
        ),
        f"**{len(mutants)} mutants: {counts['killed'] + counts['timeout']} noticed, "
        f"{len(survivors)} survived.**",
        "## By package",
        _table("package", mutants),
        "## By what is changed",
        _table("kind", mutants),
        "A timeout is a mutant that runs more than 20 times as long as its tests, or 20 minutes.",
        "## Survivors",
        _survivors(survivors),
    ]
    return "\n\n".join(parts) + "\n"


def _folders() -> str:
    return "; ".join(
        f"for `{name}` " + ", ".join(f"`tests/{folder}`" for folder in folders)
        for name, folders in TESTS.items()
    )


def _table(field: str, mutants: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter((mutant[field], mutant["outcome"]) for mutant in mutants)
    rows = []
    for name in dict.fromkeys(sorted(mutant[field] for mutant in mutants)):
        rows.append([name, *(str(counts[name, outcome]) for outcome in OUTCOMES)])
    return markdown_table([field, *OUTCOMES], rows)


def _survivors(mutants: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| function | instead of | stands | why that is harmless |", "|---|---|---|---|"]
    for mutant in sorted(mutants, key=lambda mutant: mutant["function"]):
        old, new = (mutant[side].replace("|", "\\|") for side in ("old", "new"))
        rows.append(f"| `{mutant['function']}` | `{old}` | `{new}` | {mutant['reason']} |")
    return "\n".join(rows)


def commit() -> str:
    """The commit that is checked out, with a "+" if files have changed since."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return found.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants, write page and numbers; 1 if a survivor is not known to be harmless."""
    given = sys.argv[1:] if arguments is None else arguments
    options, start = parser().parse_args(given), time.perf_counter()
    try:
        mutmut = version("mutmut")
    except PackageNotFoundError:
        print("mutmut is not installed; `pip install mutmut==3.8.1` brings it", file=sys.stderr)
        return 2
    entries = tomllib.loads(HARMLESS.read_text("utf-8")).get("harmless", [])
    harmless = {(each["function"], each["new"]): each["reason"] for each in entries}
    mutants = outcomes(options, harmless)
    about = {
        "command": shlex.join(["python", "-m", MODULE, *given]),
        **environment(),
        "threads": 1,
        "mutmut": mutmut,
        "commit": commit(),
        "minutes": (time.perf_counter() - start) / 60,
        "json": "mutants.json",
    }
    numbers = {"about": about, "count": options.count, "seed": options.seed, "mutants": mutants}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "mutants.json", numbers, indent=None)
    page = options.output / "mutants.md"
    page.write_text(page_text(numbers), "utf-8")
    unjudged = sum(mutant.get("reason") == UNJUDGED for mutant in mutants)
    print(f"{len(mutants)} mutants, {unjudged} survivors not judged. Written to {page}")
    return 1 if unjudged else 0


if __name__ == "__main__":
    sys.exit(main())
