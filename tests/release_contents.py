"""What is in the archives of a release: `make release-check` runs this, pytest does not.

Its argument is the folder that holds one wheel and one sdist.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from packaging.utils import parse_sdist_filename, parse_wheel_filename

PROJECT = Path(__file__).parents[1]
PACKAGE = "lightning_root"


def sources(folder: str) -> set[str]:
    """Files of the project below `folder`, without what Python leaves there."""
    found = (path for path in (PROJECT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(PROJECT)) for path in found if "__pycache__" not in path.parts}


def check_wheel(path: Path) -> Metadata:
    """The wheel holds the package, its types and its licence, and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        described = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(described), validate=True)
        scripts = archive.read(described.replace("METADATA", "entry_points.txt")).decode()
    assert f"{PACKAGE}/py.typed" in names, "the wheel has no py.typed"
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == sources(PACKAGE), inside ^ sources(PACKAGE)
    assert any(name.endswith("/licenses/LICENSE") for name in names), "the wheel has no licence"
    assert "lightning-root = lightning_root.cli:main" in scripts, scripts
    return metadata


def check_sdist(path: Path) -> None:
    """The sdist holds what the wheel is made of, and all that is needed to test and change it."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", ".ci/run"}
    for folder in (PACKAGE, "tests", "configs", "examples"):
        wanted |= sources(folder)
    assert wanted <= names, f"not in the sdist: {sorted(wanted - names)}"


def check_description(metadata: Metadata) -> None:
    """The page of the package is the README, and its Markdown is closed."""
    assert metadata.description_content_type == "text/markdown", metadata.description_content_type
    text = metadata.description or ""
    assert text.strip() == (PROJECT / "README.md").read_text("utf-8").strip()
    assert text.count("\n```") % 2 == 0, "a block of code in README.md is not closed"


def check_changelog(version: str) -> None:
    """The newest section with a number is this version's."""
    sections = re.findall(r"(?m)^## \[([^\]]+)\]", (PROJECT / "CHANGELOG.md").read_text("utf-8"))
    numbered = [section for section in sections if section != "Unreleased"]
    if not numbered:
        print(f"note: CHANGELOG.md has [Unreleased] alone; name it [{version}] at the release")
        return
    assert numbered[0] == version, f"CHANGELOG.md ends with {numbered[0]}, this is {version}"


def main() -> None:
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    metadata = check_wheel(wheel)
    check_sdist(sdist)
    check_description(metadata)
    version = str(metadata.version)
    assert str(parse_wheel_filename(wheel.name)[1]) == version, wheel.name
    assert str(parse_sdist_filename(sdist.name)[1]) == version, sdist.name
    check_changelog(version)
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in (wheel, sdist))
    print(f"{PACKAGE} {version}: {sizes}; Python {metadata.requires_python}")


if __name__ == "__main__":
    main()
