"""Small text to train on."""

from pathlib import Path


def write_sources(folder: Path, count: int = 40) -> Path:
    """Write some Python files of about 200 bytes; the folder is made if need be, and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.py").write_text(f"def function_{i}(x):\n    return x + {i * i}\n" * 5)
    return folder
