"""A checkpoint of any strategy resumes under any other: 4 steps, a file, 4 more, against 8.

Every rank sees the same batches, so all strategies do what one process does.
"""

import io
import json
import warnings
from itertools import product

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_root import ROOTCLI, ROOTMixin, ShardedDDPStrategy
from lightning_root.cli import main
from tests.integration.models import Batches, trainer, weights

HALF, WHOLE = 4, 8
OPTIONS = {
    **{"lr": 1e-2, "warmup_steps": 2, "max_steps": WHOLE, "coefficients": "muon"},
    "rules": {"qkv.weight": {"rows": 3}},
}
FORMS = ["one", "ddp", "parts", "fsdp2", "folder"]
ON_RANKS = FORMS[1:]


class Net(ROOTMixin, L.LightningModule):
    """A fused qkv, a convolution, an embedding, and layers that the first or some steps leave out.

    They have no gradient then, and the late one no state when the checkpoint is written.
    """

    root_options = OPTIONS

    def __init__(self):
        super().__init__()
        self.now = 0

    def configure_model(self):
        if hasattr(self, "embedding"):
            return
        torch.manual_seed(3)
        self.embedding = nn.Embedding(16, 12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.qkv = nn.Linear(12, 36)
        self.sometimes = nn.Linear(12, 12)
        self.late = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def training_step(self, batch, _):
        tokens, target = batch
        x = self.conv(self.embedding(tokens).mT).mT
        q, k, v = self.qkv(x).chunk(3, -1)
        x = nn.functional.scaled_dot_product_attention(q, k, v).mean(1)
        step = self.trainer.global_step
        if step % 3 != 1:
            x = x + torch.tanh(self.sometimes(x))
        if step > HALF:
            x = x + torch.tanh(self.late(x))
        return nn.functional.cross_entropy(self.head(x), target)

    def train_dataloader(self):
        return Batches()


class ShardedNet(Net):
    def configure_model(self):
        if not hasattr(self, "embedding"):
            super().configure_model()
            for layer in self.children():
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def strategy_of(form, ranks):
    if form == "one":
        return {}
    if form in ("fsdp2", "folder"):
        folder = form == "folder"
        strategy = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=folder)
    else:
        kind = {"ddp": DDPStrategy, "parts": ShardedDDPStrategy}[form]
        strategy = kind(process_group_backend="gloo", find_unused_parameters=True)
    return {"strategy": strategy, "devices": ranks}


def fitted(form, ranks, steps, path=None):
    warnings.simplefilter("ignore")
    fit = trainer(max_steps=steps, **strategy_of(form, ranks))
    model = ShardedNet() if form in ("fsdp2", "folder") else Net()
    fit.fit(model, ckpt_path=path)
    return fit, model


def save(form, ranks, path):
    """Train half of the steps and save twice; the state's keys on this rank."""
    fit, model = fitted(form, ranks, HALF)
    fit.save_checkpoint(path)
    fit.save_checkpoint(f"{path}.again")
    optimizer = fit.optimizers[0]
    return [sorted(optimizer.state.get(p, {})) for p in model.parameters()]


def saved_on_ranks(rank, ranks, folder):
    torch.set_num_threads(1)
    return {form: save(form, ranks, f"{folder}/{form}.ckpt") for form in ON_RANKS}


def resumed_on_ranks(rank, ranks, form, paths):
    """The weights after the other half, of each path; None is the whole run."""
    torch.set_num_threads(1)
    return {path: weights(fitted(form, ranks, WHOLE, path)[1]) for path in paths}


