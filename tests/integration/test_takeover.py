"""The mixin over an optimizer of the user's own: what was said there is kept, group by group.

The oracle is the same module without the mixin: what torch's optimizer and schedulers do there in
every step, ROOT does with the mixin, but for the rule of the matrices.
"""

import functools
import warnings

import lightning.pytorch as L
import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from lightning_root import ROOT, ROOTMixin, WarmupDecayLR, takeover
from tests.helpers import names_by_role
from tests.integration.models import EXPECTED_SPLIT, PlainNet, trainer, weights

KEYS = ("lr", "weight_decay", "betas", "eps", "maximize")


class Trace(L.Callback):
    """What the groups hold before every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        (optimizer,) = trainer.optimizers
        self.seen.append(
            [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
        )


def parts(net, **options):
    """Layer-wise rates, as fine-tuning has them, and a group without decay."""
    matrices = [p for p in net.body.parameters() if p.ndim > 1]
    vectors = [p for p in net.body.parameters() if p.ndim < 2]
    return [
        {"params": net.embedding.parameters(), "lr": 1e-4},
        {"params": matrices, "lr": 2e-4, "weight_decay": 0.3, **options},
        {"params": vectors, "lr": 2e-4, "weight_decay": 0.0, "name": "vectors"},
        {"params": net.head.parameters(), "lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6},
    ]


def scheduled(make, **config):
    def configure(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        return [optimizer], [{"scheduler": make(optimizer), "interval": "step", **config}]

    return configure


def sequence(optimizer):
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    rest = lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lr_scheduler.SequentialLR(optimizer, [warm, rest], [3])


def chain(optimizer):
    parts = lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.StepLR(optimizer, 2)
    return lr_scheduler.ChainedScheduler(list(parts))


def lists(net):
    optimizer = torch.optim.AdamW(parts(net))
    rates = [1.0, 0.5, 0.25, 0.1]
    lambdas = [lambda step, rate=rate: rate**step for rate in rates]
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.LambdaLR(optimizer, lambdas)}


def one_cycle(net):
    optimizer = torch.optim.AdamW(parts(net))
    peaks = [1e-3, 2e-3, 3e-3, 4e-3]
    cycle = lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=8)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


CONFIGURATIONS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=3e-4),
    "no_rate": lambda net: torch.optim.AdamW([{"params": net.parameters(), "lr": 1e-3}], lr=0.0),
    "decay": lambda net: torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=0.3),
    "groups": lambda net: torch.optim.AdamW(parts(net), weight_decay=0.2),
    "betas": lambda net: torch.optim.AdamW(
        parts(net, betas=(0.5, 0.6)), betas=(0.7, 0.8), eps=1e-5
    ),
    "maximize": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-4, maximize=True),
    "one_direction": lambda net: torch.optim.AdamW(parts(net, maximize=True)),
    "selection": lambda net: torch.optim.AdamW(net.head.parameters(), lr=1e-3, weight_decay=0),
    "tensor_lr": lambda net: torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-3)),
    "nadam": lambda net: torch.optim.NAdam(net.parameters(), lr=1e-3),
    "list": lambda net: [torch.optim.AdamW(net.parameters(), lr=1e-3)],
    "dict": lambda net: {"optimizer": torch.optim.AdamW(net.parameters(), lr=1e-3)},
    "warm_up": scheduled(lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4)),
    "cosine": scheduled(lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-5)),
    "restarts": scheduled(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3)),
    "sequence": scheduled(sequence),
    "chain": scheduled(chain),
    "cyclic": scheduled(lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 3)),
    "averaging": scheduled(lambda o: swa_utils.SWALR(o, 1e-3, 3)),
    "ours": scheduled(lambda o: WarmupDecayLR(o, 2, 8)),
    "every_other": scheduled(lambda o: lr_scheduler.StepLR(o, 1), frequency=2),
    "lists": lists,
    "one_cycle": one_cycle,
}


def kinds(configure):
    """The module as its author wrote it, and with one line changed."""

    class Theirs(PlainNet):
        configure_optimizers = configure

    class Ours(ROOTMixin, PlainNet):
        def configure_optimizers(self):
            return configure(self)

    return Theirs, Ours


def traced(kind, **options):
    trace, fit, model = Trace(), trainer(**{"max_steps": 8, **options}), kind()
    fit.callbacks.append(trace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(model)
    return fit, model, trace.seen


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_rates_decay_betas_and_direction_are_those_of_the_users_optimizer_in_every_step(name):
    theirs, ours = (traced(kind) for kind in kinds(CONFIGURATIONS[name]))
    assert len(ours[2]) == 8
    assert [len(step) for step in ours[2]] == [len(step) for step in theirs[2]]
    for mine, other in zip(ours[2], theirs[2], strict=True):
        for group, expected in zip(mine, other, strict=True):
            assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_same_parameters_are_trained_in_the_same_groups_and_no_other(name):
    (theirs, other, _), (ours, model, _) = (traced(kind) for kind in kinds(CONFIGURATIONS[name]))
    names = [{id(p): n for n, p in net.named_parameters()} for net in (model, other)]
    groups = [
        [[of[id(p)] for p in group["params"]] for group in fit.optimizers[0].param_groups]
        for of, fit in zip(names, (ours, theirs), strict=True)
    ]
    assert groups[0] == groups[1]
    assert isinstance(ours.optimizers[0], ROOT)
    given = {name for group in groups[0] for name in group}
    for role, expected in EXPECTED_SPLIT.items():
        assert set(names_by_role(ours.optimizers[0])[role]) == set(expected) & given
    start = weights(PlainNet())
    for kind in (other, model):
        moved = {n for n, w in weights(kind).items() if not torch.equal(w, start[n])}
        assert moved == given


@pytest.mark.parametrize("name", ["groups", "maximize", "selection"])
def test_what_adamw_updates_is_bit_for_bit_what_it_was_in_the_first_step(name):
    """Later the matrices make the difference."""
    (_, other, _), (fit, model, _) = (
        traced(kind, max_steps=1) for kind in kinds(CONFIGURATIONS[name])
    )
    for parameter in names_by_role(fit.optimizers[0])["adamw"]:
        assert torch.equal(weights(model)[parameter], weights(other)[parameter]), parameter


KEPT_ALIVE: list[L.LightningModule] = []  # whose optimizers are stepped


def configured(options, configure=CONFIGURATIONS["groups"]):
    class Net(ROOTMixin, PlainNet):
        root_options = options

        def configure_optimizers(self):
            return configure(self)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = Net()
        found = net.configure_optimizers()
    (optimizer,) = takeover.optimizers_in(found)
    assert optimizer.module is net
    KEPT_ALIVE.append(net)
    return found, [str(each.message) for each in caught]


def test_options_replace_defaults_and_leave_what_a_group_says_of_its_own():
    optimizer, _ = configured({"weight_decay": 0.05, "momentum": 0.9, "outlier_quantile": None})
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.3, 0.0, 0.05]
    assert {group["momentum"] for group in groups} == {0.9}
    assert {group["outlier_quantile"] for group in groups} == {None}
    assert [group["lr"] for group in groups] == [1e-4, 2e-4, 2e-4, 1e-3]
    assert [group.get("name") for group in groups] == [None, None, "vectors", None]


def test_a_rate_scales_all_groups_and_their_schedule():
    optimizer, _ = configured({"lr": 4e-3})  # AdamW's default is 1e-3
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([4e-4, 8e-4, 8e-4, 4e-3])
    (optimizers, schedules), _ = configured({"lr": 5e-2}, CONFIGURATIONS["warm_up"])
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-3)
    for _ in range(4):
        optimizers[0].step()
        schedules[0]["scheduler"].step()
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-2)
    (optimizers, schedules), _ = configured({"lr": 2e-2}, CONFIGURATIONS["cyclic"])
    seen = []
    for _ in range(6):
        seen.append(optimizers[0].param_groups[0]["lr"])
        optimizers[0].step()
        schedules[0]["scheduler"].step()
    assert (min(seen), max(seen)) == pytest.approx((2e-3, 2e-2))


def test_our_schedule_is_there_if_it_is_asked_for_and_begins_from_the_full_rate():
    found, _ = configured({"warmup_steps": 2, "max_steps": 10}, CONFIGURATIONS["warm_up"])
    schedule = found["lr_scheduler"]["scheduler"]
    assert isinstance(schedule, WarmupDecayLR)
    assert schedule.base_lrs == [1e-2]
    found, _ = configured({"schedule": None}, CONFIGURATIONS["warm_up"])
    assert list(found) == ["optimizer"]
    assert found["optimizer"].param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_rates_that_mean_something_else_are_refused_with_the_line_to_write(kind):
    def own(net):
        options = [{"params": net.body.parameters()}, {"params": net.head.parameters(), "lr": 0.01}]
        return kind(options, lr=0.1, weight_decay=1e-4)

    with pytest.raises(ValueError, match=r'learning rate 0.1 of .*root_options = \{"lr": 1e-3\}'):
        configured({}, own)
    optimizer, messages = configured({"lr": 1e-3}, own)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-3, 1e-4])
    assert "Not kept: " in messages[0] and "decoupled now" in messages[0]


def test_one_message_says_what_is_kept_what_is_not_and_what_to_do():
    def own(net):
        return torch.optim.Adam(parts(net), amsgrad=True, weight_decay=1e-5)

    _, (message,) = configured({}, own)
    words = "in place of Adam from `Net.configure_optimizers`. Kept: 7 parameters in 4 groups"
    assert words in message
    for words in ("lr=0.0001, 0.0002, 0.001", "weight_decay=1e-05, 0.3, 0", "no schedule"):
        assert words in message
    assert "Not kept: amsgrad=True, weight_decay as a part of the gradient" in message
    assert '{"lr": 0.002} or {"lr": 0.004}' in message and "return a ROOT there" in message
    _, (message,) = configured({"lr": 1e-3}, own)
    assert "2 to 4 times" not in message


def test_a_scheduler_that_does_not_hold_its_optimizer_is_refused():
    class Loose:
        def step(self):
            pass

        def state_dict(self):
            return {}

    def own(net):
        return [torch.optim.AdamW(net.parameters())], [Loose()]

    with pytest.raises(ValueError, match="cannot hand the scheduler Loose over to ROOT"):
        configured({}, own)


def test_hooks_of_the_users_optimizer_go_on():
    calls = []

    def own(net):
        optimizer = torch.optim.AdamW(net.parameters())
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        return optimizer

    optimizer, _ = configured({}, own)
    optimizer.step()
    assert calls == [1]


def test_only_the_outermost_result_is_replaced():
    """A subclass that adds a schedule to its parent's optimizer finds that as it was."""

    class Parent(PlainNet):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=2e-3)

    class Child(ROOTMixin, Parent):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            assert type(optimizer) is torch.optim.AdamW
            optimizer.add_param_group({"params": torch.nn.Parameter(torch.ones(3)), "lr": 1.0})
            schedule = lr_scheduler.StepLR(optimizer, 1)
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    class Grandchild(Child):
        def configure_optimizers(self):
            return super().configure_optimizers() | {"monitor": "loss"}

    for kind in (Child, Grandchild):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = kind().configure_optimizers()
        assert isinstance(found["optimizer"], ROOT)
        assert found["lr_scheduler"].optimizer is found["optimizer"]
        assert [group["lr"] for group in found["optimizer"].param_groups] == [2e-3, 1.0]
        assert sum("ROOTMixin trains with ROOT" in str(each.message) for each in caught) == 1


