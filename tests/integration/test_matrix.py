"""ROOT among what Lightning offers: precisions, clipping, callbacks, compilation, strategies."""

import copy
import functools
from itertools import pairwise
from typing import ClassVar

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import StepLR

from lightning_root import ROOT, ROOTCLI, ROOTMixin
from tests.integration.models import EXPECTED_SPLIT, Batches, PlainNet, split, trainer, weights


class Net(ROOTMixin, PlainNet):
    root_options: ClassVar = {"lr": 1e-2, "schedule": None}


class ScheduledNet(ROOTMixin, PlainNet):
    root_options: ClassVar = {"lr": 1e-2, "warmup_steps": 0}


class OwnNet(PlainNet):
    """As ROOT is used without anything of ours but the class."""

    def __init__(self, lr=1e-2):
        super().__init__()
        self.lr = lr

    def configure_optimizers(self):
        return ROOT(self.parameters(), lr=self.lr)


class InjectedNet(PlainNet):
    """The optimizer as an argument: `OptimizerCallable` of the command line."""

    def __init__(self, optimizer: L.cli.OptimizerCallable = ROOT):
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return [optimizer], [StepLR(optimizer, 1)]


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def fitted(model, **options):
    """The Trainer, once every parameter has moved under the right rule and is finite."""
    before = weights(PlainNet())
    fit = trainer(**options)
    fit.fit(model)
    assert moved(before, weights(model)) == set(before)
    assert all(weight.isfinite().all() for weight in weights(model).values())
    return fit


def in_epochs(epochs, batches=2, **options):
    return {"max_steps": -1, "max_epochs": epochs, "limit_train_batches": batches, **options}


class Gradients(L.Callback):
    """Gradients as they are when the update begins, by name and step."""

    def __init__(self):
        self.seen = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        seen = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        if seen:
            self.seen.append({name: gradient.clone() for name, gradient in seen.items()})


def gradients(kind=Net, **options):
    recorder = Gradients()
    fitted(kind(), max_steps=2, callbacks=[recorder], **options)
    return recorder.seen[0]


class AdamWClippedNet(Net):
    clip_adamw_only = True


def norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def parts(gradients):
    return [{name: gradients[name] for name in EXPECTED_SPLIT[rule]} for rule in ("root", "adamw")]


def test_clipping_by_norm_and_by_value_concerns_all_gradients():
    whole = gradients()
    bound = 0.5 * norm(whole).item()
    by_norm = gradients(gradient_clip_val=bound)
    for name, gradient in by_norm.items():
        torch.testing.assert_close(gradient, 0.5 * whole[name], rtol=1e-4, atol=1e-7)
    by_value = gradients(gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    for name, gradient in by_value.items():
        assert torch.equal(gradient, whole[name].clamp(-1e-3, 1e-3))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_adamws_part_alone_can_be_clipped(algorithm):
    whole = gradients()
    clipped = gradients(AdamWClippedNet, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    (matrices, rest), (before, others) = parts(clipped), parts(whole)
    assert all(torch.equal(matrices[name], before[name]) for name in matrices)
    if algorithm == "norm":
        assert norm(rest).item() == pytest.approx(1e-3, rel=1e-3)
    else:
        assert all(torch.equal(rest[n], others[n].clamp(-1e-3, 1e-3)) for n in rest)


def test_accumulated_batches_make_one_step_of_their_mean():
    """Against an optimizer that stands still while the same batches pass."""
    one, two = (gradients(accumulate_grad_batches=count) for count in (1, 2))
    recorder = Gradients()
    model = PlainNet()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    trainer(max_steps=3, callbacks=[recorder]).fit(model)
    for name, gradient in two.items():
        mean = 0.5 * (recorder.seen[0][name] + recorder.seen[1][name])
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-7)
        assert torch.equal(one[name], recorder.seen[0][name])


class ScaledPrecision(MixedPrecision):
    """16-mixed as on a GPU, with a scaler; Lightning itself turns it into bf16-mixed on a CPU."""

    def __init__(self, init_scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
        super().__init__("bf16-mixed", "cpu", None)
        self.precision, self.scaler = "16-mixed", scaler


@pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary")
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}])
def test_with_a_scaler_steps_that_overflow_are_skipped_whole(options):
    """ROOT does not see them: no warning, no count, momentum and weights as they were."""

    class Overflowing(Net):
        history: ClassVar[list] = []

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * (float("inf") if index in (0, 2) else 1.0)

        def on_train_batch_end(self, *_):
            self.history.append(weights(self))

    model = Overflowing()
    before = weights(model)
    plugin = ScaledPrecision(2.0**10)
    fit = trainer(max_steps=4, plugins=[plugin], **options)
    fit.fit(model)
    history = [before, *model.history]
    moves = [bool(moved(a, b)) for a, b in pairwise(history)]
    assert moves == [False, True, False, True]
    assert plugin.scaler.get_scale() == 2.0**8
    assert not fit.optimizers[0].skipped


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_in_half_precision_the_state_is_float32_and_resumes_bit_for_bit(precision, tmp_path):
    file = tmp_path / "half.ckpt"
    whole, first, resumed = Net(), Net(), Net()
    trainer(precision=precision).fit(whole)
    half = trainer(max_steps=4, precision=precision)
    half.fit(first)
    half.save_checkpoint(file)
    fit = trainer(precision=precision)
    fit.fit(resumed, ckpt_path=file, weights_only=True)
    assert moved(weights(whole), weights(resumed)) == set()
    for state in fit.optimizers[0].state.values():
        assert {value.dtype for value in state.values()} == {torch.float32}


def test_an_injected_optimizer_is_made_by_the_module():
    fit = fitted(InjectedNet(functools.partial(ROOT, lr=1e-2, momentum=0.8)), **in_epochs(2))
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT
    assert fit.optimizers[0].defaults["momentum"] == 0.8
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == pytest.approx([1e-4])