@pytest.fixture(scope="module")
def saved(gloo_pool, tmp_path_factory):
    """The folder with a checkpoint of each form after 4 steps, and the state's keys on ranks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    keys = gloo_pool.run(saved_on_ranks, str(folder))
    with warnings.catch_warnings():
        save("one", 1, str(folder / "one.ckpt"))
    return folder, keys


@pytest.fixture(scope="module")
def whole():
    """The weights after 8 steps in one go, on one process."""
    with warnings.catch_warnings():
        return resumed_on_ranks(0, 1, "one", [None])[None]


def path_for(folder, saved_by, resumed_by):
    """The file, or what `convert-checkpoint` makes of a folder for strategies that read files."""
    path = folder / f"{saved_by}.ckpt"
    if saved_by != "folder" or resumed_by in ("fsdp2", "folder"):
        return str(path)
    converted = folder / "converted.ckpt"
    if not converted.exists():
        assert main(["convert-checkpoint", str(path), "--output", str(converted)]) == 0
    return str(converted)


@pytest.mark.parametrize("form", FORMS)
def test_every_checkpoint_resumes_everywhere(gloo_pool, saved, whole, form):
    """To float32 rounding: gradients are summed in other orders on other numbers of ranks.

    Exactly, where the same strategy goes on.
    """
    folder, _ = saved
    paths = {by: path_for(folder, by, form) for by in FORMS}
    wanted = [None, *paths.values()]
    if form == "one":
        with warnings.catch_warnings():
            results = [resumed_on_ranks(0, 1, form, wanted)]
    else:
        results = gloo_pool.run(resumed_on_ranks, form, wanted)
    for (by, path), result in product(paths.items(), results):
        for name, weight in result[path].items():
            rounding = {"rtol": 1e-4, "atol": 1e-5, "msg": f"{by} -> {form}: {name}"}
            torch.testing.assert_close(weight, whole[name], **rounding)
        if by == form:
            assert all(torch.equal(result[path][n], result[None][n]) for n in whole)


def states_of(path):
    return torch.load(path, weights_only=True)["optimizer_states"]


@pytest.mark.parametrize("form", ["ddp", "parts", "fsdp2"])
def test_files_are_those_of_one_process(saved, form):
    """The same names in the same order, with tensors of the same shapes, dtypes and places.

    Shards have two entries more, empty ones, without which torch could not load older files.
    """
    folder, _ = saved
    (alone,), (found,) = states_of(folder / "one.ckpt"), states_of(folder / f"{form}.ckpt")
    assert set(found["state"]) == set(alone["state"])
    for group, expected in zip(found["param_groups"], alone["param_groups"], strict=True):
        assert {"name": "", "role": "", **group} == {"name": "", "role": "", **expected}
    for name, state in alone["state"].items():
        assert set(found["state"][name]) == set(state)
        for key, value in state.items():
            other = found["state"][name][key]
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-6, msg=f"{name} {key}")
            assert (other.dtype, other.device) == (value.dtype, value.device)


def test_parts_are_saved_as_plain_ddp_saves(saved):
    """In the order of the entries too, and bit for bit."""
    folder, _ = saved
    (plain,), (parts,) = states_of(folder / "ddp.ckpt"), states_of(folder / "parts.ckpt")
    assert list(parts["state"]) == list(plain["state"])
    for name, state in plain["state"].items():
        assert list(parts["state"][name]) == list(state)
        assert all(torch.equal(parts["state"][name][key], state[key]) for key in state)


@pytest.mark.parametrize("form", ["one", "ddp", "parts", "fsdp2"])
def test_saving_twice_gives_the_same_bytes_of_state(saved, form):
    folder, _ = saved
    files = []
    for path in (folder / f"{form}.ckpt", folder / f"{form}.ckpt.again"):
        file = io.BytesIO()
        torch.save(states_of(path), file)
        files.append(file.getvalue())
    assert files[0] == files[1]


def test_ranks_have_the_same_keys_of_state(saved):
    _, keys = saved
    assert keys[0] == keys[1]
    assert sum(map(len, keys[0]["parts"])) > 0


def refused(rank, ranks, folder, case):
    warnings.simplefilter("ignore")
    model, options = Net(), {}
    if case == "optimizer":
        model.configure_optimizers = lambda: torch.optim.AdamW(model.parameters())
    elif case == "share_updates":
        model.root_options = {**OPTIONS, "share_updates": False}
    elif case == "averaging":
        options["model_averaging_period"] = 2
    strategy = ShardedDDPStrategy(process_group_backend="gloo", **options)
    fit = trainer(strategy=strategy, devices=ranks)
    with pytest.raises((TypeError, ValueError, IsADirectoryError)) as info:
        fit.fit(model, ckpt_path=f"{folder}/folder.ckpt" if case == "folder" else None)
    return str(info.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("optimizer", "shards the state of ROOT alone, got AdamW"),
        ("share_updates", "`share_updates` must be True with `ShardedDDPStrategy`"),
        ("averaging", "`model_averaging_period` must be None, got 2"),
        ("folder", "convert-checkpoint FOLDER --output FILE"),
    ],
)
def test_what_cannot_be_done_is_refused(gloo_pool, saved, case, message):
    assert all(message in text for text in gloo_pool.run(refused, str(saved[0]), case))


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "ddp_sharded_state"},
        {"strategy": {"class_path": "lightning_root.ShardedDDPStrategy"}},
    ],
)
def test_configurations_may_name_it(tmp_path, given):
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"trainer": {"accelerator": "cpu", "devices": 2, **given}}))
    cli = ROOTCLI(Net, run=False, args=["--config", str(file)], save_config_callback=None)
    assert type(cli.trainer.strategy) is ShardedDDPStrategy
