"""Parameters that are frozen, thawed, added and merged while a run goes on, and is resumed.

The oracle is the run without a pause; and what torch's AdamW holds at the same moments.
"""

import warnings

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from torch import nn

from lightning_root import ROOT, ROOTBinder, ROOTMixin
from tests.helpers import names_by_role

EPOCHS = 4


class Net(L.LightningModule):
    """A backbone with a BatchNorm, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
        )
        self.head = nn.Linear(8, 3)

    def training_step(self, batch, _):
        (inputs,) = batch
        return self.head(self.backbone(inputs)).square().mean()

    def train_dataloader(self):
        rows = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=8)


def adam(self):
    return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)


class Mixed(ROOTMixin, Net):
    root_options = {"lr": 1e-2, "schedule": None}


class Taken(ROOTMixin, Net):
    """The mixin over what Lightning's guide to fine-tuning advises."""

    def configure_optimizers(self):
        return adam(self)


class Head(Net):
    """ROOT of the user's own, for the head; the rest is added by a callback."""

    def configure_optimizers(self):
        return ROOT(self.head.parameters(), lr=1e-2)

    def configure_callbacks(self):
        return [ROOTBinder()]


class Theirs(Net):
    configure_optimizers = adam


def fitted(model, *callbacks, folder=None, ckpt_path=None, package=L, **options):
    saving = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit = package.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *([saving] if folder is not None else [])],
        **{"max_epochs": EPOCHS, **options},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(model, ckpt_path=ckpt_path, **({} if ckpt_path is None else {"weights_only": True}))
    return fit


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def alike(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Gradual(BaseFinetuning):
    """The last layer of the backbone after an epoch, the rest after two; no BatchNorm."""

    def freeze_before_training(self, module):
        self.freeze(module.backbone, train_bn=False)

    def finetune_function(self, module, epoch, optimizer):
        parts = {1: module.backbone[3], 2: module.backbone[:3]}
        if epoch in parts:
            self.unfreeze_and_add_param_group(parts[epoch], optimizer, lr=1e-3, train_bn=False)


CALLBACKS = {
    "gradual": Gradual,
    "backbone": lambda: BackboneFinetuning(1, train_bn=False),
    "backbone_with_norms": lambda: BackboneFinetuning(2),
}


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("kind", [Mixed, Taken, Head])
def test_a_callback_that_fine_tunes_trains_what_it_trains_with_adam(kind, callback):
    """In the same groups, at the same rates; what it leaves out stays out."""
    ours, theirs = kind(), Theirs()
    if kind is Head:
        theirs.configure_optimizers = lambda: torch.optim.Adam(theirs.head.parameters(), lr=1e-2)
    groups = []
    for model in (ours, theirs):
        (optimizer,) = fitted(model, CALLBACKS[callback]()).optimizers
        names = {id(p): name for name, p in model.named_parameters()}
        groups.append(
            [(g["lr"], [names[id(p)] for p in g["params"]]) for g in optimizer.param_groups]
        )
    assert groups[0] == groups[1]


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("kind", [Mixed, Taken, Head])
def test_a_run_that_fine_tunes_is_resumed_exactly_at_every_epoch(kind, callback, tmp_path):
    """Also after the unfreezing, where Lightning's callback freezes once more."""
    whole = kind()
    fitted(whole, CALLBACKS[callback](), folder=tmp_path)
    for epoch in range(EPOCHS - 1):
        resumed = kind()
        fitted(resumed, CALLBACKS[callback](), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert alike(bits(whole), bits(resumed)), epoch


def test_pytorch_lightnings_callback_is_recognised_too():
    class Other(ROOTMixin, pytorch_lightning.LightningModule):
        root_options = Mixed.root_options
        __init__, training_step = Net.__init__, Net.training_step
        train_dataloader = Net.train_dataloader

    Other.__init__ = lambda self: (
        pytorch_lightning.LightningModule.__init__(self),
        vars(self)["_modules"].update(Net()._modules),
    )[0]
    callback = pytorch_lightning.callbacks.BackboneFinetuning(1, train_bn=False)
    model = Other()
    (optimizer,) = fitted(model, callback, package=pytorch_lightning).optimizers
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]


class Plan(L.Callback):
    """A user's own: which parts want gradients, from which epoch on."""

    def __init__(self, plan):
        self.plan = plan

    def on_train_epoch_start(self, trainer, module):
        self.apply(module, trainer.current_epoch)

    def apply(self, module, epoch):
        for part, wanted in self.plan.get(epoch, {}).items():
            getattr(module, part).requires_grad_(wanted)


PLANS = {
    "thaw": {0: {"backbone": False}, 2: {"backbone": True}},
    "chain": {
        0: {"backbone": False},
        1: {"backbone": True, "head": False},
        2: {"head": True},
        3: {"backbone": False},
    },
}


class Frozen:
    """Frozen before there is an optimizer."""

    def __init__(self):
        super().__init__()
        self.backbone.requires_grad_(False)


class FrozenMixed(Frozen, Mixed):
    pass


class FrozenListed(Frozen, Net):
    """Given as a list, in which frozen layers are the user's own choice."""

    def configure_optimizers(self):
        return ROOT(list(self.parameters()), lr=1e-2)

    def configure_callbacks(self):
        return [ROOTBinder()]


class FrozenBare(Frozen, Net):
    """Without binder and mixin."""

    def configure_optimizers(self):
        return ROOT(self.parameters(), lr=1e-2)


class FrozenTaken(ROOTMixin, Frozen, Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", [FrozenMixed, FrozenListed, FrozenBare, FrozenTaken])
def test_whatever_is_frozen_meanwhile_keeps_its_state_and_resumes_exactly(kind, plan, tmp_path):
    whole = kind()
    start = bits(whole)
    fitted(whole, Plan(PLANS[plan]), folder=tmp_path)
    trained = dict(whole.named_parameters())
    assert not any(torch.equal(start[name], parameter) for name, parameter in trained.items())
    for epoch in range(EPOCHS - 1):
        resumed = kind()
        for before in range(epoch + 1):
            Plan(PLANS[plan]).apply(resumed, before)
        fitted(resumed, Plan(PLANS[plan]), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert alike(bits(whole), bits(resumed)), epoch


class Adapted(nn.Module):
    """A Linear with a low-rank adapter, to be merged."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(8, 2, bias=False)
        self.lora_B = nn.Linear(2, 8, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.lora_B(self.lora_A(inputs))

    def merged(self):
        self.base.weight.data += self.lora_B.weight.data @ self.lora_A.weight.data
        return self.base.requires_grad_(True)


class Adapting(Mixed):
    """The adapter is merged after an epoch, and a layer is added after two."""

    def __init__(self, epoch=0):
        super().__init__()
        self.backbone[3] = Adapted(self.backbone[3])
        for reached in range(1, epoch + 1):
            self.change(reached)

    def change(self, epoch):
        if epoch == 1:
            self.backbone[3] = self.backbone[3].merged()
        elif epoch == 2:
            self.backbone.append(nn.Linear(8, 8))

    def on_train_epoch_start(self):
        if len(self.backbone) == 5 and self.current_epoch in (1, 2):
            torch.manual_seed(2)
            self.change(self.current_epoch)


def test_merged_adapters_leave_and_new_layers_join(tmp_path):
    model = Adapting()
    fit = fitted(model, folder=tmp_path)
    (optimizer,) = fit.optimizers
    held = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert held == [name for name, _ in model.named_parameters()]
    assert {"backbone.0.weight", "backbone.3.weight"} <= set(names_by_role(optimizer)["root"])
    saved = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)["optimizer_states"][0]
    assert set(saved["state"]) == set(held)
    resumed = Adapting(epoch=2)
    fitted(resumed, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert alike(bits(model), bits(resumed))


def test_two_optimizers_have_the_names_of_the_whole_and_resume(tmp_path):
    """Whose parts have parameters of equal names, as a generator and a discriminator."""

    class Pair(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.gen = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 6))
            self.dis = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))

        def configure_optimizers(self):
            rules = {"1.bias": "adamw"}  # of the part's own names
            return ROOT(self.gen.parameters(), lr=1e-2, rules=rules), ROOT(self.dis.parameters())

        def training_step(self, batch, _):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.dis(self.gen(batch[0])).square().mean())
                optimizer.step()

        train_dataloader = Net.train_dataloader

    whole = Pair()
    fit = fitted(whole, ROOTBinder(), folder=tmp_path)
    for optimizer, part in zip(fit.optimizers, ("gen", "dis"), strict=True):
        roles = names_by_role(optimizer)
        assert roles["root"] == [f"{part}.0.weight", f"{part}.1.weight"]  # each with its own end
        assert all(name.startswith(f"{part}.") for name in roles["adamw"])
    resumed = Pair()
    fitted(resumed, ROOTBinder(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert alike(bits(whole), bits(resumed))
