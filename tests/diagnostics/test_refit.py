"""Coefficients refitted in training: what is captured, what is swapped, and what never changes."""

import json
import logging
import math
import re
import warnings
from itertools import pairwise

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_root import ROOT, ROOTMixin, ROOTRefit
from lightning_root.coefficients import load_coefficients, load_spectra, log_normal, lookup
from lightning_root.coefficients.published import MUON
from lightning_root.diagnostics import adaptation, spectrum
from lightning_root.diagnostics.adaptation import (
    FitResult,
    RecentSpectrum,
    expected_gain,
    fit_target,
    refit,
)
from lightning_root.diagnostics.spectrum import matrices_by_shape, pick_matrix, singular_values
from lightning_root.functional import newton_schulz
from tests.integration.models import Batches, PlainNet, trainer, weights


class Net(ROOTMixin, PlainNet):
    """Two matrices, 12 x 10 and 10 x 12, with coefficients that leave something to gain."""

    root_options = {
        "lr": 1e-2,
        "warmup_steps": 2,
        "max_steps": 8,
        "coefficients": {"10x12": (MUON,) * 5, "otherwise": "adaptive"},
    }


class NetOfTwoShapes(Net):
    """One more matrix, 12 x 12."""

    def build(self):
        super().build()
        self.body.insert(1, torch.nn.Linear(12, 12, bias=False))


class StopAt(L.Callback):
    """Saves, and interrupts a run that was meant to be longer."""

    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.should_stop:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


@pytest.fixture
def looked_at(monkeypatch):
    """The shape of every matrix that is decomposed."""
    shapes, original = [], spectrum.singular_values

    def counted(matrix):
        shapes.append(tuple(matrix.shape))
        return original(matrix)

    monkeypatch.setattr(spectrum, "singular_values", counted)
    return shapes


@pytest.fixture
def fits(monkeypatch):
    """The shape of every fit; each promises much, and is replaced by one that is done at once."""
    shapes = []

    def fit(shape, captured, current, captured_share):
        shapes.append(shape)
        steps = [(2.0 - len(shapes) / 100, -1.5, 0.5)] * len(current)
        return FitResult(tuple(steps), error=0.1, error_before=1.0)

    monkeypatch.setattr(adaptation, "refit", fit)
    monkeypatch.setattr(adaptation, "expected_gain", lambda wanted, current: 1e3)
    return shapes


@pytest.fixture
def vain_fits(monkeypatch):
    """The shape of every fit; each is made, and reported to be of no use."""
    shapes, original = [], adaptation.refit

    def fit(shape, *args):
        shapes.append(shape)
        return original(shape, *args)._replace(error=1.0)

    monkeypatch.setattr(adaptation, "refit", fit)
    return shapes


def run(refit, net=Net, *callbacks, checkpoint=None, **options):
    """A finished run: model, Trainer."""
    model = net()
    fit = trainer(callbacks=[*([refit] if refit else []), *callbacks], **options)
    fit.fit(model, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return model, fit


def in_use(fit):
    return fit.optimizers[0].param_groups[0]["coefficients"]


def assert_bitwise(first, second):
    assert all(torch.equal(first[name], second[name]) for name in first)


# Singular values


def with_spectrum(m, n, smallest):
    generator = torch.Generator().manual_seed(m + n)
    left, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    count = min(m, n)
    sigma = torch.logspace(0, math.log10(smallest), count, dtype=torch.float64)
    return (left[:, :count] * sigma) @ right[:, :count].T


@pytest.mark.parametrize(("m", "n"), [(1, 5), (40, 40), (24, 100), (100, 24)])
@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_are_torchs(m, n, smallest, dtype):
    """To 3e-8 of the largest, the root of float64's precision."""
    matrix = with_spectrum(m, n, smallest).to(dtype)
    expected = torch.linalg.svdvals(matrix.double()).flip(0)
    before = matrix.clone()
    found = singular_values(matrix)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-8 * float(expected[-1]))
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_singular_values_of_tiny_and_huge_matrices_neither_vanish_nor_overflow(scale):
    matrix = (with_spectrum(12, 20, 1e-3) * scale).float()
    expected = torch.linalg.svdvals(matrix.double()).flip(0)
    torch.testing.assert_close(singular_values(matrix), expected, rtol=1e-6, atol=0)


# Which matrices


