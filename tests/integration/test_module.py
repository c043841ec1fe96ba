"""The ways into a LightningModule: mixin, factory, callback; on one device."""

import logging
import re
import warnings
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch

from lightning_root import ROOT, ROOTBinder, ROOTMixin, WarmupDecayLR, configure_optimizers
from tests.integration.models import (
    EXPECTED_SPLIT,
    AdamWNet,
    Batches,
    LazyNet,
    PlainNet,
    split,
    trainer,
    weights,
)


class MixedNet(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2}


class MixedLazyNet(ROOTMixin, LazyNet):
    pass


class FactoryNet(PlainNet):
    def configure_optimizers(self):
        return configure_optimizers(self, lr=1e-2, warmup_steps=2, outlier_quantile=0.8)


class ManualNet(PlainNet):
    """One ROOT under manual optimization, with clipping and a schedule stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return ROOT(self.parameters(), lr=1e-2)

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()


def warned(function, *args):
    """What a call warns of, as texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*args)
    return [str(warning.message) for warning in caught]


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", [MixedNet, MixedLazyNet, FactoryNet, ManualNet])
def test_every_way_in_trains_every_parameter_with_the_right_rule(kind):
    reference = weights(PlainNet())
    model = kind()
    fit = trainer()
    fit.fit(model)
    (optimizer,) = fit.optimizers
    assert isinstance(optimizer, ROOT)
    assert split(optimizer) == EXPECTED_SPLIT
    assert moved(reference, weights(model)) == set(reference)
    assert fit.global_step == 8


def test_the_mixin_lowers_the_loss():
    model = MixedNet()
    fit = trainer(max_steps=1)
    fit.fit(model)
    first = fit.callback_metrics["loss"].item()
    longer = trainer(max_steps=200)
    model = MixedNet()
    longer.fit(model)
    assert longer.callback_metrics["loss"].item() < 0.5 * first


def test_the_table_is_shown_at_the_start(caplog):
    with caplog.at_level(logging.INFO):
        trainer(callbacks=[ROOTBinder()]).fit(MixedNet())
    tables = [record.message for record in caplog.records if "reason" in record.message]
    assert len(tables) == 1
    assert "embedding.weight" in tables[0]
    assert "ROOT:" in tables[0]


@pytest.mark.parametrize(("coefficients", "said"), [("paper", 1), ("adaptive", 0)])
def test_fits_for_shapes_beyond_the_table_are_announced(caplog, coefficients, said):
    class Net(MixedNet):
        root_options: ClassVar = {"coefficients": coefficients}

    with caplog.at_level(logging.INFO):
        trainer(max_steps=1).fit(Net())
    lines = [r.message for r in caplog.records if "ROOT fits coefficients for" in r.message]
    assert len(lines) == said


def test_the_table_is_kept_beside_the_logs(tmp_path):
    logger = L.loggers.CSVLogger(tmp_path)
    trainer(max_steps=1, logger=logger).fit(MixedNet())
    table = Path(logger.log_dir, "partition.txt").read_text()
    assert "embedding.weight" in table
    assert "ROOT:" in table


@pytest.mark.parametrize("lightning_root_first", [True, False])
def test_adding_the_mixin_replaces_the_modules_own_optimizer_and_keeps_its_rate(
    lightning_root_first,
):
    """The one line that changes; whether the class or its base has the old optimizer."""
    if lightning_root_first:

        class Net(ROOTMixin, PlainNet):
            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters(), lr=4e-3)
    else:

        class Net(ROOTMixin, AdamWNet):
            pass

    fit = trainer()
    message = r"ROOT in place of AdamW from `Net.configure_optimizers`. Kept: .* lr=0\.004, "
    assert any(re.search(message, text) for text in warned(fit.fit, Net()))
    assert isinstance(fit.optimizers[0], ROOT)
    assert fit.optimizers[0].defaults["lr"] == 4e-3
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT


def test_the_mixin_leaves_a_root_of_the_users_own_alone():
    class Net(ROOTMixin, PlainNet):
        def configure_optimizers(self):
            return ROOT(self.parameters(), lr=0.007, nesterov=False)

    fit = trainer()
    fit.fit(Net())
    assert fit.optimizers[0].defaults["lr"] == 0.007
    assert fit.lr_scheduler_configs == []


def test_the_mixin_leaves_several_optimizers_alone_and_says_so():
    class Pair(ROOTMixin, L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=1.0) for part in (self.a, self.b)]

    with pytest.warns(UserWarning, match="leaves the 2 optimizers of `Pair`"):
        kept = Pair().configure_optimizers()
    assert [type(optimizer) for optimizer in kept] == [torch.optim.SGD] * 2


