"""What the monitor logs, read back from the files, and that training does not notice it."""

import csv
import logging
import math
import warnings
from collections import Counter
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_root import ROOT, ROOTMixin
from lightning_root.diagnostics import (
    Measurements,
    ROOTMonitor,
    alerts,
    observation,
    statistics,
)
from lightning_root.diagnostics.measurements import aggregates, by_label, per_parameter
from tests.integration.models import Batches, PlainNet, trainer, weights

AGGREGATES = {
    "root/orth_error/mean",
    "root/orth_error/max",
    "root/sigma_min/min",
    "root/sigma_max/max",
    "root/outlier_fraction/mean",
    "root/outlier_energy/mean",
    "root/outlier_energy/max",
    "root/relative_threshold/mean",
    "root/kurtosis/mean",
    "root/kurtosis/max",
    "root/momentum_rms/mean",
    "root/cosine/mean",
    "root/update_rms/mean",
    "root/update_rms/min",
    "root/update_rms/max",
    "root/update_to_weight/mean",
    "root/update_to_weight/max",
    "root/skipped",
}
STATISTICS = ("orth_error", "outlier_fraction", "outlier_energy", "update_rms", "update_to_weight")
HEAT_MAPS = ("orth_error", "outlier_energy", "update_rms", "update_to_weight")
PARAMETERS = ("body.0.weight", "body.1.weight")
EACH = {f"root/{statistic}/{name}" for statistic in STATISTICS for name in PARAMETERS}


class Net(ROOTMixin, PlainNet):
    """Two matrices, 12 x 10 and 10 x 12."""

    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 8, "weight_decay": 0.0}

    def validation_step(self, batch, index):
        self.log("val/loss", self.training_step(batch, index), batch_size=8)

    def val_dataloader(self):
        return Batches()


