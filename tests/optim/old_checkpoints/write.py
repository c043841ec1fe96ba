"""Write the checkpoints with the package as it was at some commit.

    git worktree add ../old 9cd8273
    python -m tests.optim.old_checkpoints.write FOLDER ../old

FOLDER then holds files of the same names as those that lie beside this one.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main(folder: Path, checkout: Path) -> None:
    """Write all cases, and say with what."""
    import lightning_root

    assert Path(lightning_root.__file__).resolve().is_relative_to(checkout), lightning_root
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()

    import torch

    from tests.distributed.pool import GlooPool
    from tests.optim.old_checkpoints.cases import (
        CASES,
        FOLDERS,
        machine,
        written,
        written_on_ranks,
    )

    pool = GlooPool()
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        if case.ranks == "one":
            found = written(case)
        else:
            below = str(folder / name) if name in FOLDERS else None
            found = pool.run(written_on_ranks, name, below)[0]
        torch.save({**found, "commit": commit, "machine": machine()}, folder / f"{name}.pt")
    pool.close()
    print(f"{len(CASES)} cases by {commit} on {machine()}")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as first:
        target, source = (Path(argument).resolve() for argument in sys.argv[1:3])
        # The package alone: the tests of that commit are not these. The ranks inherit the path.
        (Path(first) / "lightning_root").symlink_to(source / "lightning_root")
        sys.path.insert(0, first)
        os.environ["LIGHTNING_ROOT_CACHE"] = f"{first}/cache"
        main(target, source)
