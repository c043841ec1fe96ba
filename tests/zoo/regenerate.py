"""Write the golden files anew: `python -m tests.zoo.regenerate`, or with names of architectures.

Then read the difference line by line: a golden file is what a person has checked, and no record of
what the code happens to do.
"""

import sys

from tests.zoo.catalogue import ZOO
from tests.zoo.golden import FOLDER, golden_file, render


def main(names: list[str]) -> None:
    """Write the golden files of some architectures, of all by default."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or ZOO:
        golden_file(name).write_text(render(ZOO[name].partition(ZOO[name].made())))
    if not names:
        for path in FOLDER.iterdir():
            if path.stem not in ZOO:
                path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
