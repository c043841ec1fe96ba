"""How fifteen projects make and drive their optimizer, as small stand-ins: each in its own words.

What a user of such a project expects holds: groups, rates and schedules are those that torch's
AdamW has in the same script, parameters are trained by the rule that fits them, runs resume, and at
most one message comes. The projects themselves are in the other files of this folder.
"""

import functools
import math
import warnings

import lightning as L
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim import lr_scheduler

from lightning_root import ROOT, ROOTBinder, ROOTMixin
from tests.helpers import names_by_role
from tests.models import GPT


class Encoder(nn.Module):
    """An image model in the manner of timm: patches, blocks with fused qkv, norms, a head."""

    def __init__(self, depth=2, width=16):
        super().__init__()
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(1, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.num_heads = 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.fc2(torch.relu(self.fc1(self.norm2(x))))


HIDDEN = [f"blocks.{n}.{name}.weight" for n in (0, 1) for name in ("qkv", "proj", "fc1", "fc2")]


def decay_groups(model, decay=0.05, **options):
    """As timm, Hugging Face and lightly make them: vectors, biases and tokens do not decay."""
    without = {id(p) for n, p in model.named_parameters() if p.ndim < 2 or "token" in n}
    params = list(model.parameters())
    return [
        {"params": [p for p in params if id(p) in without], "weight_decay": 0.0, **options},
        {"params": [p for p in params if id(p) not in without], "weight_decay": decay, **options},
    ]


class Images(L.LightningModule):
    """A LightningModule around it, as its author wrote it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Encoder()

    def training_step(self, batch, _):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(32, 1, 8, 8, generator=generator)
        labels = torch.randint(3, (32,), generator=generator)
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images, labels), batch_size=8
        )


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        groups = trainer.optimizers[0].param_groups
        self.seen.append([(group["lr"], group["weight_decay"]) for group in groups])


def fitted(model, *callbacks, epochs=2, **options):
    """Train; return the Trainer, the rates of every step and what was said."""
    rates = Rates()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[rates, *callbacks],
            log_every_n_steps=1,
        )
        trainer.fit(model, **options)
    ours = [str(w.message) for w in caught if "ROOT" in str(w.message)]
    return trainer, rates.seen, ours


def with_mixin(kind):
    class Mixed(ROOTMixin, kind):
        pass

    return Mixed


def check_split(optimizer, prefix="net."):
    roles = names_by_role(optimizer)
    assert roles["root"] == sorted(roles["root"], key=roles["root"].index)
    assert set(roles["root"]) == {f"{prefix}{name}" for name in HIDDEN}
    routes = {route.name: route for route in optimizer.partition.routes}
    assert len(routes[f"{prefix}blocks.0.qkv.weight"].matrices) == 3


def one_step(model, optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


# ---- Fabric ----


def instantiate(class_path, params, **init_args):
    """As litgpt makes an optimizer of its configuration: a class by its path, and options."""
    module, _, name = class_path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)(params, **init_args)


def test_litgpt_makes_it_of_a_class_path_and_trains_with_fabric():
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup(GPT(tied=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = instantiate("lightning_root.ROOT", model.parameters(), lr=6e-3)
        optimizer = fabric.setup_optimizers(optimizer)
        for _ in range(2):
            loss = model(torch.randint(256, (2, 8))).square().mean()
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    roles = names_by_role(optimizer.optimizer)
    assert "wte.weight" in roles["adamw"] and "lm_head.weight" in roles["adamw"]
    assert roles["root"][0] == "blocks.0.qkv.weight"  # without Fabric's prefix


def test_a_fabric_script_resumes_exactly(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)

    def made():
        torch.manual_seed(0)
        model = GPT(tied=False)
        return fabric.setup(model, ROOT(model.parameters(), lr=1e-2))

    whole, driven = made()
    for step in range(4):
        one_step(whole, driven, step)
        if step == 1:
            fabric.save(tmp_path / "half.ckpt", {"model": whole, "optimizer": driven})
    resumed, other = made()
    fabric.load(tmp_path / "half.ckpt", {"model": resumed, "optimizer": other})
    for step in (2, 3):
        one_step(resumed, other, step)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


# ---- optimizers from configurations ----


class FromPartials(Images):
    """lightning-hydra-template: `_partial_: true`, the parameters at the end."""

    def __init__(self, optimizer, scheduler=None):
        super().__init__()
        self.make, self.plan = optimizer, scheduler

    def configure_optimizers(self):
        optimizer = self.make(params=self.trainer.model.parameters())
        if self.plan is None:
            return {"optimizer": optimizer}
        plan = {"scheduler": self.plan(optimizer=optimizer), "monitor": "loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


def test_hydras_partials_take_the_class():
    plan = functools.partial(lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=10)
    make = functools.partial(ROOT, lr=4e-3, weight_decay=0.0)
    trainer, rates, said = fitted(FromPartials(make, plan), ROOTBinder())
    check_split(trainer.optimizers[0])
    assert rates[0] == [(4e-3, 0.0)] and said == []


class FromClass(Images):
    """pytorch-forecasting, darts and neuralforecast: a class, and its options as a dict."""

    def __init__(self, optimizer=torch.optim.Adam, options=None):
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters(), **(self.hparams.options or {}))


def test_forecasters_take_the_class_and_reload_what_holds_it(tmp_path):
    """Lightning loads with `weights_only`, which knows the class once the package is imported."""
    model = FromClass(ROOT, {"lr": 4e-3})
    trainer, rates, said = fitted(model)
    check_split(trainer.optimizers[0])
    assert rates[0] == [(4e-3, 0.1)] and said == []
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = FromClass.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert loaded.hparams.optimizer is ROOT
    assert all(map(torch.equal, model.parameters(), loaded.parameters()))


def test_a_creator_of_filtered_parameters_sees_the_model():
    """scvi-tools: `optimizer_creator` gets `filter(lambda p: p.requires_grad, ...)`."""

    class Plan(Images):
        optimizer_creator = staticmethod(lambda params: ROOT(params, lr=1e-3))

        def configure_optimizers(self):
            return self.optimizer_creator(filter(lambda p: p.requires_grad, self.net.parameters()))

    model = Plan()
    model.net.cls_token.requires_grad_(False)
    trainer, _, said = fitted(model)
    check_split(trainer.optimizers[0], prefix="")
    held = {name for group in trainer.optimizers[0].param_groups for name in group["param_names"]}
    assert "cls_token" not in held and said == []


# ---- the mixin over what a project configures ----


class Noam(Images):
    """chemprop: Adam at the start of a warm-up, and a factor for every step."""

    peak, start, warm, total = 1e-2, 1e-3, 3, 8

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), self.start)

        def factor(step):
            if step < self.warm:
                return 1 + step * (self.peak / self.start - 1) / self.warm
            decay = (self.start / self.peak) ** (1 / (self.total - self.warm))
            return self.peak / self.start * decay ** (step - self.warm)

        plan = {"scheduler": lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class Plateau(Images):
    """torchgeo: AdamW and a plateau of what is monitored."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        plan = lr_scheduler.ReduceLROnPlateau(optimizer, patience=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "monitor": "loss"}}


class Flow(Images):
    """anomalib: Adam with a little decay."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=1e-3, weight_decay=1e-5)


class Contrastive(Images):
    """lightly: groups with names, and a cosine with warm-up."""

    def configure_optimizers(self):
        vectors, matrices = decay_groups(self.net)
        matrices = {**matrices, "name": "simclr"}
        vectors = {**vectors, "name": "simclr_no_weight_decay"}
        optimizer = torch.optim.AdamW([matrices, vectors], lr=3e-3, weight_decay=0.05)
        plan = lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(step / 8))
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


class Segmentation(Images):
    """segmentation_models_pytorch: a slower encoder, by one cosine."""

    def configure_optimizers(self):
        head = {"params": self.net.head.parameters(), "lr": 1e-3}
        rest = {"params": self.net.blocks.parameters(), "lr": 1e-4}
        optimizer = torch.optim.Adam([rest, head])
        plan = lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}


@pytest.mark.parametrize("kind", [Noam, Plateau, Flow, Contrastive, Segmentation])
def test_one_line_keeps_what_the_project_configures(kind):
    """Rates and decay of every group in every step, with one message; matrices by ROOT."""
    trainer, rates, said = fitted(with_mixin(kind)())
    _, expected, _ = fitted(kind())
    assert rates == expected
    assert len(said) == 1 and "Kept: " in said[0]
    check_split(trainer.optimizers[0])


def test_lightlys_groups_keep_names_and_decay_under_a_root_of_ones_own():
    class Own(Contrastive):
        def configure_optimizers(self):
            vectors, matrices = decay_groups(self.net)
            return ROOT([{**matrices, "name": "simclr"}, {**vectors, "name": "rest"}], lr=3e-3)

    for callbacks, kind in (([ROOTBinder()], Own), ([], with_mixin(Own))):
        trainer, rates, said = fitted(kind(), *callbacks)
        check_split(trainer.optimizers[0])
        assert rates[0] == [(3e-3, 0.05), (3e-3, 0.0)] and said == []
        assert [g["name"] for g in trainer.optimizers[0].param_groups] == ["simclr", "rest"]


# ---- loops of other libraries ----


def test_timms_groups_scale_by_layer_and_do_not_warn_once_bound():
    """`param_groups_layer_decay`: a group for each layer with a `lr_scale` that timm applies."""
    model = Encoder()
    layers = [model.patch_embed, model.blocks[0], model.blocks[1], model.norm, model.head]
    groups = []
    for number, layer in enumerate(layers):
        for group in decay_groups(layer, lr_scale=0.5 ** (len(layers) - 1 - number)):
            if group["params"]:
                groups.append(group)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ROOT(groups, lr=1e-3)
        optimizer.bind(model)
        one_step(model, optimizer)
    assert [g["lr_scale"] for g in optimizer.param_groups] == [g["lr_scale"] for g in groups]
    assert {g["lr"] for g in optimizer.param_groups} == {1e-3}
    check_split(optimizer, prefix="")


def test_hugging_faces_trainer_drives_groups_and_a_schedule_and_resumes():
    """`optimizers=(ROOT(...), None)`; decayed and other parameters; one factor for all groups."""

    def made():
        torch.manual_seed(0)
        model = Encoder()
        optimizer = ROOT(decay_groups(model)[::-1], lr=2e-3)
        optimizer.bind(model)
        plan = lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 10))
        return model, optimizer, plan

    whole, driven, plan = made()
    twin = torch.optim.AdamW(decay_groups(Encoder())[::-1], lr=2e-3)
    other_plan = lr_scheduler.LambdaLR(twin, lambda step: max(0.0, 1 - step / 10))
    for step in range(6):
        one_step(whole, driven, step)
        plan.step()
        twin.step()
        other_plan.step()
        assert plan.get_last_lr() == other_plan.get_last_lr()
        if step == 2:
            saved = [whole.state_dict(), driven.state_dict(), plan.state_dict()]
            saved = [{k: v for k, v in each.items()} for each in saved]
            saved[0] = {name: value.clone() for name, value in saved[0].items()}
            resumed, *others = made()
            resumed.load_state_dict(saved[0])
            for each, state in zip(others, saved[1:], strict=True):
                each.load_state_dict(state)
    for step in range(3, 6):
        one_step(resumed, others[0], step)
        others[1].step()
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    check_split(driven, prefix="")


def test_accelerate_wraps_it_as_any_optimizer():
    """It drives `step`, `zero_grad`, `param_groups`, `state_dict` and `load_state_dict` alone."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Encoder()
    model, optimizer = accelerator.prepare(model, ROOT(model.parameters(), lr=1e-2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        accelerator.backward(model(torch.randn(2, 1, 8, 8)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    assert not any(map(torch.equal, before, model.parameters()))
    check_split(optimizer.optimizer, prefix="")


class Agent(L.LightningModule):
    """Lightning's REINFORCE and GAN templates: two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def configure_optimizers(self):
        return [ROOT(part.parameters(), lr=1e-2) for part in (self.actor, self.critic)]

    def training_step(self, batch, _):
        for optimizer, part in zip(self.optimizers(), (self.actor, self.critic), strict=True):
            optimizer.zero_grad()
            self.manual_backward(part(batch[0]).square().mean())
            optimizer.step()

    def train_dataloader(self):
        rows = torch.utils.data.TensorDataset(torch.randn(16, 4))
        return torch.utils.data.DataLoader(rows, batch_size=8)


def test_two_optimizers_of_lightnings_templates_have_heads_of_their_own():
    trainer, _, said = fitted(Agent(), ROOTBinder())
    actor, critic = map(names_by_role, trainer.optimizers)
    assert actor["root"] == ["actor.0.weight", "actor.2.weight"]
    assert critic["root"] == ["critic.0.weight"]
    assert said == []
