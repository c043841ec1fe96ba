"""Coefficients refitted in training under DDP and FSDP2, on two gloo processes.

Every rank sees the same batches, so what is captured is what one process captures.
"""

import warnings

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_root import ROOTMixin, ROOTRefit, ShardedDDPStrategy
from lightning_root.coefficients.published import MUON
from lightning_root.diagnostics import adaptation, spectrum
from tests.integration.models import PlainNet, ShardedNet, trainer, weights

OPTIONS = {
    "lr": 1e-2,
    "warmup_steps": 2,
    "max_steps": 8,
    "coefficients": {"10x12": (MUON,) * 5, "otherwise": "adaptive"},  # something to gain
}


class Net(ROOTMixin, PlainNet):
    root_options = OPTIONS


class Sharded(ROOTMixin, ShardedNet):
    root_options = OPTIONS


def strategy(name, ranks):
    if name in ("ddp", "parts"):
        kind = DDPStrategy if name == "ddp" else ShardedDDPStrategy
        return kind(process_group_backend="gloo")
    return ModelParallelStrategy(
        data_parallel_size=ranks,
        tensor_parallel_size=1,
        save_distributed_checkpoint=name == "fsdp2_sharded_checkpoint",
    )


def run(name, ranks, max_steps=8, checkpoint=None):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = Net() if name in ("ddp", "parts", "alone") else Sharded()
    refit = ROOTRefit(every_n_steps=2)
    options = {} if name == "alone" else {"strategy": strategy(name, ranks), "devices": ranks}
    fit = trainer(max_steps=max_steps, callbacks=[refit], **options)
    fit.fit(model, ckpt_path=checkpoint)
    return fit, refit, model


def outcome(fit, refit, model):
    mapping = fit.optimizers[0].param_groups[0]["coefficients"]
    return mapping, refit.state_dict(), weights(model)


def whole(rank, ranks, name):
    return outcome(*run(name, ranks))


def resumed(rank, ranks, name, file):
    """Four steps, saved at the very step of a capture and a fit, and four in a fresh run."""
    half, _, _ = run(name, ranks, max_steps=4)
    half.save_checkpoint(file)
    return outcome(*run(name, ranks, checkpoint=file))


def fitted_on_rank_zero_alone(rank, ranks, name):
    original = adaptation.refit

    def fit(*args):
        assert rank == 0
        return original(*args)

    adaptation.refit = fit
    try:
        return whole(rank, ranks, name)
    finally:
        adaptation.refit = original


def seen_by_the_owner_alone(rank, ranks, name):
    """Each matrix is seen by one rank, as if only that one orthogonalized it."""
    original = spectrum.SpectrumCapture._observe

    def look(self, stack):
        owner = ["body.0.weight", "body.1.weight"].index(next(iter(self._matrices))[0])
        if owner == rank:
            original(self, stack)

    spectrum.SpectrumCapture._observe = look
    try:
        return whole(rank, ranks, name)
    finally:
        spectrum.SpectrumCapture._observe = original


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_all_ranks_use_the_fits_of_rank_zero(gloo_pool, name):
    first, second = gloo_pool.run(fitted_on_rank_zero_alone, name)
    assert first[0]["10x12"] != OPTIONS["coefficients"]["10x12"]
    assert_same(first, second)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_replicas_count_once(gloo_pool, name):
    _, alone, _ = outcome(*run("alone", 1))
    for _, state, _ in gloo_pool.run(whole, name):
        assert state["captures"] == alone["captures"] == 4
        for part in ("newer", "older"):
            counted = state["memory"]["10x12"][part]["matrices"]
            assert counted == alone["memory"]["10x12"][part]["matrices"]


def test_what_only_its_owner_sees_counts_as_much(gloo_pool):
    everywhere = gloo_pool.run(whole, "ddp")
    by_owner = gloo_pool.run(seen_by_the_owner_alone, "ddp")
    for first, second in zip(everywhere, by_owner, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("name", ["ddp", "parts", "fsdp2", "fsdp2_sharded_checkpoint"])
def test_a_resumed_run_ends_where_the_whole_one_ends(gloo_pool, name, tmp_path):
    expected = gloo_pool.run(whole, name)
    for first, second in zip(
        expected, gloo_pool.run(resumed, name, str(tmp_path / "half.ckpt")), strict=True
    ):
        assert first[1]["swaps"] >= 1
        assert_same(first, second)
