"""A machine with Ascend NPUs to run programs on: an emulated one, or the one that is there."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.distributed.pool import free_port

HERE = Path(__file__).parent
PROJECT = HERE.parents[2]
WHEEL = PROJECT / ".npu"
LIBRARIES = ("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
TIME_LIMIT = 600.0  # seconds for a program: what hangs is to end, and nothing else
ENTRY_POINT = "[torch.backends]\nemulated_npu = tests.npu.emulation.overlay:install\n"


def missing() -> str | None:
    """What there is not, of what an emulation needs."""
    if sys.platform != "linux":
        return "the emulation of CANN is for Linux"
    if shutil.which("gcc") is None:
        return "there is no gcc to build the emulation of CANN with"
    if not (WHEEL / "torch_npu").is_dir():
        return "there is no torch_npu in .npu; `make test-npu` puts it there"
    return None


def build(folder: Path) -> None:
    """The libraries, and what makes torch load the overlay in every process."""
    library = folder / "libascendcl.so"
    options = ("-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-shared", "-fPIC")
    subprocess.run(["gcc", *options, "-o", library, HERE / "cann.c"], check=True)
    for name in LIBRARIES[1:]:
        (folder / f"lib{name}.so").symlink_to(library.name)
    described = folder / "emulated_npu-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: emulated-npu\nVersion: 0\n")
    (described / "entry_points.txt").write_text(ENTRY_POINT)


@dataclass(frozen=True)
class Machine:
    """Runs programs, each in its own process.

    Args:
        folder: Of `build`; None for the machine that is there.
        scratch: For results.
    """

    folder: Path | None
    scratch: Path

    @property
    def emulated(self) -> bool:
        return self.folder is not None

    def environment(self, **changes: str | None) -> dict[str, str]:
        """The process's environment; None takes a variable away."""
        environment = {**os.environ, "TASK_QUEUE_ENABLE": "0", "OMP_NUM_THREADS": "1"}
        paths = [str(PROJECT)]
        if self.folder is not None:
            for name in [name for name in environment if name.startswith("ASCEND_")]:
                del environment[name]
            environment["LD_LIBRARY_PATH"] = str(self.folder)
            paths += [str(WHEEL), str(self.folder)]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        for name, value in changes.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return environment

    def start(self, *arguments: str, **changes: str | None) -> subprocess.Popen[str]:
        """Start Python with these arguments."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self.environment(**changes),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, ranks: int = 1, **changes: str | None) -> str:
        """Run Python with these arguments, and return what rank 0 printed.

        Args:
            arguments: Of Python.
            ranks: How many processes; more than one are told their rank as torchrun does it.
            changes: Of the environment.

        Raises:
            AssertionError: If one fails, with the end of what it printed.
        """
        begun = []
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(ranks):
            if ranks > 1:
                places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                changes = {**changes, **shared, **places}
            begun.append(self.start(*arguments, **changes))
        try:
            printed = [process.communicate(timeout=TIME_LIMIT)[0] for process in begun]
        finally:
            for process in begun:
                process.kill()
        for process, text in zip(begun, printed, strict=True):
            assert process.returncode == 0, f"{arguments} failed:\n{text[-6000:]}"
        return printed[0]

    def call(self, program: str, *arguments: Any, ranks: int = 1, **changes: str | None) -> Any:
        """What a function of `tests.npu.programs` returns, on rank 0, in processes of its own."""
        file, name = tempfile.mkstemp(prefix=f"{program}-", dir=self.scratch)
        place = Path(name)
        os.close(file)
        place.write_bytes(pickle.dumps(arguments))
        self.run("-m", "tests.npu.programs", program, name, ranks=ranks, **changes)
        return pickle.loads(place.read_bytes())
