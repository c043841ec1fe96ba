"""Every file in `configs/vision/` trains on tiny files, through the code that reads CIFAR-10."""

import math
import warnings
from pathlib import Path

import pytest
import torch

from examples.baselines import MuonWithAdamW
from examples.two_rates import TwoRateROOT
from examples.vision.resnet import ResNet
from examples.vision.vit import ViT
from lightning_root import partition_parameters
from tests.examples.images import write_parquet
from tests.integration.models import weights
from tests.test_configs import CONFIGS, ON_CPU, ROOT_FOLDER, cli, command

BASE = "--config=configs/vision/cifar10_vit.yaml"
VISION = [config for config in CONFIGS if config.startswith("configs/vision/")]
SMALL_RESNET = ["--model.blocks=1", "--model.width=8", "--model.stages=2", "--data.batch_size=8"]
SMALL = ["--model.depth=1", "--model.width=16", "--model.heads=2", "--data.batch_size=8"]
QUIET = [
    *("--trainer.logger=false", "--trainer.callbacks=null", "--trainer.max_epochs=-1"),
    *("--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"),
]
NOISE = ["--trainer.callbacks=examples.noise.GradientOutliers", "--trainer.callbacks.rate=0.01"]
ROOTS = {"coefficients": "adaptive", "adjust_lr_fn": "original"}
OPTIMIZERS = {
    "root_p85": (TwoRateROOT, {**ROOTS, "outlier_quantile": 0.85}),
    "root_p90": (TwoRateROOT, {**ROOTS, "outlier_quantile": 0.90}),
    "root_p95": (TwoRateROOT, {**ROOTS, "outlier_quantile": 0.95}),
    "root_auto": (TwoRateROOT, {**ROOTS, "outlier_quantile": "auto"}),
    "muon": (TwoRateROOT, {**ROOTS, "coefficients": "muon", "outlier_quantile": None}),
    "torch_muon": (MuonWithAdamW, {"adjust_lr_fn": "original"}),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.95)}),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where the images are, with the project's root as working directory."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(ROOT_FOLDER)
    for seed, name in enumerate(("train", "test")):
        write_parquet(tmp_path / f"{name}.parquet", seed=seed)
    return [f"--data.{name}_files={tmp_path}/{name}.parquet" for name in ("train", "test")]


def test_the_default_model_has_the_papers_size():
    count = sum(parameter.numel() for parameter in ViT().parameters())
    assert count == pytest.approx(6.3e6, rel=0.02)


def test_untrained_it_finds_all_classes_equally_likely():
    model = ViT(depth=1, width=16, heads=2, classes=7)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 3, 6]))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)  # float32


def test_it_sees_where_a_patch_is():
    model = ViT(depth=1, width=16, heads=2, image_size=8)
    torch.nn.init.normal_(model.head.weight)
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)  # columns of patches
    with torch.no_grad():
        difference = (model(images) - model(swapped)).abs().max()
        model.patches.positions.zero_()
        without = (model(images) - model(swapped)).abs().max()
    assert difference > 1e-3 > 1e-5 > without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30, "heads": 4}, "`width` must be a multiple of `heads`, got width=30"),
        ({"patch": 5}, "`patch` must divide `image_size`, got 5 and 32"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViT(**options)


def test_the_residual_network_is_that_of_cifar10():
    """Twenty layers with weights, a head of 64 channels, and all convolutions ROOT's."""
    model = ResNet()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) - 2 == 20  # of shortcuts there are two more
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.27e6, rel=0.03)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model(images), torch.zeros(3, 10))
    assert model.head.in_features == 64
    hidden = [r for r in partition_parameters(model).routes if r.role == "root"]
    assert len(hidden) == len(layers) - 1
    with pytest.raises(ValueError, match="`width` must be a multiple of 8, got 12"):
        ResNet(width=12)


@pytest.mark.parametrize("config", VISION)
def test_every_config_on_images_trains(config, files, tmp_path):
    """Everything but sizes and devices is as in the file: so are the paper's rates and decay."""
    if "digits" in config:
        pytest.importorskip("sklearn")
        files = []
    # Forty images have no balanced subset of the sizes in the files.
    sizes = ["--data.train_size=20", "--data.validation_size=10"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    small = SMALL_RESNET if "resnet" in config else SMALL
    options = [*files, *sizes, *small, *ON_CPU, folder, "--trainer.fast_dev_run=2"]
    made = cli(["fit", *command(config), *options])
    assert made.trainer.global_step == 2
    assert math.isfinite(made.trainer.callback_metrics["val/loss"])
    assert 0 <= made.trainer.callback_metrics["val/accuracy"] <= 1
    (optimizer,) = made.trainer.optimizers
    kind, expected = OPTIMIZERS.get(Path(config).stem, OPTIMIZERS["root_p90"])
    assert type(optimizer) is kind
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert rates == ([0.001] if kind is torch.optim.AdamW else [0.02, 0.001])
    assert all(group["weight_decay"] == 5e-5 for group in optimizer.param_groups)
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_resume_is_bitwise(files, tmp_path):
    """From step 3 of 7, in the middle of a pass of 5, with noisy labels and noisy gradients."""

    def train(steps, *more):
        options = [*files, *SMALL, *ON_CPU, *QUIET, *NOISE, "--data.label_noise=0.3"]
        options += [f"--trainer.max_steps={steps}", "--lr_scheduler.max_steps=7", *more]
        made = cli(["fit", BASE, *options, "--weights_only=true"])
        return made.trainer, {name: p.detach() for name, p in made.model.named_parameters()}

    _, expected = train(7)
    trainer, halfway = train(3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = train(7, f"--ckpt_path={tmp_path}/half.ckpt")
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name
        assert not torch.equal(halfway[name], weight), name


def test_bfloat16_mixed_trains(files):
    options = ["--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed"]
    made = cli(["fit", BASE, *files, *SMALL, *options, *QUIET, "--trainer.max_steps=2"])
    assert made.trainer.global_step == 2
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def on_ranks(rank, ranks, arguments, cache):
    import datasets

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    datasets.config.HF_DATASETS_CACHE = cache
    made = cli(["fit", *arguments])
    return dict(made.trainer.callback_metrics), weights(made.model)


def test_two_sharded_processes_train_as_one(gloo_pool, files, tmp_path):
    """Same global batches and same outliers, so the same weights up to the order of sums."""
    options = [*files, *SMALL[:3], *ON_CPU, *QUIET, *NOISE, "--trainer.max_steps=2"]
    options += ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=1"]
    options += ["--optimizer.ns_form=standard"]
    sharded = ["--config=configs/fsdp2.yaml", *options, "--data.batch_size=4"]
    sharded += ["--trainer.devices=2", "--trainer.strategy.init_args.data_parallel_size=2"]
    first, second = gloo_pool.run(on_ranks, [BASE, *sharded], tmp_path / "ranks")
    alone = [BASE, *options, "--data.batch_size=8"]
    metrics, expected = on_ranks(0, 1, alone, tmp_path / "cache")
    for name, weight in expected.items():
        assert torch.equal(first[1][name], second[1][name])
        # float32 sums in another order, through two steps of an iteration that amplifies them
        torch.testing.assert_close(first[1][name], weight, rtol=1e-3, atol=1e-4)
    for name in ("val/loss", "val/accuracy"):
        torch.testing.assert_close(first[0][name], metrics[name], rtol=1e-3, atol=1e-4)
