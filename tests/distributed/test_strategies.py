"""The ways into Lightning under DDP and FSDP2, on two gloo processes, against one process.

Every rank sees the same batches, so two ranks must do what one process does.
"""

import sys
import warnings

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.algorithms.ddp_comm_hooks import (
    debugging_hooks,
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
)
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post_localSGD

from lightning_root import ROOT, ROOTCLI, ROOTBinder, ROOTMixin
from lightning_root.binder import _makes_equal
from tests.integration.models import (
    EXPECTED_SPLIT,
    Batches,
    LazyNet,
    PlainNet,
    ShardedNet,
    split,
    trainer,
    weights,
)

OPTIONS = {"lr": 1e-2, "warmup_steps": 2}


class MixedNet(ROOTMixin, PlainNet):
    root_options = OPTIONS


class MixedLazyNet(ROOTMixin, LazyNet):
    root_options = OPTIONS


class MixedShardedNet(ROOTMixin, ShardedNet):
    root_options = OPTIONS


class Validated:
    """Forward passes without a backward pass: FSDP2 leaves whole parameters in the module then."""

    def validation_step(self, batch, index):
        self.log("val", PlainNet.training_step(self, batch, index))

    def val_dataloader(self):
        return Batches()


class ValidatedNet(Validated, MixedNet):
    pass


class ValidatedShardedNet(Validated, MixedShardedNet):
    pass


NETS = {
    "validated": ValidatedNet,
    "validated_sharded": ValidatedShardedNet,
    "plain": PlainNet,
    "lazy": LazyNet,
    "sharded": ShardedNet,
    "mixed": MixedNet,
    "mixed_lazy": MixedLazyNet,
    "mixed_sharded": MixedShardedNet,
}
COMMAND_LINE = ["--optimizer", "ROOT", "--optimizer.lr", "1e-2"]


def strategy(name, ranks):
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)


def quiet():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def with_mixin(rank, ranks, net, strategy_name, folder=None):
    """Train 8 steps; with a folder: 4 steps, save, and 4 more in a fresh run."""
    quiet()
    model = NETS[net]()
    if folder is None:
        fit = trainer(strategy=strategy(strategy_name, ranks), devices=ranks)
        fit.fit(model)
    else:
        half = trainer(max_steps=4, strategy=strategy(strategy_name, ranks), devices=ranks)
        half_model = NETS[net]()
        half_model.root_options = {**OPTIONS, "max_steps": 8}
        half.fit(half_model)
        half.save_checkpoint(folder)
        fit = trainer(strategy=strategy(strategy_name, ranks), devices=ranks)
        fit.fit(model, ckpt_path=folder)
    return split(fit.optimizers[0]), weights(model)


def with_validation(rank, ranks, net, strategy_name, before_fit):
    """Validate before the first step (sanity check or `validate`) and between steps."""
    quiet()
    model = NETS[net]()
    fit = trainer(
        strategy=strategy(strategy_name, ranks),
        devices=ranks,
        num_sanity_val_steps=0 if before_fit else 2,
        limit_val_batches=2,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    if before_fit:
        fit.validate(model, verbose=False)
    fit.fit(model)
    return split(fit.optimizers[0]), weights(model)


def with_cli(rank, ranks, net, strategy_name, cli, callbacks):
    quiet()
    sys.argv = sys.argv[:1]
    made = cli(
        NETS[net],
        run=False,
        args=COMMAND_LINE,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"logger": False, "enable_checkpointing": False, "max_steps": 8},
    )
    fit = trainer(
        strategy=strategy(strategy_name, ranks),
        devices=ranks,
        callbacks=[c for c in made.trainer.callbacks if isinstance(c, ROOTBinder)] + callbacks,
    )
    fit.fit(made.model)
    return split(fit.optimizers[0]), weights(made.model)


def stale(rank, ranks, net):
    """Plain LightningCLI, FSDP2, and nobody who binds: without a check this trains nothing."""
    try:
        with_cli(rank, ranks, net, "fsdp2", LightningCLI, [])
    except RuntimeError as error:
        return str(error)
    return "it trained"


def alone(mixed):
    """The run of one process, with the mixin's schedule or with the constant rate of the CLI."""
    if mixed:
        model = MixedNet()
        fit = trainer()
    else:
        model = PlainNet()
        optimizer = ROOT(model.parameters(), lr=1e-2)
        model.configure_optimizers = lambda: optimizer
        fit = trainer()
    fit.fit(model)
    return weights(model)


def assert_same(results, expected):
    """Float32 round-off of gradients that were averaged over ranks."""
    for groups, result in results:
        assert groups == EXPECTED_SPLIT
        for name, weight in result.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("net", "name"),
    [("mixed", "ddp"), ("mixed_lazy", "ddp"), ("mixed_sharded", "fsdp2")],
)
def test_the_mixin_trains_as_on_one_process(gloo_pool, net, name):
    assert_same(gloo_pool.run(with_mixin, net, name), alone(mixed=True))


