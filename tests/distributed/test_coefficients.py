"""Ranks whose caches differ use the same coefficients all the same."""

import json
import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

from lightning_root import ROOT, lookup
from lightning_root.coefficients import store
from lightning_root.coefficients.published import MUON
from lightning_root.kernels.rates import rates

UNSEEN = (3, 77)


def _train_with_a_cache_of_its_own(rank, world_size, folder):
    for threads in {1, torch.get_num_threads()}:
        rates(threads)  # those of the session, by which later tests choose forms as one process
    cache_of_session = os.environ["LIGHTNING_ROOT_CACHE"]
    os.environ["LIGHTNING_ROOT_CACHE"] = str(Path(folder) / str(rank))
    store.known.clear()
    own = lookup(UNSEEN, "paper")
    if rank == 1:  # as if another machine had fitted it
        (path,) = Path(folder, "1").rglob("*.json")
        values = json.loads(path.read_text())
        rows = values["coefficients"][0]["triples"]
        values["coefficients"][0]["triples"] = [[a * (1 + 1e-9), b, c] for a, b, c in rows]
        path.write_text(json.dumps(values))
        store.known.clear()
        assert lookup(UNSEEN, "paper").triples != own.triples
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(77, 3))
    group = {"params": [("hidden.weight", weight)], "role": "root"}
    optimizer = ROOT([group], coefficients="paper")
    for _ in range(3):
        weight.grad = torch.randn(77, 3)
        optimizer.step()
    used = lookup(UNSEEN, "paper").triples
    # Later tests compare with one process, whose fits are in the cache of the session.
    os.environ["LIGHTNING_ROOT_CACHE"] = cache_of_session
    store.known.clear()
    return own.triples, used, weight.detach()


def test_all_ranks_use_the_fit_of_the_first(gloo_pool, tmp_path):
    (first, used_0, weight_0), (_, used_1, weight_1) = gloo_pool.run(
        _train_with_a_cache_of_its_own, str(tmp_path)
    )
    assert used_0 == used_1 == first
    assert torch.equal(weight_0, weight_1)


def _resume_a_mapping_from_a_sharded_checkpoint(rank, world_size, folder):
    """What Lightning's ModelParallelStrategy does with `save_distributed_checkpoint`."""

    def sharded():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)
        )
        fully_shard(model)
        optimizer = ROOT(model.parameters())
        model(torch.ones(4, 6)).square().sum().backward()
        return model, optimizer

    model, optimizer = sharded()
    optimizer.param_groups[0]["coefficients"] = {"otherwise": "adaptive", "8x8": (MUON,) * 5}
    optimizer.step()
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)
    other_model, other = sharded()
    state = {"optimizer": get_optimizer_state_dict(other_model, other)}
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(other_model, other, state["optimizer"])
    return other.param_groups[0]["coefficients"]


def test_a_sharded_checkpoint_holds_coefficients_by_shape(gloo_pool, tmp_path):
    """The optimizer that resumes starts with a name in the mapping's place."""
    for loaded in gloo_pool.run(_resume_a_mapping_from_a_sharded_checkpoint, str(tmp_path)):
        assert loaded == {"otherwise": "adaptive", "8x8": (MUON,) * 5}
