"""The monitor under DDP and FSDP2, on two gloo processes.

Every rank sees the same batches, so what is logged is what one process logs.
"""

import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import Parameter

from lightning_root import ROOT, ROOTMixin, ShardedDDPStrategy
from lightning_root.diagnostics import ROOTMonitor
from lightning_root.diagnostics.observation import weight_norms
from lightning_root.optim import Stack
from tests.integration.models import PlainNet, ShardedNet, trainer, weights

# Two ranks meet in the middle of the second block.
OPTIONS = {
    **{"lr": 1e-2, "warmup_steps": 2, "max_steps": 4},
    "rules": {"body.1.weight": {"rows": [3, 7]}},
}


class Net(ROOTMixin, PlainNet):
    root_options = OPTIONS


class Sharded(ROOTMixin, ShardedNet):
    root_options = OPTIONS


def run(name, ranks, folder=None, monitor=True):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options = {}
    if name in ("ddp", "parts"):
        kind = DDPStrategy if name == "ddp" else ShardedDDPStrategy
        options["strategy"] = kind(process_group_backend="gloo")
    elif name == "fsdp2":
        options["strategy"] = ModelParallelStrategy(ranks, 1)
    loggers = []
    if folder:
        loggers = [TensorBoardLogger(folder, "board", 0), CSVLogger(folder, "table", 0)]
    model = Sharded() if name == "fsdp2" else Net()
    fit = trainer(
        max_steps=4,
        devices=ranks,
        callbacks=[ROOTMonitor(2)] if monitor else [],
        logger=loggers,
        **options,
    )
    fit.fit(model)
    found = fit.callback_metrics.items()
    return {tag: float(v) for tag, v in found if tag.startswith("root/")}, weights(model)


def watched(rank, ranks, name, folder, monitor=True):
    return run(name, ranks, folder, monitor)


def seen_by_the_owner_alone(rank, ranks, name, folder):
    """Each matrix is seen by one rank, as if only that one orthogonalized it."""
    original = ROOTMonitor.on_before_optimizer_step

    def owned(hook):
        def look(stack):
            mine = [i for i, (name, _) in enumerate(stack.names) if name == f"body.{rank}.weight"]
            if not mine:
                return
            hook(
                Stack(
                    tuple(stack.names[i] for i in mine),
                    stack.momentum[mine],
                    stack.clipped[mine],
                    stack.update[mine],
                    tuple(stack.scales[i] for i in mine),
                    stack.coefficients,
                    stack.group,
                )
            )

        return look

    def step(self, fit, module, optimizer):
        original(self, fit, module, optimizer)
        hooks = optimizer._stack_hooks
        for key in hooks:
            hooks[key] = owned(hooks[key])

    ROOTMonitor.on_before_optimizer_step = step
    try:
        return run(name, ranks, folder)
    finally:
        ROOTMonitor.on_before_optimizer_step = original


def scalars(folder):
    found = EventAccumulator(f"{folder}/board/version_0").Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("root/")]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("name", ["ddp", "parts", "fsdp2"])
def test_all_ranks_watch_what_one_process_would(gloo_pool, name, tmp_path):
    """Numbers that `ModelCheckpoint` acts on must be the same everywhere, or ranks part ways."""
    expected, _ = run("alone", 1, str(tmp_path / "alone"))
    first, second = gloo_pool.run(watched, name, str(tmp_path / name))
    assert first[0] == second[0]
    assert first[0] == pytest.approx(expected, rel=1e-4)
    logged, alone = scalars(tmp_path / name), scalars(tmp_path / "alone")
    assert set(logged) == set(alone)
    assert {"root/orth_error/body.0.weight", "root/update_to_weight/body.1.weight/1"} <= set(logged)
    for tag, points in alone.items():
        assert [step for step, _ in logged[tag]] == [step for step, _ in points] == [1, 3]
        values = [value for _, value in logged[tag]]
        # Small errors are what rounding makes them; it differs with the matrices side by side.
        assert values == pytest.approx([value for _, value in points], rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_run_is_bitwise_the_run_without(gloo_pool, name):
    plain = gloo_pool.run(watched, name, None, False)
    for (_, with_monitor), (_, without) in zip(
        gloo_pool.run(watched, name, None), plain, strict=True
    ):
        assert all(torch.equal(with_monitor[key], without[key]) for key in without)


def test_what_only_its_owner_sees_counts_as_much(gloo_pool, tmp_path):
    everywhere = gloo_pool.run(watched, "ddp", str(tmp_path / "everywhere"))
    owners = gloo_pool.run(seen_by_the_owner_alone, "ddp", str(tmp_path / "owners"))
    assert owners[0][0] == owners[1][0]
    assert owners[0][0] == pytest.approx(everywhere[0][0], rel=1e-5)
    first, second = scalars(tmp_path / "everywhere"), scalars(tmp_path / "owners")
    assert set(first) == set(second)
    for tag in first:
        assert [v for _, v in second[tag]] == pytest.approx([v for _, v in first[tag]], rel=1e-5)


SHAPES = {"whole": (5, 7), "row": (1, 9), "tall": (11, 4), "cut": (10, 6)}
PLACEMENTS = [(Shard(0), Replicate()), (Shard(1), Replicate()), (Replicate(), Shard(0))]


def sharded_norms(rank, ranks, placements):
    """Norms of a ROOT's sharded weights, and how many exchanges they took."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2, 1) if placements[0].is_shard() else (1, 2))
    wholes = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    sharded = {name: distribute_tensor(w, mesh, placements) for name, w in wholes.items()}
    rules = {"cut": {"rows": [3, 7]}, "row": "root"}
    optimizer = ROOT([(name, Parameter(w)) for name, w in sharded.items()], rules=rules)
    with CommDebugMode() as exchanges:
        found = weight_norms(optimizer)
    return {key: float(norm) for key, norm in found.items()}, exchanges.get_total_counts()


@pytest.mark.parametrize("placements", PLACEMENTS)
def test_norms_of_sharded_weights_are_those_of_the_whole_ones(gloo_pool, placements):
    """However they lie, uneven and empty parts and copies included."""
    torch.manual_seed(0)
    wholes = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    expected = {(name, 0): float(w.double().norm()) for name, w in wholes.items()}
    blocks = wholes["cut"].double().split([3, 7])
    expected |= {("cut", number): float(block.norm()) for number, block in enumerate(blocks)}
    for found, exchanges in gloo_pool.run(sharded_norms, placements):
        assert found == pytest.approx(expected, rel=1e-5)
        assert exchanges == 2  # a gather of what is cut, a sum of all the rest
