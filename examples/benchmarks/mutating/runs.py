"""One package's mutants: a copy of the project, mutmut in it, what it found."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from examples.benchmarks.mutating.kinds import WORDING, Change, change, functions
from examples.benchmarks.mutating.order import SECONDS
from lightning_root._files import write_json

ROOT: Final = Path(__file__).parents[3]
COPIED: Final = ("lightning_root", "tests", "examples", "configs", "pyproject.toml", "README.md")

CONFIGURATION: Final = """
[tool.mutmut]
source_paths = ["lightning_root"]
only_mutate = ["lightning_root/{package}/*"]
also_copy = ["examples", "configs", "README.md"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "examples.benchmarks.mutating.order"]
pytest_add_cli_args_test_selection = ["tests/{package}"]
timeout_constant = 2.0
timeout_multiplier = 20.0
use_git_change_detection = false
track_dependencies = false
"""

RUN: Final = "from mutmut.__main__ import cli; cli()"

WHOLE_SECONDS: Final = 1200.0
"""Limit of the tests that run as a whole: a mutant may wait forever for another process."""

# What `mutmut run` begins with, without the tests that it would run then.
GENERATE: Final = """
from mutmut import __main__ as mutmut
mutmut.copy_src_dir()
mutmut.copy_also_copy_files()
mutmut.create_mutants(1)
"""


@dataclass(frozen=True)
class Mutant:
    """One mutant and what became of it.

    Args:
        name: As mutmut names it.
        change: What it changes.
        outcome: In mutmut's word; "not checked" before it was tried.
    """

    name: str
    change: Change
    outcome: str


@dataclass(frozen=True)
class Package:
    """A package whose tests are tried on its mutants.

    Args:
        name: Below `lightning_root`, and below `tests`.
        folder: For its copy of the project; what was found there before is kept.
    """

    name: str
    folder: Path

    def generate(self) -> None:
        """Copy the project, and write the mutants of functions that are new or have changed.

        Raises:
            subprocess.CalledProcessError: If mutmut fails.
        """
        for name in COPIED:
            source, target = ROOT / name, self.folder / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
            else:
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        with (self.folder / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(CONFIGURATION.format(package=self.name))
        self._mutmut(GENERATE)

    def sample(self, count: int, seed: int) -> list[Mutant]:
        """So many mutants, none of wording; which ones, does not depend on how many others are."""
        from mutmut.stats import status_by_exit_code

        codes: dict[str, tuple[Path, int | None]] = {}
        for meta in self.folder.glob("mutants/lightning_root/**/*.meta"):
            of_file = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
            codes |= {name: (meta.with_suffix(""), code) for name, code in of_file.items()}
        written = {file: functions(file) for file in {file for file, _ in codes.values()}}
        found: list[Mutant] = []
        for name in sorted(codes, key=lambda name: sha256(f"{seed} {name}".encode()).digest()):
            file, code = codes[name]
            made = change(name.rpartition(".")[2], written[file])
            if made.kind != WORDING:
                found.append(Mutant(name, made, status_by_exit_code[code]))
            if len(found) == count:
                break
        return found

    def run(self, mutants: Iterable[Mutant], seconds: float) -> None:
        """Try them on those tests that call what they change, the quickest first.

        Args:
            mutants: Which ones.
            seconds: Of tests for one mutant.

        Raises:
            subprocess.CalledProcessError: If mutmut fails; what it has found is kept.
        """
        names = (mutant.name for mutant in mutants)
        self._mutmut(RUN, "run", "--max-children", "1", *names, seconds=seconds)

    def whole(self, mutant: Mutant, tests: Sequence[str]) -> str:
        """Run tests as a whole, with a mutant from the first import on, in every process.

        What came of it is kept, and comes back at once the next time.

        Args:
            mutant: Which one.
            tests: Files or folders; the first failure ends the run.

        Returns:
            "killed", "survived" or "timeout".
        """
        file = self.folder / "whole.json"
        found: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        key = f"{mutant.name}: {mutant.change.new}"
        if key not in found:
            print(f"{len(found) + 1}. {key}", file=sys.stderr)
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
            try:
                ended = subprocess.run(
                    command,
                    cwd=self.folder / "mutants",
                    env={**os.environ, "OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": mutant.name},
                    stdout=subprocess.DEVNULL,
                    timeout=WHOLE_SECONDS,
                )
                found[key] = "killed" if ended.returncode else "survived"
            except subprocess.TimeoutExpired:
                found[key] = "timeout"
            write_json(file, found, indent=1)
        return found[key]

    def _mutmut(self, program: str, *arguments: str, seconds: float = 0.0) -> None:
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", SECONDS: str(seconds)},
            check=True,
        )