@pytest.mark.parametrize("before_fit", [False, True])
@pytest.mark.parametrize(("net", "name"), [("validated", "ddp"), ("validated_sharded", "fsdp2")])
def test_validation_before_and_between_steps_changes_nothing(gloo_pool, net, name, before_fit):
    results = gloo_pool.run(with_validation, net, name, before_fit)
    assert_same(results, alone(mixed=True))


@pytest.mark.parametrize(("net", "name"), [("mixed", "ddp"), ("mixed_sharded", "fsdp2")])
def test_a_resumed_run_ends_where_the_whole_one_ends(gloo_pool, net, name, tmp_path):
    whole = gloo_pool.run(with_mixin, net, name)
    resumed = gloo_pool.run(with_mixin, net, name, str(tmp_path / "half.ckpt"))
    for (_, expected), (groups, result) in zip(whole, resumed, strict=True):
        assert groups == EXPECTED_SPLIT
        assert all(torch.equal(expected[key], result[key]) for key in expected)


@pytest.mark.parametrize("cli", [ROOTCLI, LightningCLI])
@pytest.mark.parametrize(
    ("net", "name"),
    [("plain", "ddp"), ("lazy", "ddp"), ("sharded", "fsdp2"), ("mixed_sharded", "fsdp2")],
)
def test_the_command_line_trains_as_on_one_process(gloo_pool, cli, net, name):
    """ROOTCLI brings its binder; a plain LightningCLI needs the callback, or the mixin's."""
    needs_callback = cli is LightningCLI and not net.startswith("mixed")
    callbacks = [ROOTBinder()] if needs_callback else []
    assert_same(gloo_pool.run(with_cli, net, name, cli, callbacks), alone(mixed=False))


def test_stale_parameters_under_fsdp2_are_an_error(gloo_pool):
    for message in gloo_pool.run(stale, "sharded"):
        assert "no longer the model's" in message or "never bound" in message
        assert "ROOTBinder" in message


class OwnBatches(Batches):
    """Other ones on each rank."""

    def __init__(self, rank):
        super().__init__()
        self.next = 1000 * rank


class HookedStrategy(DDPStrategy):
    """Lightning registers hooks on CUDA devices alone."""

    def _register_ddp_hooks(self):
        self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)

    def _enable_model_averaging(self):
        """Never, so that each rank ends where it would alone."""


def local_sgd():
    """Ranks of their own from the first step on."""
    return post_localSGD.PostLocalSGDState(None, None, 0, post_local_gradient_allreduce=False)


HOOKS = {
    "post_localSGD": (post_localSGD.post_localSGD_hook, local_sgd),
    "noop": (debugging_hooks.noop_hook, lambda: None),
    "fp16": (default_hooks.fp16_compress_hook, lambda: None),
}


def with_hook(rank, ranks, name):
    quiet()
    hook, state = HOOKS[name]
    model = MixedNet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(
            strategy=HookedStrategy(
                process_group_backend="gloo",
                ddp_comm_hook=hook,
                ddp_comm_state=state(),
            ),
            devices=ranks,
            callbacks=[Shares()],
        )
        fit.fit(model, OwnBatches(rank))
    said = sum("does all of its work on every rank" in str(w.message) for w in caught)
    return weights(model), fit.callbacks[0].shares, said


class Shares(L.Callback):
    """Whether the optimizer shared its work in training."""

    def on_train_start(self, trainer, *_):
        self.shares = trainer.optimizers[0]._replicas is not None


@pytest.mark.parametrize("name", ["post_localSGD", "noop"])
def test_where_ranks_have_gradients_of_their_own_each_does_as_it_would_alone(gloo_pool, name):
    for rank, (result, shares, said) in enumerate(gloo_pool.run(with_hook, name)):
        model = MixedNet()
        trainer().fit(model, OwnBatches(rank))
        for key, weight in weights(model).items():
            torch.testing.assert_close(result[key], weight, rtol=1e-4, atol=1e-5, msg=key)
        assert (shares, said) == (False, 1 if rank == 0 else 0)


def test_a_hook_that_compresses_leaves_the_work_shared(gloo_pool):
    (first, shares, said), (second, *_) = gloo_pool.run(with_hook, "fp16")
    assert (shares, said) == (True, 0)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("hook", "is_equal"),
    [
        (default_hooks.allreduce_hook, True),
        (default_hooks.fp16_compress_hook, True),
        (default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook), True),
        (powerSGD_hook.batched_powerSGD_hook, True),
        (quantization_hooks.quantization_pertensor_hook, True),
        (debugging_hooks.noop_hook, False),
        (default_hooks.bf16_compress_wrapper(debugging_hooks.noop_hook), False),
        (post_localSGD.post_localSGD_hook, False),
        (lambda state, bucket: None, False),
    ],
)
def test_hooks_that_leave_equal_gradients_are_known(hook, is_equal):
    assert _makes_equal(hook) == is_equal