@pytest.mark.parametrize("count", [*range(1, 13), 48, 97])
def test_every_matrix_has_its_turn_once_in_a_round(count):
    matrices = [("layer", number) for number in range(count)]
    for start in (0, 1000):
        assert {pick_matrix(matrices, start + turn) for turn in range(count)} == set(matrices)


def test_matrices_captured_one_after_the_other_lie_far_apart_in_the_model():
    matrices = [("layer", number) for number in range(48)]
    turns = [pick_matrix(matrices, turn)[1] for turn in range(48)]
    assert min(abs(a - b) for a, b in pairwise(turns)) >= 12


def test_the_matrices_are_those_that_the_optimizer_orthogonalizes():
    """Fused, stacked and tall ones included; the optimizer itself says which it has."""
    shapes = {"qkv": (30, 10), "experts": (4, 6, 8), "tall": (16, 8)}
    named = [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    optimizer = ROOT(named, rules={"qkv": {"rows": 3}, "experts": {"stack": 1}, "tall": "root"})
    seen = {}

    def see(stack):
        seen.setdefault(tuple(stack.clipped.shape[1:]), []).extend(stack.names)

    optimizer.register_stack_hook(see)
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert sum(len(names) for names in seen.values()) == 3 + 4 + 1
    assert matrices_by_shape(optimizer, optimizer.param_groups) == seen


# Memory


def test_a_memory_holds_two_generations_of_captures():
    """Window and number of the generation, by hand: 1, 1, 2, 4, 8, 16, 16, ... captures."""
    memory, windows, generations = RecentSpectrum(), [], 0
    for capture in range(1, 66):
        memory.fitted = True
        memory.add(torch.ones(4))
        generations += not memory.fitted
        windows.append(memory.recent().matrices)
        assert memory.earlier + memory.newer.matrices == capture
    assert windows[:9] == [1, 2, 2, 3, 3, 4, 5, 6, 5]
    assert max(windows) == 32
    assert windows[-1] == 17  # capture 65 is the first of its generation
    assert generations == 8  # which began at 2, 3, 5, 9, 17, 33, 49 and 65


def test_a_memory_survives_json():
    memory = RecentSpectrum()
    for factor in range(1, 6):
        memory.add(torch.rand(7) * factor)
        memory.fitted = factor % 2 == 1
    assert RecentSpectrum.from_dict(json.loads(json.dumps(memory.as_dict()))) == memory
    assert RecentSpectrum.from_dict(RecentSpectrum().as_dict()) == RecentSpectrum()


@pytest.mark.parametrize("shape", [(32, 32), (64, 256)])
def test_a_fit_keeps_what_was_promised_and_after_it_nothing_is_promised(shape):
    """Whatever the spectrum and the steps; error on what is fitted to."""
    for median, steps in ((0.003, 5), (0.03, 5), (0.1, 4)):
        captured = log_normal(median, 0.7)
        wanted, current = fit_target(shape, captured, 0.75), lookup(shape, "muon", steps).triples
        found = refit(shape, captured, current, 0.75).triples
        gain = wanted.mean_square_error(current) - wanted.mean_square_error(found)
        assert gain >= expected_gain(wanted, current)
        assert expected_gain(wanted, found) <= 0.0


def test_where_no_schedule_is_known_a_fit_is_tried():
    assert (
        expected_gain(fit_target((8, 8), log_normal(0.1, 0.5), 0.75), [(1.5, -0.5, 0.0)])
        == math.inf
    )


# In training


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-true"}]
)
def test_without_a_fit_that_is_used_the_run_is_bitwise_the_run_without_the_callback(
    options, vain_fits
):
    plain, plain_fit = run(None, **options)
    random_before = torch.random.get_rng_state()
    refit = ROOTRefit(every_n_steps=2)
    model, fit = run(refit, **options)
    assert refit.adaptation.captures == 4
    assert refit.adaptation.fits == len(vain_fits) > 0
    assert in_use(fit) == in_use(plain_fit)
    assert_bitwise(weights(plain), weights(model))
    assert torch.equal(torch.random.get_rng_state(), random_before)


def test_nothing_is_fitted_where_all_of_the_error_would_have_to_go(vain_fits):
    refit = ROOTRefit(every_n_steps=2, min_gain=1.0)
    run(refit)
    assert refit.adaptation.captures == 4
    assert vain_fits == []


