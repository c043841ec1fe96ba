"""The metrics against numpy and scipy on all that they are given, and torchmetrics' contract."""

import copy
import pickle

import lightning as L
import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import svdvals
from torchmetrics import MetricCollection

from lightning_root.diagnostics import (
    MomentumCosine,
    MomentumKurtosis,
    OrthogonalizationError,
    OutlierEnergy,
    OutlierFraction,
    UpdateRMS,
)
from lightning_root.functional import clip_outliers, newton_schulz

matplotlib.use("agg")

# Per matrix, in float64, from (N, B, U).
ORACLES = {
    OrthogonalizationError: lambda n, b, u: np.mean((svdvals(u) - 1) ** 2),
    UpdateRMS: lambda n, b, u: np.sqrt(np.mean(u**2)),
    MomentumCosine: lambda n, b, u: (n * u).sum() / np.sqrt((n**2).sum() * (u**2).sum()),
    OutlierFraction: lambda n, b, u: np.mean(n != b),
    OutlierEnergy: lambda n, b, u: ((n - b) ** 2).sum() / (n**2).sum(),
    MomentumKurtosis: lambda n, b, u: stats.moment(n, 4, axis=None, center=0) / np.mean(n**2) ** 2,
}
REDUCTIONS = {"mean": np.mean, "max": np.max, "min": np.min}
every_metric = pytest.mark.parametrize("kind", ORACLES, ids=lambda kind: kind.__name__)


def stacks():
    """Three updates' (N, B, U): three matrices, a single one without a batch, and none."""
    generator = torch.Generator().manual_seed(0)
    for shape, tail, quantile in (((3, 6, 10), 1, 0.8), ((20, 8), 3, 0.6)):
        momentum = torch.randn(shape, generator=generator).pow(tail)
        clipped = clip_outliers(momentum, quantile)
        yield momentum, clipped, newton_schulz(clipped, (3.4445, -4.775, 2.0315), 5)
    yield tuple(torch.zeros(0, 4, 4) for _ in range(3))


def fed(metric):
    for momentum, clipped, update in stacks():
        given = {"momentum": momentum, "clipped": clipped, "update": update}
        metric.update(**{name: given[name] for name in arguments(type(metric))})
    return metric


def arguments(kind):
    names = {OrthogonalizationError: ["update"], UpdateRMS: ["update"]}
    names |= {MomentumCosine: ["momentum", "update"], MomentumKurtosis: ["momentum"]}
    return names.get(kind, ["momentum", "clipped"])


def expected(kind, reduction):
    values = [
        ORACLES[kind](*(x.double().numpy() for x in matrices))
        for stack in stacks()
        for matrices in zip(*(x.reshape(-1, *x.shape[-2:]) for x in stack), strict=True)
    ]
    assert len(values) == 4
    return REDUCTIONS[reduction](values)


@every_metric
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_matrix_counts_once(kind, reduction):
    value = fed(kind(reduction=reduction)).compute()
    assert value.shape == () and value.dtype == torch.float32
    assert float(value) == pytest.approx(expected(kind, reduction), rel=1e-4)


def test_the_exact_error_is_exact():
    update = newton_schulz(torch.randn(150, 150), (3.4445, -4.775, 2.0315), 5)
    oracle = np.mean((svdvals(update.double().numpy()) - 1) ** 2)
    exact, estimate = OrthogonalizationError(exact=True), OrthogonalizationError()
    assert float(exact(update)) == pytest.approx(oracle, rel=1e-4)
    assert float(estimate(update)) == pytest.approx(oracle, rel=0.05)
    assert float(estimate(update)) != pytest.approx(oracle, rel=1e-4)


@every_metric
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_merging_is_updating_with_everything(kind, reduction):
    more = [torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0, 2.0]])][: len(arguments(kind))]
    whole, one, two = fed(kind(reduction=reduction)), fed(kind(reduction=reduction)), kind()
    whole.update(*more)
    two.update(*more)
    one.merge_state(two)
    torch.testing.assert_close(one.compute(), whole.compute(), rtol=1e-6, atol=0)
    assert reduction != "mean" or one.compute() != fed(kind()).compute()


@every_metric
def test_forward_gives_the_value_of_the_batch_and_keeps_the_rest(kind):
    metric = kind(reduction="max")
    given = [dict(zip(("momentum", "clipped", "update"), stack, strict=True)) for stack in stacks()]
    first, second = (metric(**{name: g[name] for name in arguments(kind)}) for g in given[:2])
    assert not torch.equal(first, second)
    assert torch.equal(metric.compute(), torch.maximum(first, second))


