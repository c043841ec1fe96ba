"""The projects themselves, where they are installed: `make test-clients`; skipped elsewhere.

Small data, a few steps: what is checked is that the line of `examples/guides/clients.md` works,
that the split is right, and that what is saved loads.
"""

import functools
import os
import warnings

import numpy as np
import pytest
import torch

from lightning_root import ROOT
from tests.helpers import names_by_role

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def project(name):
    """Import a project, or skip where it is missing; LIGHTNING_ROOT_CLIENTS=required fails."""
    if os.environ.get("LIGHTNING_ROOT_CLIENTS") == "required":
        return __import__(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; see `make test-clients`")


def series(count=160):
    time = np.arange(count, dtype=np.float32)
    return np.sin(time / 6) + 0.1 * np.cos(time / 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["NHiTSModel", "NBEATSModel", "BlockRNNModel"])
def test_darts_trains_and_reloads_what_holds_the_class(kind, tmp_path):
    project("darts")
    from darts import TimeSeries, models
    from darts.utils.serialization import safe_globals

    model = getattr(models, kind)(
        input_chunk_length=24,
        output_chunk_length=8,
        n_epochs=1,
        optimizer_cls=ROOT,
        optimizer_kwargs={"lr": 4e-3},
        model_name="one",
        work_dir=str(tmp_path),
        save_checkpoints=True,
        force_reset=True,
        pl_trainer_kwargs=QUIET,
    )
    model.fit(TimeSeries.from_values(series()))
    (optimizer,) = model.trainer.optimizers
    roles = names_by_role(optimizer)
    assert roles["root"] and optimizer.param_groups[0]["lr"] == 4e-3
    ends = {
        "NHiTSModel": "stacks.2.blocks.0.forecast_linear_layer.weight",
        "NBEATSModel": "stacks.0.blocks.0.backcast_g.weight",
        "BlockRNNModel": "fc.0.weight",
    }
    assert ends[kind] in roles["adamw"]
    with safe_globals([ROOT]):
        loaded = getattr(models, kind).load_from_checkpoint("one", str(tmp_path), best=False)
    assert loaded.model.optimizer_cls is ROOT
    assert np.array_equal(loaded.predict(8).values(), model.predict(8).values())


@pytest.mark.filterwarnings("ignore")
def test_pytorch_forecastings_transformer_has_its_gates_cut_and_a_short_table():
    project("pytorch_forecasting")
    import lightning.pytorch as L
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

    rows = [
        {"time_idx": t, "value": float(v), "series": str(g), "covariate": float(t % 7)}
        for g in range(2)
        for t, v in enumerate(series(60))
    ]
    data = TimeSeriesDataSet(
        pd.DataFrame(rows),
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
        time_varying_known_reals=["covariate"],
        static_categoricals=["series"],
    )
    model = TemporalFusionTransformer.from_dataset(
        data, learning_rate=4e-3, hidden_size=8, optimizer=ROOT
    )
    trainer = L.Trainer(max_steps=4, enable_checkpointing=False, **QUIET)
    trainer.fit(model, data.to_dataloader(train=True, batch_size=8, num_workers=0))
    (optimizer,) = trainer.optimizers
    root = optimizer if isinstance(optimizer, ROOT) else optimizer.optimizer
    assert root.param_groups[0]["lr"] == pytest.approx(4e-3)
    gates = [r for r in root.partition.routes if r.name.endswith("glu.fc.weight")]
    assert gates and all(len(route.matrices) == 2 for route in gates if route.role == "root")
    assert len(str(root.partition).splitlines()) < 100


@pytest.mark.filterwarnings("ignore")
def test_litgpt_pretrains_from_its_configuration(tmp_path):
    project("litgpt")
    from lightning.fabric import Fabric
    from litgpt import GPT, Config
    from litgpt.utils import instantiate_torch_optimizer

    config = Config(
        n_layer=2, n_head=4, n_query_groups=2, n_embd=32, padded_vocab_size=64, block_size=16
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    model = fabric.setup(GPT(config))
    given = {"class_path": "lightning_root.ROOT", "init_args": {"lr": 6e-3}}
    optimizer = instantiate_torch_optimizer(given, model.parameters(), fused=False)
    optimizer = fabric.setup_optimizers(optimizer)
    losses = []
    tokens = torch.randint(64, (4, 16))
    for _ in range(8):
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    root = optimizer.optimizer
    roles = names_by_role(root)
    assert {"lm_head.weight", "transformer.wte.weight"} <= set(roles["adamw"])
    routes = {route.name: route for route in root.partition.routes}
    (fused,) = [n for n in routes if n.startswith("transformer.h.0.attn") and "qkv.weight" in n]
    assert sorted(routes[fused].matrices) == [(16, 32), (16, 32), (32, 32)]  # k, v and q
    fabric.save(tmp_path / "one.ckpt", {"model": model, "optimizer": optimizer})
    fabric.load(tmp_path / "one.ckpt", {"model": model, "optimizer": optimizer})


def test_a_hydra_config_group_makes_the_optimizer():
    """lightning-hydra-template's `configs/model`, with one line changed."""
    project("hydra")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "_target_": "lightning_root.ROOT",
            "_partial_": True,
            "lr": 0.004,
            "weight_decay": 0.0,
            "betas": [0.9, 0.99],
            "coefficients": [[3.4445, -4.775, 2.0315]] * 5,
        }
    )
    make = instantiate(config)
    assert isinstance(make, functools.partial)
    layers = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = make(params=layers.parameters())
    (group,) = optimizer.param_groups
    assert group["betas"] == (0.9, 0.99) and type(group["betas"]) is tuple
    assert group["coefficients"] == ((3.4445, -4.775, 2.0315),) * 5
    assert names_by_role(optimizer)["root"] == ["0.weight", "1.weight"]