@pytest.mark.parametrize("package", [L, pytorch_lightning])
def test_the_mixin_after_the_module_is_refused_for_it_would_train_with_another_optimizer(package):
    class Base(package.LightningModule):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    with pytest.raises(TypeError, match=r"`ROOTMixin` must come before .* of `Net`.*\(ROOTMixin, "):

        class Net(Base, ROOTMixin):
            pass


def test_super_reaches_the_mixins_optimizer():
    class Net(ROOTMixin, PlainNet):
        def configure_optimizers(self):
            configured = super().configure_optimizers()
            configured["optimizer"].param_groups[0]["weight_decay"] = 0.0
            return configured

    fit = trainer()
    fit.fit(Net())
    assert fit.optimizers[0].param_groups[0]["weight_decay"] == 0.0


def test_the_mixin_keeps_the_modules_own_callbacks():
    class Own(L.Callback):
        pass

    class Net(ROOTMixin, PlainNet):
        def configure_callbacks(self):
            return [Own(), *super().configure_callbacks()]

    fit = trainer()
    fit.fit(Net())
    kinds = [type(callback) for callback in fit.callbacks]
    assert kinds.count(Own) == 1
    assert kinds.count(ROOTBinder) == 1


def test_pytorch_lightning_modules_and_trainers_work_too():
    class Net(ROOTMixin, pytorch_lightning.LightningModule):
        root_options = {"lr": 1e-2}
        build, training_step = PlainNet.build, PlainNet.training_step

        def __init__(self):
            super().__init__()
            self.build()

    fit = pytorch_lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=4,
        log_every_n_steps=1,
    )
    model = Net()
    fit.fit(model, Batches())
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT
    assert moved(weights(PlainNet()), weights(model)) == set(weights(model))
    assert fit.lr_scheduler_configs[0].interval == "step"


def test_the_factorys_schedule_steps_per_step_over_the_whole_run():
    class Recorder(L.Callback):
        rates: list = []

        def on_train_batch_start(self, trainer, *_):
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    recorder = Recorder()
    trainer(max_steps=20, callbacks=[recorder]).fit(FactoryNet())
    oracle = WarmupDecayLR(torch.optim.SGD([torch.zeros(1)], lr=1e-2), 2, 20)
    expected = [[1e-2 * oracle.factor(step)] for step in range(20)]
    assert torch.allclose(torch.tensor(recorder.rates), torch.tensor(expected))


class Rates(L.Callback):
    """The learning rate of every optimizer step, and where the schedule stands after the run."""

    def __init__(self):
        self.rates, self.last = [], None

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_end(self, trainer, *_):
        self.last = float(trainer.optimizers[0].param_groups[0]["lr"])