@every_metric
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reset_forgets_and_nothing_is_nan(kind, reduction):
    metric = fed(kind(reduction=reduction))
    value = metric.compute()
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()
    assert torch.equal(fed(metric).compute(), value)


@every_metric
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_broken_matrix_shows(kind, reduction):
    metric = fed(kind(reduction=reduction))
    broken = torch.full((3, 4), torch.nan)
    metric.update(*[broken] * len(arguments(kind)))
    fed(metric)
    assert metric.compute().isnan()


@every_metric
def test_copies_and_pickles_carry_the_state(kind):
    metric = fed(kind(reduction="max"))
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(twin.compute(), metric.compute())


@every_metric
def test_float64_matrices_leave_the_state_in_its_dtype(kind):
    metric = kind()
    metric.update(*[torch.eye(3, dtype=torch.float64)] * len(arguments(kind)))
    assert metric.compute().dtype == torch.float32


def test_a_collection_takes_every_argument_and_computes_each_statistic_once():
    """torchmetrics updates one metric of those whose states agree."""
    collection = MetricCollection(
        {"mean": OrthogonalizationError(), "max": OrthogonalizationError(reduction="max")}
        | {kind.__name__: kind() for kind in ORACLES if kind is not OrthogonalizationError}
    )
    for _ in range(2):
        for momentum, clipped, update in stacks():
            collection.update(momentum=momentum, clipped=clipped, update=update)
    values = collection.compute()
    assert float(values["max"]) == pytest.approx(expected(OrthogonalizationError, "max"), rel=1e-4)
    for kind in ORACLES:
        if kind is not OrthogonalizationError:
            expectation = pytest.approx(expected(kind, "mean"), rel=1e-4)
            assert float(values[kind.__name__]) == expectation
    assert sorted(collection.compute_groups.values(), key=len)[-1] == ["max", "mean"]
    assert len(collection.compute_groups) == len(ORACLES)


def test_a_collection_does_not_take_metrics_that_start_equal_for_one():
    """Fraction and energy are both 0 while nothing is clipped, and differ afterwards."""
    collection = MetricCollection([OutlierFraction(), OutlierEnergy()])
    one = torch.tensor([[3.0, 4.0]])
    collection.update(one, one)
    collection.update(one, one.clamp(-2, 2))
    values = {name: float(value) for name, value in collection.compute().items()}
    assert values == pytest.approx({"OutlierFraction": 0.5, "OutlierEnergy": 0.1})
    errors = MetricCollection(
        {"estimate": OrthogonalizationError(), "exact": OrthogonalizationError(exact=True)}
    )
    errors.update(torch.zeros(2, 2))
    errors.update(torch.randn(150, 150) / 12)
    assert errors["estimate"].compute() != errors["exact"].compute()


@every_metric
def test_plots_one_value_or_a_series(kind):
    metric = fed(kind())
    figure, axes = metric.plot()
    assert axes.get_lines()[0].get_ydata()[0] == pytest.approx(float(metric.compute()))
    assert axes.get_ylabel() == kind.__name__
    matplotlib.pyplot.close(figure)
    figure, axes = metric.plot([torch.tensor(0.1), torch.tensor(0.3)])
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.1, 0.3])
    matplotlib.pyplot.close(figure)


@every_metric
def test_torchmetrics_contract(kind):
    metric = kind(sync_on_compute=False)
    assert metric.sync_on_compute is False
    assert metric.full_state_update is False and metric.is_differentiable is False
    assert metric.higher_is_better is (False if kind is OrthogonalizationError else None)


@every_metric
def test_constructor_refuses_what_does_nothing(kind):
    with pytest.raises(ValueError, match=r"`reduction` must be one of \['mean', 'max', 'min'\]"):
        kind(reduction="median")
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `quantile`"):
        kind(quantile=0.9)
    with pytest.raises(TypeError, match="`exact` must be True or False, got 'yes'"):
        OrthogonalizationError(exact="yes")


class Logs(L.LightningModule):
    """Logs a metric object, as a user would."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.rms = UpdateRMS()

    def training_step(self, batch, batch_idx):
        self.rms(torch.full((2, 3, 4), float(batch)))
        self.log("root/update_rms/mean", self.rms, on_step=True, on_epoch=True)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_logs_the_metric_over_the_epoch(tmp_path):
    trainer = L.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(Logs(), torch.tensor([1.0, 3.0, 5.0]))
    assert float(trainer.callback_metrics["root/update_rms/mean_epoch"]) == pytest.approx(3.0)
    assert float(trainer.callback_metrics["root/update_rms/mean_step"]) == pytest.approx(5.0)
