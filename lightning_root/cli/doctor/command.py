"""`python -m lightning_root doctor`: versions, devices, cache folder, a check of a second."""

import argparse
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from lightning_root.cli.doctor.cache import Cache, cache
from lightning_root.cli.doctor.devices import Device, devices
from lightning_root.cli.doctor.packages import Package, packages
from lightning_root.cli.doctor.selfcheck import Check, check_device
from lightning_root.cli.parser import CommandParser, program, run_command
from lightning_root.cli.terminal import print_json, small, text_table, wrapped
from lightning_root.versions import own_version

DESCRIPTION: Final = """\
Look at what a run needs: versions of packages, devices, the cache folder; and orthogonalize one
matrix on each device, compared with a singular value decomposition. Nothing is changed or sent.

Exit status: 0 if all is well, 1 if there is something to do, which the last lines say."""


@dataclass(frozen=True)
class Findings:
    """All that is looked at."""

    packages: Sequence[Package]
    devices: Sequence[Device]
    cache: Cache
    checks: Sequence[Check]

    @property
    def problems(self) -> list[str]:
        """What there is to do, in the order of the report."""
        found = [package.problem for package in self.packages]
        found += [device.problem for device in self.devices]
        found += [self.cache.problem, *(check.problem for check in self.checks)]
        return [problem for problem in found if problem is not None]


def run(arguments: Sequence[str]) -> int:
    """Print what was found.

    Args:
        arguments: What follows `doctor`.

    Returns:
        0 if all is well, 1 if there is something to do.

    Raises:
        SystemExit: With status 2 and one line on stderr if the arguments are wrong.
    """
    return run_command(make_parser(), arguments)


def make_parser() -> CommandParser:
    """The parser of its one option."""
    parser = CommandParser(prog=f"{program()} doctor", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    machine = devices()
    checks = [check for kind in machine for name in kind.usable for check in check_device(name)]
    found = Findings(packages(), machine, cache(), checks)
    if options.json:
        print_json(_plain(found))
    else:
        _print(found)
    return 1 if found.problems else 0


def _print(found: Findings) -> None:
    print(f"lightning_root {own_version()} on {platform.system()} {platform.machine()}\n")
    versions = [(package.version, package.note) for package in found.packages]
    rows = [(v.package, v.found or "-", v.supported, note) for v, note in versions]
    print(f"{text_table(('package', 'found', 'supported', ''), rows)}\n")
    for device in found.devices:
        _print_labelled(device.name, device.state)
    _print_labelled("cache", _kept(found.cache))
    header = ("orthogonalizer", "form", "dtype", "error", "at most", "ms")
    print(f"\n{text_table(header, [_row(check) for check in found.checks])}\n")
    print("\n".join(wrapped(f"To do: {problem}") for problem in found.problems) or "All is well.")


def _print_labelled(label: str, text: str) -> None:
    print(textwrap.fill(f"{label:<7}{text}", 100, subsequent_indent=" " * 7))


def _kept(cache: Cache) -> str:
    state = "can be written" if cache.failure is None else "cannot be written"
    sets = f"{_count(cache.coefficients, 'fitted set')} of coefficients"
    return f"{cache.folder} {state}; {sets}, {_count(cache.rates, 'measurement')} of machines"


def _row(check: Check) -> tuple[str, ...]:
    error = "failed" if check.error is None else small(check.error)
    milliseconds = f"{1e3 * check.seconds:.1f}"
    return check.device, check.form, check.dtype, error, small(check.bound), milliseconds


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _plain(found: Findings) -> dict[str, Any]:
    versions = [package.version for package in found.packages]
    return {
        "version": own_version(),
        "system": platform.platform(),
        "packages": [{**version._asdict(), "fits": version.fits} for version in versions],
        "devices": [asdict(device) for device in found.devices],
        "cache": {**asdict(found.cache), "folder": str(found.cache.folder)},
        "orthogonalizer": [asdict(check) for check in found.checks],
        "problems": found.problems,
    }