def test_exponential_averages_of_the_weights():
    model = Net()

    class Trace(L.Callback):
        mean = None

        def on_train_batch_end(self, trainer, module, *_):
            now = weights(module)
            mean = self.mean or now
            self.mean = {name: 0.9 * mean[name] + 0.1 * now[name] for name in now}

    trace = Trace()
    fitted(model, callbacks=[trace, EMAWeightAveraging(decay=0.9, update_starting_at_step=0)])
    for name, weight in weights(model).items():  # which Lightning puts into the model at the end
        torch.testing.assert_close(weight, trace.mean[name], rtol=1e-4, atol=1e-6)


def test_stochastic_weight_averaging_drives_both_rules():
    averaging = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1)
    fit = fitted(Net(), **in_epochs(4, callbacks=[averaging]))
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == [1e-3]


def test_the_learning_rate_finder_sets_both_rules():
    model = OwnNet(lr=1e-3)
    finder = LearningRateFinder(min_lr=1e-5, max_lr=1.0, num_training_steps=30, mode="exponential")
    fit = trainer(max_steps=2, callbacks=[finder])
    fit.fit(model)
    found = finder.optimal_lr.suggestion()
    assert found not in (None, 1e-3)
    assert model.lr == found
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == [found]


@pytest.mark.parametrize("kind", [Net, ScheduledNet])
def test_a_backbone_that_is_unfrozen_has_one_rate_for_both_rules(kind):
    """Lightning adds one group for it, and raises the rate of the last group."""

    class Backbone(kind):
        rates: ClassVar[list] = []

        def build(self):
            super().build()
            self.backbone = self.body

        def on_train_batch_end(self, *_):
            groups = self.trainer.optimizers[0].param_groups
            self.rates.append([group["lr"] for group in groups])

    model = Backbone()
    model.rates.clear()
    callback = BackboneFinetuning(1, lambda epoch: 2.0, verbose=False)
    fit = fitted(model, **in_epochs(4, callbacks=[callback]))
    first, last = (set(group["param_names"]) for group in fit.optimizers[0].param_groups)
    backbone = {f"body.{name}" for name, _ in model.body.named_parameters()}
    assert last == backbone and not first & backbone
    assert split(fit.optimizers[0])["root"] == EXPECTED_SPLIT["root"]
    thawed = [rates[1] for rates in model.rates if len(rates) == 2]
    assert len(thawed) == 6
    growth = [rate / thawed[0] for rate in thawed[::2]]
    if kind is Net:
        assert growth == pytest.approx([1, 2, 4])
    else:  # Lightning holds it at the rate of the rest, which decays
        assert thawed[-1] <= model.rates[-3][0]


def test_early_stopping_and_growing_accumulation():
    stopping = EarlyStopping("loss", patience=1, min_delta=1e9)
    fit = fitted(Net(), **in_epochs(50, callbacks=[stopping]))
    assert fit.current_epoch == 2
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2})
    assert fitted(Net(), **in_epochs(2, 4, callbacks=[accumulation])).global_step == 4 + 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("how", ["the module's step", "a layer in place", "a layer anew"])
def test_compiled_modules_are_split_by_the_same_names_and_train_alike(how):
    plain, compiled = Net(), Net()
    if how == "the module's step":
        compiled.compile(backend="eager")
    elif how == "a layer in place":
        for layer in compiled.body:
            layer.compile(backend="eager")
    else:
        for number, layer in enumerate(compiled.body):
            compiled.body[number] = torch.compile(layer, backend="eager")
    trainer(max_steps=3).fit(plain)
    fit = trainer(max_steps=3)
    fit.fit(compiled)
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT
    for weight, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-7)


def test_a_state_moves_between_plain_and_compiled_layers():
    plain, compiled = Net(), Net()
    for number, layer in enumerate(compiled.body):
        compiled.body[number] = torch.compile(layer, backend="eager")
    optimizers = [ROOT(model.parameters()) for model in (plain, compiled)]
    for parameter in plain.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers[0].step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert len(optimizers[1].state) == len(list(compiled.parameters()))


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*will be overridden")
@pytest.mark.parametrize("net", [PlainNet, Net])
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_strategies_that_lose_the_command_lines_optimizer_are_refused(net, strategy):
    """Fresh processes would train with the module's own optimizer; forked ones have ours."""
    arguments = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.logger=false"]
    arguments += ["--optimizer=ROOT", "--optimizer.lr=0.3", f"--trainer.strategy={strategy}"]

    def cli(args):
        return ROOTCLI(net, args=args, run=False, save_config_callback=None)

    if strategy == "ddp_notebook":
        assert cli(arguments).trainer.strategy._start_method == "fork"
        return
    with pytest.raises(ValueError, match=r"`trainer.strategy` must be one .*\"spawn\".*\"ddp\""):
        cli(arguments)


@pytest.mark.parametrize("package", [L, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_both_packages_run_everything_at_once(package):
    """Accumulation, clipping, a schedule, averages and low precision, in either's Trainer."""

    class Module(ROOTMixin, package.LightningModule):
        root_options: ClassVar = {"lr": 1e-2, "warmup_steps": 2}
        clip_adamw_only = True
        build, training_step = PlainNet.build, PlainNet.training_step

        def __init__(self):
            super().__init__()
            self.build()

    fit = package.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=4,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        callbacks=[package.callbacks.EMAWeightAveraging()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    model = Module()
    fit.fit(model, Batches())
    assert split(fit.optimizers[0]) == EXPECTED_SPLIT
    assert fit.global_step == 4
    assert all(weight.isfinite().all() for weight in weights(model).values())