def test_callables_as_hydra_makes_them_are_taken_over():
    class Net(ROOTMixin, PlainNet):
        def __init__(self, optimizer, scheduler):
            super().__init__()
            self.make, self.plan = optimizer, scheduler

        def configure_optimizers(self):
            optimizer = self.make(params=self.parameters())
            return {"optimizer": optimizer, "lr_scheduler": self.plan(optimizer=optimizer)}

    plan = functools.partial(lr_scheduler.StepLR, step_size=1)
    for make in (torch.optim.Adam, ROOT):
        net = Net(functools.partial(make, lr=5e-3), plan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = net.configure_optimizers()
        assert isinstance(found["optimizer"], ROOT)
        assert found["lr_scheduler"].optimizer is found["optimizer"]
        assert found["optimizer"].param_groups[0]["lr"] == 5e-3


@pytest.mark.parametrize("name", ["groups", "sequence", "lists", "one_cycle", "tensor_lr"])
def test_a_resumed_run_ends_in_the_bits_of_the_whole_one(name, tmp_path):
    _, ours = kinds(CONFIGURATIONS[name])
    _, whole, _ = traced(ours)
    half, _, _ = traced(ours, max_steps=3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    model = ours()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(max_steps=8).fit(model, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for parameter, weight in weights(whole).items():
        assert torch.equal(weights(model)[parameter], weight), parameter


def test_manual_optimization_keeps_the_users_rate():
    class Net(ROOTMixin, PlainNet):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()

    _, _, seen = traced(Net)
    assert {step[0]["lr"] for step in seen} == {1e-3}
