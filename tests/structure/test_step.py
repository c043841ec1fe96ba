"""What a steady step goes through: files and functions of the package, and calls of them.

Every one is a place that a reader has to open to follow a step. Counted are functions, lambdas and
generator expressions; comprehensions belong to the function around them, as Python 3.12 has it. A
generator counts each time that it goes on. The numbers may only fall.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import lightning_root
from lightning_root import ROOT

PACKAGE = Path(lightning_root.__file__).parent
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>")

MAX_FILES = 10
MAX_FUNCTIONS = 52
MAX_CALLS = 212

MAX_FILES_OF_DDP = 2
"""Beyond those of one process."""

MAX_FILES_OF_FSDP2 = 2
"""Beyond those of one process."""


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv = nn.Linear(8, 24, bias=False)


class Net(nn.Module):
    """Eight parameters: three weights for ROOT, the first of which holds three matrices."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.attention = Attention()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)
        self.head = nn.Linear(8, 16)


def calls_of_a_step(way="alone", form="gram"):
    """How often the third step enters each function, by (file, first line, name)."""
    torch.set_num_threads(1)
    model = Net()
    if way == "fsdp2":
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh)
    optimizer = ROOT(model.parameters(), lr=1e-2, ns_form=form)
    if way == "ddp":
        optimizer.share(dist.group.WORLD)
    calls = Counter()

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and Path(code.co_filename).is_relative_to(PACKAGE):
            if code.co_name not in COMPREHENSIONS:
                file = str(Path(code.co_filename).relative_to(PACKAGE))
                calls[file, code.co_firstlineno, code.co_qualname] += 1

    for step in range(3):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape)
            if way == "fsdp2":
                mesh, placements = parameter.device_mesh, parameter.placements
                gradient = distribute_tensor(gradient, mesh, placements)
            parameter.grad = gradient
        sys.setprofile(note if step == 2 else None)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    return calls


def on_rank(rank, ranks, way):
    return calls_of_a_step(way)


def files_of(calls):
    return {file for file, _, _ in calls}


def listed(calls, files=None):
    """The functions and their calls, file by file."""
    by_file = defaultdict(list)
    for (file, _, name), count in calls.items():
        if files is None or file in files:
            by_file[file].append(f"{name} x {count}" if count > 1 else name)
    return "\n".join(f"{file}: {', '.join(names)}" for file, names in sorted(by_file.items()))


@pytest.mark.parametrize("form", ["standard", "gram", "eigh"])
def test_a_step_on_one_process_stays_short(form):
    """Whichever of its forms "auto" takes on a machine."""
    calls = calls_of_a_step(form=form)
    found = {"files": len(files_of(calls)), "functions": len(calls), "calls": calls.total()}
    limits = {"files": MAX_FILES, "functions": MAX_FUNCTIONS, "calls": MAX_CALLS}
    assert all(found[key] <= limits[key] for key in limits), (
        f"{found}, where at most {limits} are allowed\n{listed(calls)}"
    )


def test_parameters_are_what_the_count_is_of():
    optimizer = ROOT(Net().parameters())
    matrices = [route for route in optimizer.partition.routes if route.role == "root"]
    assert len(optimizer.partition.routes) == 8
    assert [route.name for route in matrices] == [
        "attention.qkv.weight",
        "up.weight",
        "down.weight",
    ]
    assert matrices[0].view.rows == (8, 8, 8)


def check_on_ranks(gloo_pool, way, limit):
    """Check both ranks: the busier of them may have files that the other has no need of."""
    alone = files_of(calls_of_a_step())
    for calls in gloo_pool.run(on_rank, way):
        more = files_of(calls) - alone
        assert len(more) <= limit, (
            f"{len(more)} files beyond those of one process, where at most {limit} are allowed\n"
            f"{listed(calls, more)}"
        )


def test_ddp_adds_few_files(gloo_pool):
    check_on_ranks(gloo_pool, "ddp", MAX_FILES_OF_DDP)


def test_fsdp2_adds_few_files(gloo_pool):
    check_on_ranks(gloo_pool, "fsdp2", MAX_FILES_OF_FSDP2)