def run(*callbacks, net=Net, checkpoint=None, **options):
    """A finished run: model, Trainer."""
    model = net()
    defaults = {"log_every_n_steps": 2, "limit_val_batches": 1, "val_check_interval": 3}
    fit = trainer(callbacks=list(callbacks), **{**defaults, **options})
    fit.fit(model, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return model, fit


def alerts_of(monitor, **options):
    """What the monitor warns of in a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(monitor, **options)
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if text.startswith("ROOTMonitor")]


def events(logger):
    found = EventAccumulator(
        logger.log_dir, size_guidance={"images": 0, "scalars": 0, "histograms": 0}
    )
    return found.Reload()


def assert_bitwise(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


class Weights(L.Callback):
    """The weights before and after every step, as training has them."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.before.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(weights(pl_module))


# What is logged


def test_numbers_are_those_of_what_the_weights_did(tmp_path):
    """W_before - W_after = lr * scale * U: singular values of that, by torch.linalg, in float64."""
    logger, steps = TensorBoardLogger(tmp_path), Weights()
    rates = []

    class Rate(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    class Double(Net):
        def build(self):
            super().build()
            self.double()

    run(ROOTMonitor(), steps, Rate(), net=Double, logger=logger, precision="64-true")
    found = events(logger)
    for point, step in enumerate((1, 3, 5, 7)):
        errors, sizes, shares = [], [], []
        for name in PARAMETERS:
            moved = steps.before[step][name] - steps.after[step][name]
            shares.append(float(moved.norm() / steps.before[step][name].norm()))
            moved /= rates[step]
            sigma = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(12))
            errors.append(float((sigma - 1).square().mean()))
            sizes.append(float(moved.square().mean().sqrt()))
            seen = {"orth_error": errors, "update_rms": sizes, "update_to_weight": shares}
            for statistic, (*_, expected) in seen.items():
                (event,) = found.Scalars(f"root/{statistic}/{name}")[point : point + 1]
                assert event.step == step
                assert event.value == pytest.approx(expected, rel=1e-4)
        expected = {
            "root/orth_error/mean": sum(errors) / 2,
            "root/orth_error/max": max(errors),
            "root/update_rms/mean": sum(sizes) / 2,
            "root/update_rms/min": min(sizes),
            "root/update_rms/max": max(sizes),
            "root/update_to_weight/mean": sum(shares) / 2,
            "root/update_to_weight/max": max(shares),
        }
        for tag, value in expected.items():
            assert found.Scalars(tag)[point].value == pytest.approx(value, rel=1e-4)


def test_tensorboard_has_everything(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    _, fit = run(ROOTMonitor(), logger=logger)
    found = events(logger)
    tags = found.Tags()
    assert {tag for tag in tags["scalars"] if tag.startswith("root/")} == AGGREGATES | EACH
    for tag in AGGREGATES | EACH:
        assert [event.step for event in found.Scalars(tag)] == [1, 3, 5, 7]
    assert set(tags["images"]) == {f"root/heat_map/{name}" for name in HEAT_MAPS}
    kinds = ("momentum_over_threshold", "log10_sigma_clipped_momentum", "log10_sigma_update")
    assert set(tags["histograms"]) == {f"root/{kind}/10x12" for kind in kinds}
    assert "custom_scalars__config__" in tags["tensors"]
    (text,) = found.Tensors("root/partition/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert shown.replace("\n    ", "\n").strip() == str(fit.optimizers[0].partition).strip()
    (text,) = found.Tensors("root/coefficients/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("    10 x 12: 5 steps, ")


class Blocks(Net):
    """A matrix of three blocks of rows, one that is zero at first, and a learning rate tensor."""

    root_options = {
        **Net.root_options,
        "lr": torch.tensor(1e-2),
        "rules": {"body.0.weight": {"rows": [2, 4, 6]}},
    }

    def build(self):
        super().build()
        torch.nn.init.zeros_(self.body[1].weight)


def test_updates_are_compared_with_the_blocks_of_the_weights(tmp_path):
    """And not with a weight of zeros, of which nothing is in the logs or in the pictures."""
    logger, monitor, steps = TensorBoardLogger(tmp_path), ROOTMonitor(1), Weights()
    run(monitor, steps, net=Blocks, logger=logger, max_steps=3)
    found = events(logger)
    expected = {f"body.0.weight/{number}": [] for number in range(3)} | {"body.1.weight": []}
    for before, after in zip(steps.before, steps.after, strict=True):
        for name, blocks in (("body.0.weight", [2, 4, 6]), ("body.1.weight", [10])):
            pairs = zip(before[name].split(blocks), after[name].split(blocks), strict=True)
            for number, (old, new) in enumerate(pairs):
                label = name if len(blocks) == 1 else f"{name}/{number}"
                expected[label].append(float((old - new).norm() / old.norm()))
    assert expected["body.1.weight"].pop(0) == math.inf
    for label, values in expected.items():
        logged = found.Scalars(f"root/update_to_weight/{label}")
        assert [event.value for event in logged] == pytest.approx(values, rel=1e-3)
    drawn = monitor.history.values()[HEAT_MAPS.index("update_to_weight")]
    assert drawn.isnan().tolist() == [[False] * 3] * 3 + [[True, False, False]]
    for tag in found.Tags()["scalars"]:
        assert all(math.isfinite(event.value) for event in found.Scalars(tag)), tag
    mean = found.Scalars("root/update_to_weight/mean")[0].value
    assert mean == pytest.approx(sum(expected[f"body.0.weight/{i}"][0] for i in range(3)) / 3, 1e-3)


def test_of_weights_that_are_all_zero_there_is_no_ratio():
    values = torch.ones(len(statistics.STATISTICS), 2)
    values[statistics.row_of("update_to_weight")] = torch.inf
    found = Measurements((("a", 0), ("b", 0)), values)
    numbers = {**aggregates(found), **per_parameter(by_label(found, ["a", "b"]))}
    assert "root/update_rms/mean" in numbers and "root/update_rms/a" in numbers
    assert not [tag for tag in numbers if "update_to_weight" in tag]


def test_histograms_are_of_the_singular_values_and_of_the_momentum_in_units_of_the_threshold(
    tmp_path,
):
    """Nine tenths of the magnitudes are below 1, where clipping begins; sigma(U) is near 1."""
    logger = TensorBoardLogger(tmp_path)
    run(ROOTMonitor(), logger=logger, max_steps=2)
    found = events(logger)
    values = found.Histograms("root/momentum_over_threshold/10x12")[0].histogram_value
    assert values.num == 120
    below = sum(
        count for limit, count in zip(values.bucket_limit, values.bucket, strict=True) if limit < 1
    )
    assert 0.7 * 120 < below <= 0.9 * 120
    sigma = found.Histograms("root/log10_sigma_update/10x12")[0].histogram_value
    assert sigma.num == 10
    assert -0.5 < sigma.min <= sigma.max < 0.1
    clipped = found.Histograms("root/log10_sigma_clipped_momentum/10x12")[0].histogram_value
    assert clipped.max == 0.0  # relative to the largest


def test_heat_maps_are_drawn_after_validations_ever_more_rarely_and_at_the_end(tmp_path):
    """And histograms at every tenth point."""
    logger = TensorBoardLogger(tmp_path)
    monitor = ROOTMonitor()
    options = {"max_steps": 38, "val_check_interval": 4, "log_every_n_steps": 1}
    run(monitor, logger=logger, **options)
    found = events(logger)
    histograms = found.Histograms("root/log10_sigma_update/10x12")
    assert [event.step for event in histograms] == [0, 10, 20, 30]
    for index, name in enumerate(HEAT_MAPS):
        drawn = [event.step for event in found.Images(f"root/heat_map/{name}")]
        assert drawn == [15, 31, 37]
        values = [found.Scalars(f"root/{name}/{parameter}") for parameter in PARAMETERS]
        expected = torch.tensor([[event.value for event in row] for row in values])
        torch.testing.assert_close(monitor.history.values()[index], expected)


def test_several_loggers_and_csv_have_the_same_numbers(tmp_path):
    board, table = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    run(ROOTMonitor(), logger=[table, board])
    with open(f"{table.log_dir}/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = events(board)
    for tag in AGGREGATES | EACH:
        written = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
        expected = [(event.step, event.value) for event in found.Scalars(tag)]
        assert [step for step, _ in written] == [step for step, _ in expected]
        assert [v for _, v in written] == pytest.approx([v for _, v in expected])


class Rated(Net):
    root_options = {**Net.root_options, "lr_scales": {"head": 0.5}, "weight_decays": {"vector": 0}}


def test_rates_in_effect_are_logged_by_kind(tmp_path):
    """Of the step that follows the point, as torch's schedulers have moved them."""
    logger = TensorBoardLogger(tmp_path)
    _, fit = run(ROOTMonitor(), net=Rated, logger=logger)
    seen = events(logger)
    (group,) = fit.optimizers[0].param_groups
    last = [seen.Scalars(f"root/lr/{kind}")[-1].value for kind in ("head", "vector")]
    assert last == pytest.approx([0.5 * group["lr"], group["lr"]])
    assert {e.value for e in seen.Scalars("root/weight_decay/vector")} == {0.0}
    assert "root/lr/hidden" not in seen.Tags()["scalars"]


def test_switched_off_means_left_out(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    run(ROOTMonitor(per_parameter=False, pictures=False), logger=logger)
    tags = events(logger).Tags()
    assert {tag for tag in tags["scalars"] if tag.startswith("root/")} == AGGREGATES
    assert tags["images"] == tags["histograms"] == []


@pytest.mark.parametrize(
    ("own", "accumulate", "expected"),
    [(None, 1, [1, 3, 5, 7]), (3, 1, [2, 5]), (None, 2, [1, 3, 5, 7]), (1, 2, list(range(8)))],
)
def test_points_are_at_every_so_many_optimizer_steps(own, accumulate, expected, tmp_path):
    """Whatever the Trainer's interval is, and on the axis of the Trainer's own curves."""
    logger = TensorBoardLogger(tmp_path)
    monitor = ROOTMonitor(log_every_n_steps=own)
    options = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    run(monitor, logger=logger, **options)
    found = events(logger)
    assert [event.step for event in found.Scalars("root/orth_error/mean")] == expected
    if own is None:
        assert [event.step for event in found.Scalars("loss")] == expected


def test_nothing_is_measured_at_other_steps(monkeypatch):
    seen = []
    original = ROOT.register_stack_hook

    def counted(self, hook):
        return original(self, lambda stack: (seen.extend(stack.names), hook(stack)))

    monkeypatch.setattr(ROOT, "register_stack_hook", counted)
    _, fit = run(ROOTMonitor(log_every_n_steps=4))
    assert Counter(seen) == {(name, 0): 2 for name in PARAMETERS}  # of eight steps
    assert not fit.optimizers[0]._stack_hooks


# Training does not notice


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-true"}]
)
def test_the_run_is_bitwise_the_run_without(options, tmp_path):
    plain, _ = run(**options)
    state = torch.random.get_rng_state()
    model, _ = run(ROOTMonitor(1), logger=TensorBoardLogger(tmp_path), **options)
    assert_bitwise(weights(plain), weights(model))
    assert torch.equal(torch.random.get_rng_state(), state)


class StopAt(L.Callback):
    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


def test_a_resumed_run_goes_on_with_the_same_numbers_and_heat_maps(tmp_path):
    options = {"limit_val_batches": 0}
    whole_logger, half_logger, rest_logger = (
        TensorBoardLogger(tmp_path, name=name) for name in ("whole", "half", "rest")
    )
    whole = ROOTMonitor()
    plain, _ = run(whole, logger=whole_logger, **options)
    file = tmp_path / "half.ckpt"
    run(ROOTMonitor(), StopAt(4, file), logger=half_logger, **options)
    resumed = ROOTMonitor()
    model, _ = run(resumed, logger=rest_logger, checkpoint=file, **options)
    assert_bitwise(weights(plain), weights(model))
    for tag in AGGREGATES | EACH:
        parts = [events(logger).Scalars(tag) for logger in (half_logger, rest_logger)]
        expected = [(event.step, event.value) for event in events(whole_logger).Scalars(tag)]
        assert [(e.step, e.value) for part in parts for e in part] == expected
    assert resumed.history.column_steps() == whole.history.column_steps() == [1, 3, 5, 7]
    torch.testing.assert_close(resumed.history.values(), whole.history.values(), rtol=0, atol=0)


# Others watch it


def test_model_checkpoint_keeps_the_best_step(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    best = ModelCheckpoint(
        dirpath=tmp_path / "best",
        monitor="root/orth_error/mean",
        filename="{step}",
        every_n_train_steps=2,
    )
    run(ROOTMonitor(), best, logger=logger, enable_checkpointing=True)
    points = events(logger).Scalars("root/orth_error/mean")
    least = min(points, key=lambda event: event.value)
    assert float(best.best_model_score) == pytest.approx(least.value)
    assert best.best_model_path.endswith(f"step={least.step + 1}.ckpt")


def test_early_stopping_stops_without_any_logger():
    stop = EarlyStopping("root/update_rms/mean", patience=0, mode="max", stopping_threshold=0.15)
    _, fit = run(ROOTMonitor(), stop)
    assert fit.global_step == 3
    assert float(fit.callback_metrics["root/update_rms/mean"]) > 0.15


# Odd steps


def test_a_step_that_the_gradient_scaler_skips_is_made_up_for_at_the_next(tmp_path):
    class Overflowing(Net):
        def on_after_backward(self):
            if self.global_step == 3:
                self.body[0].weight.grad.fill_(float("inf"))

    logger = TensorBoardLogger(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    run(ROOTMonitor(4), net=Overflowing, logger=logger, plugins=[plugin])
    steps = [event.step for event in events(logger).Scalars("root/orth_error/mean")]
    assert steps == [4, 7]


class NotFinite(Net):
    """The gradient of one matrix is NaN at steps 2 to 5."""

    def on_after_backward(self):
        if 2 <= self.global_step <= 5:
            self.body[0].weight.grad.fill_(float("nan"))


def test_skipped_updates_are_counted_and_those_in_a_row_warned_of_once(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    (text,) = alerts_of(ROOTMonitor(), net=NotFinite, logger=logger)
    assert text.startswith("ROOTMonitor, `body.0.weight`: skipped 3 steps in a row")
    found = events(logger)
    assert [event.value for event in found.Scalars("root/skipped")] == [0.0, 2.0, 2.0, 0.0]
    steps = [event.step for event in found.Scalars("root/orth_error/body.0.weight")]
    assert steps == [1, 7]


class NoneFinite(Net):
    """No gradient is finite: one NaN, which clipping by the norm of all spreads over all."""

    def on_after_backward(self):
        self.head.bias.grad.fill_(float("nan"))


class VectorsNotFinite(Net):
    """No gradient of AdamW's parameters is finite from step 2 on, all of the matrices are."""

    def on_after_backward(self):
        for name, parameter in self.named_parameters():
            if name not in PARAMETERS and self.global_step >= 2:
                parameter.grad.fill_(float("nan"))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("net", "options"), [(NoneFinite, {"gradient_clip_val": 1.0}), (VectorsNotFinite, {})]
)
@pytest.mark.filterwarnings("ignore:ROOT (left|skipped)|ROOTMonitor")
def test_every_skipped_update_is_in_the_logs_where_no_matrix_moves_too(
    net, options, every, tmp_path
):
    logger = TensorBoardLogger(tmp_path)
    _, fit = run(ROOTMonitor(every), net=net, logger=logger, max_steps=8, **options)
    points = events(logger).Scalars("root/skipped")
    assert {point.step for point in points} >= set(range(every - 1, 8, every))
    (optimizer,) = fit.optimizers
    assert sum(point.value for point in points) == optimizer.skipped.total() > 8
    assert fit.callback_metrics["root/skipped"] > 0
    has_moved = bool(events(logger).Tags()["scalars"].count("root/orth_error/mean"))
    assert has_moved == (net is VectorsNotFinite)


@pytest.mark.parametrize("net", [NoneFinite, VectorsNotFinite])
@pytest.mark.filterwarnings("ignore:ROOT (left|skipped)|ROOTMonitor")
def test_early_stopping_on_skipped_updates_fires(net):
    stop = EarlyStopping("root/skipped", stopping_threshold=-1.0, divergence_threshold=0.5)
    options = {"gradient_clip_val": 1.0} if net is NoneFinite else {}
    _, fit = run(ROOTMonitor(1), stop, net=net, max_steps=40, **options)
    assert fit.global_step < 40


class Named(ROOTMixin, L.LightningModule):
    """Matrices that are called as what is logged of all of them."""

    root_options = {"schedule": None, "rules": {"*": "root"}}

    def __init__(self, names):
        super().__init__()
        for number, name in enumerate(names):
            torch.manual_seed(number)
            self.register_parameter(name, torch.nn.Parameter(torch.randn(4, 8)))

    def training_step(self, batch, index):
        return sum((p.square() * (index + 1)).sum() for p in self.parameters())

    def train_dataloader(self):
        return Batches()


def test_parameters_named_as_an_aggregate_have_curves_of_their_own(tmp_path):
    """The same values as under other names, and the same aggregates."""
    tags = []
    for names in (("mean", "max", "min", "skipped"), ("a", "b", "c", "d")):
        logger = TensorBoardLogger(tmp_path / names[0])
        fit = trainer(callbacks=[ROOTMonitor()], logger=logger)
        fit.fit(Named(names))
        found = events(logger)
        tags.append({tag: [e.value for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]})
    first, second = tags
    for statistic in STATISTICS:
        for name, other in [("mean", "a"), ("max", "b"), ("min", "c")]:
            assert (
                first[f"root/{statistic}/{name}.parameter"] == second[f"root/{statistic}/{other}"]
            )
        assert first[f"root/{statistic}/skipped"] == second[f"root/{statistic}/d"]
    aggregates = AGGREGATES & second.keys()
    assert {tag: first[tag] for tag in aggregates} == {tag: second[tag] for tag in aggregates}
    assert len(first) == len(second)


def test_an_exception_leaves_no_hook():
    class Broken(Net):
        def on_train_batch_end(self, *_):
            pass

        def on_before_zero_grad(self, optimizer):
            if self.global_step == 1:
                raise RuntimeError("stop here")

    model = Broken()
    fit = trainer(callbacks=[ROOTMonitor(1)])
    with pytest.raises(RuntimeError, match="stop here"):
        fit.fit(model)
    assert not fit.optimizers[0]._stack_hooks


def test_under_manual_optimization_the_last_step_of_a_batch_is_shown(tmp_path):
    class Manual(PlainNet):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [ROOT(self.parameters(), lr=1e-2), torch.optim.SGD([torch.zeros(1)], lr=1.0)]

        def training_step(self, batch, index):
            first, second = self.optimizers()
            for _ in range(2):
                first.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                first.step()
            second.step()

    logger = TensorBoardLogger(tmp_path)
    _, fit = run(ROOTMonitor(), net=Manual, logger=logger, max_steps=12, limit_val_batches=0)
    assert [event.step for event in events(logger).Scalars("root/orth_error/mean")] == [1, 3]
    assert not fit.optimizers[0]._stack_hooks


def test_of_a_parameter_with_many_matrices_the_mean_is_shown():
    experts = [("experts", number) for number in range(9)]
    names = (*experts, ("qkv", 0), ("qkv", 1), ("one", 0))
    values = torch.arange(13.0 * 12).reshape(13, 12)
    found = by_label(Measurements(names, values), ["norm", "qkv", "one", "experts"])
    assert list(found) == ["qkv/0", "qkv/1", "one", "experts"]
    assert torch.equal(found["experts"], values[:, :9].mean(dim=1))
    assert torch.equal(found["one"], values[:, 11])


# Errors


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(0, ValueError, ">= 1, got 0"), (2.5, TypeError, "whole"), (True, TypeError, "whole")],
)
def test_wrong_intervals_are_refused(value, error, message):
    with pytest.raises(error, match=f"`log_every_n_steps` must be .*{message}"):
        ROOTMonitor(log_every_n_steps=value)


def test_without_root_it_says_so_and_stays_out_of_the_way(caplog):
    """A configuration may be laid over by one with another optimizer."""

    class Other(PlainNet):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with caplog.at_level(logging.INFO):
        trainer(callbacks=[ROOTMonitor(1)]).fit(Other())
    assert any("nothing to show: the optimizers are [SGD]" in line for line in caplog.messages)


# Alerts


class Odd(Net):
    """One layer that the loss hardly knows, one with a constant input."""

    root_options = {**Net.root_options, "rules": {"constant.weight": "root"}}

    def build(self):
        super().build()
        self.dead = torch.nn.Linear(9, 9, bias=False)
        self.constant = torch.nn.Linear(16, 16, bias=False)

    def training_step(self, batch, index):
        loss = super().training_step(batch, index) + self.dead(torch.zeros(1, 9)).sum()
        return loss + self.constant(torch.ones(1, 16)).sum() / 100


def test_dead_and_rank_one_momentum_are_named_once_after_three_points():
    texts = alerts_of(ROOTMonitor(1), net=Odd)
    assert len(texts) == 2
    assert any("`dead.weight`: the momentum is zero" in text for text in texts)
    assert any("`constant.weight`: the update has rank one" in text for text in texts)
    assert alerts_of(ROOTMonitor(1), net=Odd, max_steps=2) == []
    assert alerts_of(ROOTMonitor(1, alerts=False), net=Odd) == []


class Scaled(Net):
    """Coefficients whose last step undoes two thirds of what the others have done."""

    triples = [*[(3.4445, -4.775, 2.0315)] * 4, (0.3, 0.0, 0.0)]
    root_options = {**Net.root_options, "coefficients": triples}


def test_update_rms_off_its_target_is_warned_of():
    (text,) = alerts_of(ROOTMonitor(1), net=Scaled)
    assert "`body.0.weight`, `body.1.weight`: the update RMS is below 50%" in text


def test_a_certificate_that_does_not_hold_and_exploding_outliers_are_warned_of(monkeypatch):
    """Reached by moving the limits, for a sound optimizer does not cross them."""
    monkeypatch.setattr(alerts, "CERTIFICATE_MARGIN", -0.5)
    monkeypatch.setattr(alerts, "MAX_ENERGY", 0.01)
    texts = alerts_of(ROOTMonitor(1), max_steps=4)
    assert len(texts) == 2
    assert any("above the range of the coefficients" in text for text in texts)
    assert any("lies beyond the outlier threshold" in text for text in texts)


def test_a_sound_run_has_no_alerts():
    assert alerts_of(ROOTMonitor(1)) == []


@pytest.mark.parametrize("failing", [0, 1])
def test_a_decomposition_that_does_not_converge_costs_its_own_histogram_alone(monkeypatch, failing):
    calls, decompose = [], observation.singular_values

    def fails(matrix):
        calls.append(matrix)
        if len(calls) - 1 == failing:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(matrix)

    monkeypatch.setattr(observation, "singular_values", fails)
    momentum, update = torch.randn(1, 3, 5), torch.eye(3, 5)[None]
    stack = SimpleNamespace(momentum=momentum, clipped=momentum.clamp(-1, 1), update=update)
    found = observation.samples(stack, 0)
    sigma = ["root/log10_sigma_clipped_momentum/3x5", "root/log10_sigma_update/3x5"]
    assert set(found) == {"root/momentum_over_threshold/3x5", sigma[1 - failing]}
    if failing == 0:
        assert found[sigma[1]].abs().max() <= 1e-6  # all singular values of it are 1
