import math

import lightning.pytorch as L
import pytest
import torch

from examples.batches import generator_of
from examples.noise import GradientOutliers, add_outliers_, outlier_positions
from lightning_root import ROOT
from tests.integration.models import Batches, PlainNet, trainer

HIDDEN = {"body.0.weight", "body.1.weight"}


def test_each_entry_is_chosen_with_the_rate_and_independently():
    rate, draws = 0.3, 4000
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(draws, 5)
    for row in chosen:
        positions = outlier_positions(5, rate, generator)
        assert positions.unique().numel() == positions.numel()
        row[positions] = 1
    # binomial: standard deviation sqrt(0.3 * 0.7 / 4000) = 0.0072; five of them
    assert (chosen.mean(0) - rate).abs().max() < 0.036
    correlation = torch.corrcoef(chosen.T) - torch.eye(5)
    assert correlation.abs().max() < 5 / math.sqrt(draws)


@pytest.mark.parametrize("shape", [(200, 300), (40, 30, 5, 10)])
def test_outliers_have_size_share_and_random_sign_and_the_rest_is_untouched(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    noisy = gradient.clone()
    add_outliers_(noisy, 0.01, 3.0, generator_of(0, 5, "name"))
    replaced = noisy != gradient
    # binomial(60000, 0.01): mean 600, standard deviation 24; five of them
    assert abs(int(replaced.sum()) - 600) < 122
    outliers = noisy[replaced]
    assert torch.equal(outliers.abs(), torch.full_like(outliers, 3 * gradient.abs().max().item()))
    assert abs(int((outliers > 0).sum()) - len(outliers) / 2) < 2.5 * math.sqrt(len(outliers))


def test_a_gradient_without_a_largest_entry_stays():
    gradient = torch.zeros(20, 20)
    add_outliers_(gradient, 0.5, 3.0, generator_of(0))
    assert gradient.count_nonzero() == 0


def test_a_gradient_that_is_not_contiguous_is_disturbed_in_place():
    wide = torch.randn(30, 40)
    kept = wide.clone()
    add_outliers_(wide[:, ::2].T, 0.2, 3.0, generator_of(0))
    assert torch.equal(wide[:, 1::2], kept[:, 1::2])
    assert not torch.equal(wide[:, ::2], kept[:, ::2])


class Recorder(L.Callback):
    """The gradients before the noise and after, by step and name; a later one sees the former."""

    def __init__(self):
        self.clean, self.noisy = {}, {}

    def on_after_backward(self, trainer, module):
        self.clean[trainer.global_step] = grads(module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.noisy[trainer.global_step] = grads(module)


class Net(PlainNet):
    def configure_optimizers(self):
        return ROOT(self.parameters(), lr=1e-2)


def grads(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def train(*callbacks, steps=4, checkpoint=None, **options):
    torch.manual_seed(0)
    model = Net()
    run = trainer(steps, callbacks=[*callbacks], **options)
    run.fit(model, Batches(), ckpt_path=checkpoint, weights_only=True)
    return run, {name: p.detach().clone() for name, p in model.named_parameters()}


def disturbed(recorder, step):
    clean, noisy = recorder.clean[step], recorder.noisy[step]
    return {name for name in clean if not torch.equal(clean[name], noisy[name])}


def test_it_disturbs_the_hidden_matrices_alone_unless_told_otherwise():
    recorder = Recorder()
    train(GradientOutliers(rate=0.5), recorder)
    assert [disturbed(recorder, step) for step in range(4)] == [HIDDEN] * 4
    everything = Recorder()
    train(GradientOutliers(rate=0.5, all_parameters=True), everything)
    assert disturbed(everything, 0) == set(everything.clean[0])


def test_it_begins_at_the_start_step():
    recorder = Recorder()
    train(GradientOutliers(rate=0.5, start_step=2), recorder)
    assert [disturbed(recorder, step) for step in range(4)] == [set(), set(), HIDDEN, HIDDEN]


def test_the_noise_depends_on_seed_step_and_name_alone():
    first, again, other = Recorder(), Recorder(), Recorder()
    train(GradientOutliers(rate=0.5), first)
    train(GradientOutliers(rate=0.5), again)
    train(GradientOutliers(rate=0.5, seed=1), other)
    for name in HIDDEN:
        places = [recorder.noisy[0][name].sign() for recorder in (first, again, other)]
        assert torch.equal(places[0], places[1]) and not torch.equal(places[0], places[2])

    def outliers(step, name):
        noisy = first.noisy[step][name]
        return (noisy.abs() == noisy.abs().max()).nonzero()

    assert not torch.equal(outliers(0, "body.0.weight"), outliers(1, "body.0.weight"))
    assert not torch.equal(outliers(0, "body.0.weight"), outliers(0, "body.1.weight").flip(1))


def test_accumulated_gradients_are_disturbed_once_a_step_and_before_clipping():
    recorder, clipped = Recorder(), []

    class Clipped(L.Callback):
        def on_train_batch_end(self, run, module, *args):
            if run.global_step > len(clipped):
                squares = [p.grad.square().sum() for p in module.parameters()]
                clipped.append(float(torch.stack(squares).sum().sqrt()))

    noise = GradientOutliers(rate=0.5, size=100.0)
    # Gradients are kept until the next step begins: zeroing happens before the backward pass.
    train(noise, recorder, Clipped(), accumulate_grad_batches=2, gradient_clip_val=1e-3)
    assert len(recorder.noisy) == 4
    for step in range(4):
        for name in HIDDEN:
            largest = 100 * recorder.clean[step][name].abs().max()
            assert recorder.noisy[step][name].abs().max() == largest
    assert clipped == pytest.approx([1e-3] * 4, rel=1e-3)  # clip_grad_norm_ adds 1e-6 to the norm


def test_a_resumed_run_has_the_same_noise(tmp_path):
    noise = GradientOutliers(rate=0.2)
    _, expected = train(noise, steps=5)
    half, _ = train(GradientOutliers(rate=0.2), steps=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = train(GradientOutliers(rate=0.2), steps=5, checkpoint=tmp_path / "half.ckpt")
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"`rate` must be in \[0, 1\), got 1.0"),
        ({"size": -1.0}, "`size` must be finite and >= 0, got -1.0"),
        ({"size": math.inf}, "`size` must be finite and >= 0, got inf"),
        ({"start_step": -1}, "`start_step` must be >= 0, got -1"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        GradientOutliers(**options)