def expected_rates(schedule, steps, lr=1e-2):
    """Those of SGD, for a schedule whose length is given."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, rates = schedule(optimizer), []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def in_sequence(optimizer, **length):
    warmup = WarmupDecayLR(optimizer, 3, **length)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 10)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, constant], [15])


def later_in_sequence(optimizer, **length):
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4)
    warmup = WarmupDecayLR(optimizer, 3, **length)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, warmup], [5])


def in_chain(optimizer, **length):
    warmup = WarmupDecayLR(optimizer, 3, **length)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 4)
    return torch.optim.lr_scheduler.ChainedScheduler([warmup, constant], optimizer)


def deep_in_sequences(optimizer, **length):
    inner = in_sequence(optimizer, **length)
    flat = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    chain = torch.optim.lr_scheduler.ChainedScheduler([inner], optimizer)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [chain, flat], [12])


@pytest.mark.parametrize(
    ("schedule", "lr"),
    [
        *((each, 1e-2) for each in (in_sequence, later_in_sequence, in_chain, deep_in_sequences)),
        (in_sequence, torch.tensor(1e-2)),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # by torch's SequentialLR
def test_a_schedule_within_others_ends_with_the_run_and_is_stepped_per_step(schedule, lr):
    class Net(PlainNet):
        def configure_optimizers(self):
            optimizer = ROOT(self.parameters(), lr=lr)
            return [optimizer], [schedule(optimizer)]

    rates = Rates()
    trainer(max_steps=20, callbacks=[ROOTBinder(), rates]).fit(Net())
    given = expected_rates(lambda optimizer: schedule(optimizer, max_steps=20), 20)
    assert rates.rates == pytest.approx(given[:20], rel=1e-6)
    assert rates.last == pytest.approx(given[20], rel=1e-6)


class BatchNet(PlainNet):
    """Its 64 samples come in batches of a size that a tuner may change."""

    schedule_options: ClassVar = {"warmup_steps": 2}

    def __init__(self):
        super().__init__()
        self.batch_size, self.lr = 1, 1e-2

    def train_dataloader(self):
        tokens = torch.randint(16, (64, 4), generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(tokens, tokens.amax(-1) // 4)
        return torch.utils.data.DataLoader(data, batch_size=self.batch_size)


class BatchFactoryNet(BatchNet):
    def configure_optimizers(self):
        return configure_optimizers(self, lr=1e-2, **self.schedule_options)


class BatchMixedNet(ROOTMixin, BatchNet):
    @property
    def root_options(self):
        return {"lr": 1e-2, **self.schedule_options}


def finder(size=8):
    """As it ends where memory does: no larger than so many."""
    return L.callbacks.BatchSizeFinder(init_val=2, max_trials=10, max_val=size, steps_per_trial=2)


CHANGES_OF_LENGTH = {
    "batch size": (lambda: [finder()], 8),
    "accumulation": (lambda: [L.callbacks.GradientAccumulationScheduler({0: 2, 1: 8})], 32 + 8),
    "both": (lambda: [finder(), L.callbacks.GradientAccumulationScheduler({1: 3})], 8 + 3),
}


@pytest.mark.parametrize("kind", [BatchFactoryNet, BatchMixedNet])
@pytest.mark.parametrize("change", CHANGES_OF_LENGTH)
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_schedule_is_for_the_run_that_happens(kind, change, tmp_path):
    callbacks, steps = CHANGES_OF_LENGTH[change]
    epochs = 1 if change == "batch size" else 2
    rates = Rates()
    fit = trainer(
        max_steps=-1,
        max_epochs=epochs,
        callbacks=[*callbacks(), ROOTBinder(), rates],
        default_root_dir=tmp_path,
    )
    fit.fit(kind())
    assert fit.global_step == steps
    assert fit.lr_scheduler_configs[0].scheduler.max_steps == steps
    given = expected_rates(lambda optimizer: WarmupDecayLR(optimizer, 2, steps), steps)
    assert rates.rates[-steps:] == pytest.approx(given[:steps], rel=1e-12)


@pytest.mark.parametrize("max_steps", [5, 100])
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_length_of_the_users_own_stays(max_steps, tmp_path):
    class Net(BatchFactoryNet):
        schedule_options: ClassVar = {"warmup_steps": 2, "max_steps": max_steps}

    fit = trainer(
        max_steps=-1, max_epochs=1, callbacks=[finder(), ROOTBinder()], default_root_dir=tmp_path
    )
    fit.fit(Net())
    assert fit.lr_scheduler_configs[0].scheduler.max_steps == max_steps


@pytest.mark.parametrize(("first", "then"), [(None, 30), (30, None)])
def test_on_resume_the_length_is_what_this_run_says(first, then, tmp_path):
    class Net(MixedNet):
        pass

    lengths = []
    for max_steps, checkpoint in ((first, None), (then, tmp_path / "half.ckpt")):
        Net.root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": max_steps}
        fit = trainer(max_steps=8, callbacks=[StopAt(4, tmp_path / "half.ckpt")])
        fit.fit(Net(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        lengths.append(fit.lr_scheduler_configs[0].scheduler.max_steps)
    assert lengths == [first or 8, then or 8]


@pytest.mark.parametrize("tune", ["scale_batch_size", "lr_find"])
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_after_a_tuner_the_schedule_is_for_the_run_that_happens(tune, tmp_path):
    fit = trainer(max_steps=-1, max_epochs=2, default_root_dir=tmp_path)
    model = BatchMixedNet()
    tuner = L.tuner.Tuner(fit)
    if tune == "scale_batch_size":
        tuner.scale_batch_size(model, max_val=8, steps_per_trial=2)
    else:
        tuner.lr_find(model, num_training=5)
    fit.fit(model)
    assert fit.lr_scheduler_configs[0].scheduler.max_steps == fit.global_step > 0


def test_without_a_binder_the_factorys_schedule_is_for_the_trainers_run():
    fit = trainer(max_steps=-1, max_epochs=2)
    fit.fit(BatchFactoryNet())
    assert fit.lr_scheduler_configs[0].scheduler.max_steps == fit.global_step == 128


class ByHand(ROOTMixin, PlainNet):
    """Manual optimization: what Lightning steps by itself is nothing, schedules neither."""

    per_batch = 1
    root_options = {"lr": 1e-2, "warmup_steps": 3}

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        for _ in range(self.per_batch):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()
            self.after_step()

    def after_step(self):
        pass


class TwoStepsABatch(ByHand):
    per_batch = 2


class StepsItsSchedule(ByHand):
    def after_step(self):
        self.lr_schedulers().step()


class StepsItsScheduleLater(ByHand):
    def on_train_batch_end(self, *_):
        self.lr_schedulers().step()


class OwnSchedule(ByHand):
    def configure_optimizers(self):
        optimizer = ROOT(self.parameters(), lr=1e-2)
        return [optimizer], [WarmupDecayLR(optimizer, 3)]


class ChainByHand(ByHand):
    def configure_optimizers(self):
        optimizer = ROOT(self.parameters(), lr=1e-2)
        return [optimizer], [in_chain(optimizer)]


class ChainThatItSteps(ChainByHand):
    def after_step(self):
        self.lr_schedulers().step()


BY_HAND = [ByHand, TwoStepsABatch, StepsItsSchedule, StepsItsScheduleLater, OwnSchedule]


@pytest.mark.parametrize("kind", [*BY_HAND, ChainByHand, ChainThatItSteps])
@pytest.mark.parametrize("steps", [2, 12])
def test_manual_optimization_has_the_rates_of_automatic_whoever_steps_the_schedule(kind, steps):
    rates = Rates()
    fit = trainer(max_steps=steps, callbacks=[ROOTBinder(), rates])
    fit.fit(kind())
    schedule = (
        in_chain
        if issubclass(kind, ChainByHand)
        else lambda o, max_steps: WarmupDecayLR(o, 3, max_steps)
    )
    given = expected_rates(lambda optimizer: schedule(optimizer, max_steps=steps), steps)
    assert rates.rates == pytest.approx(given[:steps], rel=1e-6)
    assert rates.last == pytest.approx(given[steps], rel=1e-6)
    assert not fit.optimizers[0]._optimizer_step_pre_hooks


@pytest.mark.parametrize("kind", [ByHand, TwoStepsABatch, StepsItsSchedule, OwnSchedule])
def test_manual_optimization_resumes_bit_for_bit(kind, tmp_path):
    whole = kind()
    trainer(max_steps=8).fit(whole)
    file = tmp_path / "half.ckpt"
    trainer(max_steps=8, callbacks=[StopAt(4, file)]).fit(kind())
    resumed = kind()
    fit = trainer(max_steps=8)
    fit.fit(resumed, ckpt_path=file, weights_only=True)
    assert fit.global_step == 8
    assert moved(weights(whole), weights(resumed)) == set()


def test_the_factory_without_a_schedule():
    assert list(configure_optimizers(PlainNet(), schedule=None)) == ["optimizer"]


def test_the_factory_says_when_the_length_of_the_run_is_unknown():
    with pytest.raises(
        ValueError, match="`max_steps` must be given when the module is not attached"
    ):
        configure_optimizers(PlainNet())

    class Endless(PlainNet):
        def configure_optimizers(self):
            return configure_optimizers(self)

    with pytest.raises(ValueError, match=r"`max_steps` must be given .* has no end"):
        trainer(max_steps=-1).fit(Endless())


def test_data_without_a_length_are_named_where_steps_cannot_be_counted_from_epochs():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Batches())

    class Net(MixedNet):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(Stream(), batch_size=None)

    with pytest.raises(ValueError, match=r"`max_steps` must be given.* have no length .*Iterable"):
        trainer(max_steps=-1, max_epochs=1).fit(Net())


@pytest.mark.parametrize(
    "options", [{"max_steps": 0}, {"limit_train_batches": 0, "max_steps": -1, "max_epochs": 2}]
)
def test_a_run_without_a_step_is_as_well_as_with_adamw(options):
    fit, model = trainer(**options), MixedNet()
    before = weights(model)
    fit.fit(model)
    assert fit.state.finished
    assert fit.global_step == 0
    assert moved(before, weights(model)) == set()


def test_the_binder_asks_for_the_length_of_the_run_only_where_the_schedule_lacks_it(tmp_path):
    """A run without an end, stopped by a callback: fine with `max_steps`, an error without."""

    class Net(MixedNet):
        def configure_optimizers(self):
            optimizer = ROOT(self.parameters())
            return [optimizer], [WarmupDecayLR(optimizer, max_steps=self.max_steps)]

    model = Net()
    model.max_steps = 8
    fit = trainer(max_steps=-1, callbacks=[StopAt(3, tmp_path / "end.ckpt")])
    fit.fit(model)
    assert fit.global_step == 3
    model.max_steps = None
    with pytest.raises(ValueError, match=r"`max_steps` must be given .* has no end"):
        trainer(max_steps=-1).fit(model)


def test_accumulation_and_clipping_work_unchanged():
    fit = trainer(max_steps=3, accumulate_grad_batches=2, gradient_clip_val=0.5)
    model = MixedNet()
    before = weights(model)
    fit.fit(model)
    assert fit.global_step == 3
    assert moved(before, weights(model)) == set(before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    model = MixedNet()
    fit = trainer(precision=precision)
    fit.fit(model)
    wanted = torch.float64 if precision == "64-true" else torch.float32
    for state in fit.optimizers[0].state.values():
        assert all(value.dtype == wanted for key, value in state.items() if key != "step")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_one_root_among_several_optimizers_keeps_its_own_network():
    """Manual optimization of two networks: the binder must not give one the other's parameters."""

    class Pair(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = PlainNet(), torch.nn.Linear(3, 3)

        def configure_optimizers(self):
            return ROOT(self.a.parameters(), lr=1e-2), torch.optim.SGD(self.b.parameters(), lr=1.0)

        def training_step(self, batch, index):
            first, second = self.optimizers()
            tokens, target = batch
            loss = self.a.head(self.a.norm(self.a.embedding(tokens).mean(1)))
            self.manual_backward(torch.nn.functional.cross_entropy(loss, target))
            first.step()
            second.step()

        def train_dataloader(self):
            return Batches()

    fit = trainer(callbacks=[ROOTBinder()])
    fit.fit(Pair())
    of_part = {role: [f"a.{name}" for name in found] for role, found in EXPECTED_SPLIT.items()}
    assert split(fit.optimizers[0]) == of_part


@pytest.mark.parametrize("kind", [MixedNet, MixedLazyNet, FactoryNet])
def test_interrupted_after_4_of_8_steps_and_resumed_is_bitwise_the_uninterrupted_run(
    kind, tmp_path
):
    whole = kind()
    trainer(max_steps=8).fit(whole)
    file = tmp_path / "half.ckpt"
    trainer(max_steps=8, callbacks=[StopAt(4, file)]).fit(kind())
    resumed = kind()
    fit = trainer(max_steps=8)
    fit.fit(resumed, ckpt_path=file, weights_only=True)
    assert fit.global_step == 8
    assert moved(weights(whole), weights(resumed)) == set()


class StopAt(L.Callback):
    """Saves, and interrupts a run that was meant to be longer."""

    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


def test_parameters_unfrozen_during_training_are_taken_in():
    class Unfreeze(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 4:
                module.body[1].requires_grad_(True)

    model = MixedNet()
    model.body[1].requires_grad_(False)
    before = weights(model)
    fit = trainer(callbacks=[Unfreeze()])
    fit.fit(model)
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT
    assert moved(before, weights(model)) == set(before)


def test_lightnings_finetuning_callback_unfreezes_with_the_right_rules():
    class Finetune(L.callbacks.BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module.body)

        def finetune_function(self, module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.body, optimizer)

    model = MixedNet()
    before = weights(model)
    fit = trainer(callbacks=[Finetune()], limit_train_batches=4)
    model.root_options = {"lr": 1e-2, "schedule": None}  # schedulers know the groups of the start
    fit.fit(model)
    assert [len(group["params"]) for group in fit.optimizers[0].param_groups] == [5, 4]
    assert split(fit.optimizers[0])["root"] == EXPECTED_SPLIT["root"]
    assert moved(before, weights(model)) == set(before)


def test_non_finite_gradients_are_counted_and_reported_at_the_end():
    class Poisoned(MixedNet):
        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 3:
                self.body[0].weight.grad.fill_(float("nan"))

    model = Poisoned()
    messages = warned(trainer().fit, model)
    assert any("ROOT left 1 parameters alone" in message for message in messages)
    assert any("ROOT skipped 1 updates of 1 parameters" in message for message in messages)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_lightnings_own_callbacks_work(tmp_path):
    fit = trainer(
        max_steps=8,
        logger=L.loggers.CSVLogger(tmp_path),
        callbacks=[
            L.callbacks.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True),
            L.callbacks.EarlyStopping("loss"),
            L.callbacks.WeightAveraging(),
        ],
    )
    fit.fit(MixedNet())
    file = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    metrics = file.read_text().splitlines()
    assert {"lr-ROOT", "lr-ROOT-momentum", "lr-ROOT-weight_decay"} < set(metrics[0].split(","))