class Captured(L.Callback):
    """The clipped momentum that is captured at a step, as the optimizer has it."""

    def __init__(self, refit, step):
        self.refit, self.step, self.matrix = refit, step, None

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            optimizer = trainer.optimizers[0]
            self.name = self.refit.adaptation.next_matrices(optimizer)[10, 12]
            self.handle = optimizer.register_stack_hook(self.look)

    def look(self, stack):
        if self.name in stack.names:
            self.matrix = stack.clipped[stack.names.index(self.name)].clone()

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.handle.remove()


def test_a_refit_orthogonalizes_the_captured_momentum_better(caplog):
    """By singular value decomposition of what the iteration makes of it, and as the log says."""
    refit = ROOTRefit(every_n_steps=4)
    captured = Captured(refit, 4)
    with caplog.at_level(logging.INFO):
        model, fit = run(refit, Net, captured, max_steps=6)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("10x12")]
    errors = []
    for coefficients in ("muon", in_use(fit)):
        triples = lookup((10, 12), coefficients).triples
        sigma = torch.linalg.svdvals(newton_schulz(captured.matrix, triples).double())
        errors.append(float((sigma - 1.0).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    told = [float(number) for number in re.findall(r"\d\.[\de-]+(?= )", line)]
    assert told == pytest.approx(errors, rel=0.5)  # ten values in bins 7 % wide
    assert moved(Net, model, max_steps=6)


def moved(net, model, **options):
    """Whether it differs from the run without the callback: the swap took effect."""
    plain, trained = weights(run(None, net, **options)[0]), weights(model)
    return any(not torch.equal(plain[name], trained[name]) for name in plain)


@pytest.mark.parametrize("saved_by_an_earlier_callback", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    accumulate, saved_by_an_earlier_callback, tmp_path
):
    """Saved at the very step of a capture and a fit."""
    options = {"accumulate_grad_batches": accumulate}
    whole_refit = ROOTRefit(every_n_steps=2)
    whole, whole_fit = run(whole_refit, **options)
    file = tmp_path / "half.ckpt"
    half_refit, stop = ROOTRefit(every_n_steps=2), StopAt(4, file)
    if saved_by_an_earlier_callback:
        run(stop, Net, half_refit, **options)
    else:
        run(half_refit, Net, stop, **options)
    assert half_refit.adaptation.swaps >= 1
    resumed_refit = ROOTRefit(every_n_steps=2)
    resumed, resumed_fit = run(resumed_refit, checkpoint=file, **options)
    assert resumed_fit.global_step == 8
    assert resumed_refit.adaptation.fits > half_refit.adaptation.fits
    assert_bitwise(weights(whole), weights(resumed))
    assert in_use(whole_fit) == in_use(resumed_fit)
    assert whole_refit.state_dict() == resumed_refit.state_dict()


def test_captures_are_at_every_so_many_optimizer_steps_and_nothing_is_computed_at_others(
    looked_at, fits
):
    """Whatever is accumulated, validated or interrupted between; one matrix of each shape."""

    class Validated(NetOfTwoShapes):
        def validation_step(self, batch, index):
            self.training_step(batch, index)

        def val_dataloader(self):
            return Batches()

    refit = ROOTRefit(every_n_steps=3)
    options = {"limit_val_batches": 1, "val_check_interval": 1, "accumulate_grad_batches": 2}
    _, fit = run(refit, Validated, **options)
    assert fit.global_step == 8
    assert refit.steps == 8
    assert sorted(looked_at) == [(10, 12)] * 2 + [(12, 12)] * 2
    assert refit.adaptation.captures == 2


def test_one_shape_is_fitted_at_a_time_where_it_pays_most_and_once_a_generation(fits):
    """Twice as many matrices are 10 x 12; generations begin at captures 1, 2, 3 and 5."""
    run(ROOTRefit(every_n_steps=1), NetOfTwoShapes)
    more, less = (10, 12), (12, 12)
    assert fits == [more, more, more, less, more, less]


def test_both_matrices_of_a_shape_are_captured_in_turn(monkeypatch, fits):
    seen = []
    original = adaptation.Adaptation.next_matrices
    wanted = lambda self, optimizer: seen.append(original(self, optimizer)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(adaptation.Adaptation, "next_matrices", wanted)
    run(ROOTRefit(every_n_steps=4, min_gain=1.0))
    names = [choice[10, 12] for choice in seen]
    assert sorted(names) == [("body.0.weight", 0), ("body.1.weight", 0)]


def test_under_manual_optimization_the_optimizers_own_steps_count(looked_at, fits):
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

    refit = ROOTRefit(every_n_steps=4)
    run(refit, Manual, max_steps=12)  # four batches: two steps of ROOT and one of SGD in each
    assert refit.steps == 8
    assert looked_at == [(10, 12)] * 2


def test_a_step_that_the_gradient_scaler_skips_is_not_captured(looked_at, fits):
    class Overflowing(Net):
        def on_before_optimizer_step(self, optimizer):
            del optimizer

        def on_after_backward(self):
            if self.global_step == 3:
                self.body[0].weight.grad.fill_(float("inf"))

    refit = ROOTRefit(every_n_steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    _, fit = run(refit, Overflowing, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert fit.global_step == 8
    assert refit.adaptation.captures == 1
    assert looked_at == [(10, 12)]


def test_matrices_without_a_spectrum_are_passed_over(fits):
    """A dead layer's momentum is zero; a frozen one has none; a single row has one value."""

    class Odd(NetOfTwoShapes):
        known = {"1x10": ((2.0, -1.5, 0.5),) * 5, "otherwise": "adaptive"}
        root_options = {**Net.root_options, "rules": {"row": "root"}, "coefficients": known}

        def build(self):
            super().build()
            self.row = torch.nn.Parameter(torch.ones(1, 10))
            self.dead = torch.nn.Linear(8, 8, bias=False)
            self.unused = torch.nn.Linear(9, 9, bias=False)

        def training_step(self, batch, index):
            loss = super().training_step(batch, index) + self.row.square().mean()
            return loss + self.dead(torch.zeros(1, 8)).sum()

    refit = ROOTRefit(every_n_steps=1)
    run(refit, Odd)
    assert set(refit.adaptation.memory) == {(12, 12), (10, 12)}


def test_a_decomposition_that_does_not_converge_costs_its_capture_alone(monkeypatch, fits):
    decompose = spectrum.singular_values

    def fails(matrix):
        if matrix.shape == (12, 12):
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(matrix)

    monkeypatch.setattr(spectrum, "singular_values", fails)
    refit = ROOTRefit(every_n_steps=1)
    run(refit, NetOfTwoShapes)
    assert set(refit.adaptation.memory) == {(10, 12)}
    assert set(fits) == {(10, 12)}


def test_large_matrices_are_left_out(looked_at):
    refit = ROOTRefit(every_n_steps=4, max_dim=9)
    run(refit)
    assert looked_at == []
    assert refit.adaptation.captures == 0


# What is left alone


@pytest.mark.parametrize(
    "options",
    [
        {"coefficients": "muon"},
        {"coefficients": [(2.0, -1.5, 0.5)] * 5},
        {"coefficients": {"10x12": [(2.0, -1.5, 0.5)] * 5, "otherwise": "muon"}},
        {"coefficients": "adaptive", "ns_steps": 13},
    ],
)
def test_coefficients_that_the_user_chose_stay_with_a_message(options, looked_at):
    class Chosen(Net):
        root_options = {**Net.root_options, **options}

    before = in_use(run(None, Chosen)[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, fit = run(ROOTRefit(every_n_steps=2), Chosen)
    texts = [str(warning.message) for warning in caught]
    assert sum("leaves the coefficients of `group 0` (" in text for text in texts) == 1
    assert in_use(fit) == before
    assert looked_at == []


def test_a_mapping_that_leaves_adaptive_to_other_shapes_is_refitted(fits):
    class Mapped(NetOfTwoShapes):
        other = ((2.0, -1.5, 0.5),) * 5
        root_options = {**Net.root_options, "coefficients": {"12x12": other, "5x7": other}}

    _, fit = run(ROOTRefit(every_n_steps=1), Mapped, max_steps=4)
    assert set(in_use(fit)) == {"12x12", "10x12", "5x7"}
    assert in_use(fit)["5x7"] == Mapped.other
    assert in_use(fit)["12x12"] != Mapped.other


# What it says


def messages(caplog, refit, **options):
    with caplog.at_level(logging.INFO):
        run(refit, **options)
    return [record.getMessage() for record in caplog.records]


def test_every_fit_is_told_in_one_line_and_the_end_sums_up(caplog):
    lines = messages(caplog, ROOTRefit(every_n_steps=4), max_steps=4)
    (fit,) = [line for line in lines if line.startswith("10x12: ")]
    assert "error on captured momentum 0." in fit
    assert fit.endswith("with new coefficients, step 4")
    (end,) = [line for line in lines if line.startswith("ROOTRefit: ")]
    assert "captures 1, fits 1, of them used 1" in end
    assert "`every_n_steps=" in end  # a run of milliseconds is not worth a fit


def test_a_cheap_run_is_not_advised(caplog, monkeypatch, fits):
    monkeypatch.setattr("lightning_root.diagnostics.refit.BUDGET", 1.0)
    lines = messages(caplog, ROOTRefit(every_n_steps=4))
    assert any(line.endswith("% of the time") for line in lines if "ROOTRefit: " in line)


def test_a_fit_that_is_not_used_is_told_too(caplog, vain_fits):
    lines = messages(caplog, ROOTRefit(every_n_steps=4), max_steps=4)
    (line,) = [line for line in lines if line.startswith("10x12: ")]
    assert line.endswith("coefficients kept (a fit gives 1), step 4")


def test_errors_are_logged_and_the_files_can_be_used_again(tmp_path):
    refit = ROOTRefit(every_n_steps=4)
    _, fit = run(refit, logger=CSVLogger(tmp_path))
    folder = tmp_path / "lightning_logs" / "version_0"
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "root/coefficients/10x12/error" in header
    assert "root/coefficients/10x12/error_before" in header
    assert load_spectra(folder / "spectra.json") == {
        (10, 12): refit.adaptation.memory[10, 12].recent()
    }
    (entry,) = load_coefficients(folder / "coefficients.json")
    assert entry.shape == (10, 12)
    assert entry.triples == in_use(fit)["10x12"]
    again = ROOT([("weight", torch.zeros(10, 12))], coefficients=str(folder / "coefficients.json"))
    assert again.param_groups[0]["coefficients"]["10x12"] == entry.triples


@pytest.mark.parametrize("options", [{"save": False}, {"fast_dev_run": 2}])
def test_no_files_where_none_are_wanted(options, tmp_path, fits):
    refit = ROOTRefit(every_n_steps=1, save=options.pop("save", True))
    run(refit, logger=CSVLogger(tmp_path), max_steps=2, **options)
    assert refit.adaptation.swaps == 2
    assert not list(tmp_path.rglob("*.json"))


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` must be >= 1, got 0"),
        ({"every_n_steps": 2.0}, TypeError, "`every_n_steps` must be a whole number, got 2.0"),
        ({"max_dim": 1}, ValueError, "`max_dim` must be >= 2, got 1"),
        ({"min_gain": 1.5}, ValueError, r"`min_gain` must be in \[0, 1\], got 1.5"),
        ({"captured_share": 0.0}, ValueError, r"`captured_share` must be in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ROOTRefit(**options)


def test_a_trainer_without_root_is_refused():
    class Plain(PlainNet):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"needs a Trainer with one ROOT.*\[SGD\]"):
        run(ROOTRefit(), Plain)


def test_two_of_these_callbacks_are_refused():
    fit = trainer(callbacks=[ROOTRefit()])
    fit.callbacks.append(ROOTRefit())
    with pytest.raises(ValueError, match="2 `ROOTRefit` callbacks"):
        fit.fit(Net())


# From the command line


def test_the_command_line_makes_it(monkeypatch):
    arguments = ["--trainer.callbacks=ROOTRefit", "--trainer.callbacks.every_n_steps=7"]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, "--trainer.accelerator=cpu"])
    made = LightningCLI(Net, run=False, save_config_callback=None)
    (refit,) = [c for c in made.trainer.callbacks if isinstance(c, ROOTRefit)]
    assert refit.every_n_steps == 7


def test_a_histogram_keeps_counting_after_a_resume():
    """State goes through Lightning's checkpoint as plain values."""
    refit = ROOTRefit()
    refit.adaptation.add({(3, 4): torch.rand(3)})
    refit.steps = 100
    other = ROOTRefit()
    other.load_state_dict(json.loads(json.dumps(refit.state_dict())))
    assert other.state_dict() == refit.state_dict()
    assert other.adaptation == refit.adaptation
