import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from examples.benchmarks.capture_momentum import capture, load_captured, save_captured
from examples.benchmarks.capture_momentum import main as capture_main
from examples.benchmarks.orthogonalization.claims import PUBLISHED_NAMES, check_claims
from examples.benchmarks.orthogonalization.images import cifar10, cut_patches
from examples.benchmarks.orthogonalization.iterations import matrix_error, matrix_with, polar_factor
from examples.benchmarks.orthogonalization.measures import (
    Row,
    as_shape,
    float32_error,
    gaussian_matrix,
    gaussian_spectra,
    load_run,
    schedules,
    singular_values,
)
from examples.benchmarks.orthogonalization.page import number
from examples.benchmarks.orthogonalization.table_1 import PAPER_MSE
from examples.benchmarks.orthogonalization_error import main
from lightning_root.coefficients.published import MUON, PUBLISHED, TABLE_1
from tests.examples.images import write_parquet

CANS = PUBLISHED["cans"].triples

PICTURES = ("curves", "shapes", "steps")


def iterate(matrix, triples):
    """The iteration, step by step, in numpy and float64: singular values of its result."""
    x = np.asarray(matrix, np.float64)
    x = x / np.linalg.norm(x)
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return np.linalg.svd(x, compute_uv=False)


@pytest.fixture(scope="module")
def spectra(tmp_path_factory):
    """A folder with one captured run: spectra spread as momentum's are, seven steps."""
    folder = tmp_path_factory.mktemp("spectra")
    random = np.random.default_rng(0)
    captured = {}
    for step in (50, 100, 150, 200, 300, 350, 400):
        sigma = np.exp(random.normal(-2.5, 1.0, (4, 32)))
        sigma /= np.linalg.norm(sigma, axis=1, keepdims=True)
        captured[step, "32x128"] = sigma.astype(np.float32)
    about = {"title": "no model", "width": 32, "depth": 1, "steps": 400}
    save_captured(folder / "made_up.npz", captured, {**about, "first_loss": 2, "last_loss": 1})
    return folder


@pytest.fixture(scope="module")
def results(spectra, tmp_path_factory):
    """What `--quick` writes for a small shape; the other one is too large for it."""
    folder = tmp_path_factory.mktemp("results")
    shapes = ["--shapes", "128x32", "4096x4096", "--steps", "5"]
    main(["--quick", *shapes, "--spectra", str(spectra), "--output", str(folder)])
    page = folder / "orthogonalization_error.md"
    return page, json.loads(page.with_suffix(".json").read_text("utf-8"))


@pytest.mark.parametrize("shape", [(24, 24), (24, 80)])
def test_singular_values_from_the_gram_matrix_are_those_of_the_svd(shape):
    matrix = gaussian_matrix(shape, seed=1)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    expected = np.sort(expected / np.linalg.norm(expected))
    np.testing.assert_allclose(singular_values(matrix).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("triples", [(MUON,) * 5, CANS])
def test_error_is_that_of_the_iteration_itself(triples):
    """The polynomial at the singular values against the iterated matrix, in numpy."""
    matrix = gaussian_matrix((24, 80), seed=2)
    expected = np.mean((iterate(matrix, triples) - 1) ** 2)
    measured = float32_error(triples, singular_values(matrix))
    assert measured == pytest.approx(expected, rel=1e-4)  # float32, amplified by up to 8 a step


def test_matrix_error_is_the_distance_to_the_polar_factor_of_scipy():
    from scipy.linalg import polar

    matrix = gaussian_matrix((24, 80), seed=3).double().numpy()
    x, factor = matrix / np.linalg.norm(matrix), polar(matrix)[0]
    for a, b, c in CANS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    expected = np.linalg.norm(x - factor) ** 2 / 24
    exact = polar_factor(torch.from_numpy(matrix))
    np.testing.assert_allclose(exact.numpy(), factor, atol=1e-12)
    measured = matrix_error(torch.from_numpy(matrix), CANS, exact)
    assert measured == pytest.approx(expected, rel=1e-4)  # float32


def test_a_rebuilt_matrix_has_the_singular_values_asked_for():
    sigma = torch.tensor([0.9, 0.4, 0.1, 1e-4])
    rebuilt = np.linalg.svd(matrix_with(sigma, (4, 9), seed=0).numpy(), compute_uv=False)
    np.testing.assert_allclose(rebuilt, sigma.double().numpy(), rtol=1e-6)


def test_overflow_is_an_infinite_error():
    assert float32_error(CANS * 3, torch.tensor([1.1])) == math.inf
    assert number(math.inf) == "overflow"


def test_drawn_matrices_are_kept_and_differ_by_shape_and_seed(tmp_path):
    first = gaussian_spectra([(8, 8), (8, 12)], tmp_path, seed=0)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = gaussian_spectra([(8, 12)], tmp_path, seed=0)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(first[8, 12], again[8, 12])
    other = gaussian_spectra([(8, 12)], tmp_path, seed=1)
    assert not torch.equal(first[8, 12], other[8, 12])
    assert not torch.equal(gaussian_matrix((8, 12), 0)[:, :8], gaussian_matrix((8, 8), 0))


def test_a_run_is_split_in_time_without_overlap(spectra):
    run = load_run(spectra / "made_up.npz")
    assert run.about["early"] == [50, 100, 150, 200]
    assert run.about["late"] == [300, 350, 400]
    captured, _ = load_captured(spectra / "made_up.npz")
    late = np.concatenate([captured[step, "32x128"] for step in (300, 350, 400)])
    np.testing.assert_array_equal(run.late[32, 128].numpy(), late)
    assert len(run.early[32, 128]) == 16


def test_a_run_without_early_steps_is_refused(tmp_path):
    save_captured(tmp_path / "late.npz", {(10, "2x2"): np.ones((1, 2), np.float32)}, {})
    with pytest.raises(ValueError, match="holds no step up to 5; capture earlier ones"):
        load_run(tmp_path / "late.npz")


def test_errors_in_the_json_are_those_of_the_drawn_matrix(results):
    _, numbers = results
    rows = {(row["source"], *row["shape"], row["steps"]): row for row in numbers["rows"]}
    assert len(rows) == 2  # one drawn, one captured
    row = rows["gaussian", 32, 128, 5]
    matrix = gaussian_matrix((32, 128), numbers["about"]["seed"])
    for name, triples in row["triples"].items():
        expected = np.mean((iterate(matrix, triples) - 1) ** 2)
        assert row["errors"][name] == pytest.approx(expected, rel=1e-3, abs=1e-9), name
        assert len(triples) == 5


def test_a_fit_to_early_momentum_beats_what_is_published_on_late_momentum(results):
    _, numbers = results
    (row,) = (row for row in numbers["rows"] if row["source"] == "made_up")
    published = [row["errors"][name] for name in PUBLISHED_NAMES]
    assert row["errors"]["captured"] < min(published)


def test_schedules_are_cut_and_continued_but_yous_is_for_five_steps():
    three, six = schedules((32, 128), 3), schedules((32, 128), 6)
    assert {len(triples) for triples in three.values()} == {3}
    assert six["cans"] == (*CANS, (1.875, -1.25, 0.375))
    assert "you" not in three
    assert "you" not in six


def test_the_page_says_command_machine_and_what_was_left_out(results):
    page, numbers = results
    text = page.read_text("utf-8")
    assert "python -m examples.benchmarks.orthogonalization_error --quick --shapes" in text
    assert numbers["about"]["date"] in text
    assert f"torch {torch.__version__}" in text
    assert "1 thread" in text
    assert "Left out by `--quick`: 4096x4096." in text
    assert "nan" not in text.lower().split()


def test_pictures_are_beside_the_page_and_shown_on_it(results):
    page, _ = results
    text = page.read_text("utf-8")
    for name in PICTURES:
        picture = page.with_name(f"{page.stem}_{name}.png")
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"]({picture.name})" in text


def test_every_claim_has_a_line_with_its_verdict(results):
    page, numbers = results
    end = page.read_text("utf-8").partition("## Must hold")[2]
    lines = [line for line in end.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(numbers["claims"])
    words = {True: "| yes |", False: "| **no** |", None: "| not measured |"}
    for line, claim in zip(lines, numbers["claims"], strict=True):
        assert claim["text"] in line
        assert claim["measured"] in line
        assert line.endswith(words[claim["holds"]])


def table_rows(factor=1.0):
    """Table 1 as the paper prints it, with our errors of the paper's triple a multiple of it."""
    rows = []
    for shape, (muon, paper) in PAPER_MSE.items():
        names = ("single", "fitted", "polar_express", "polar_express_margin", "cans", "cans_margin")
        errors = dict.fromkeys(names, paper)
        errors |= {"muon": muon, "paper": paper * factor, "default": paper / 2}
        triples = dict.fromkeys(("fitted", "single"), (TABLE_1[shape],) * 5)
        row = Row(source="gaussian", shape=shape, steps=5, triples=triples, errors=errors)
        rows.append(row)
    return rows


def verdicts(rows):
    return {claim.text: claim for claim in check_claims(rows)}


def test_a_claim_fails_and_says_by_how_much():
    sound, off = verdicts(table_rows()), verdicts(table_rows(1.05))
    text = "Table 1: both MSE columns within 2 %"
    assert sound[text].holds is True
    assert off[text].holds is False
    assert "5.0% off" in off[text].measured
    limit = "a triple per step, Gaussian 2048x2048, 5 steps: at most 0.014"
    assert sound[limit].holds is False
    assert sound[limit].measured == "0.03520"


def test_every_loss_of_the_default_is_named():
    rows = table_rows()
    text = (
        "the default, Gaussian matrices it was not tuned on, 5 steps: better than Muon, "
        "Polar Express and CANS as published"
    )
    assert verdicts(rows)[text].holds is True
    for row in rows[:2]:
        row.errors["default"] = 2 * row.errors["cans"]
    claim = verdicts(rows)[text]
    assert claim.holds is False
    assert "2048x2048" in claim.measured
    assert "4096x4096" in claim.measured
    assert claim.measured.endswith("2 of 7")


def test_without_captured_runs_and_without_five_steps_the_page_says_so(tmp_path):
    arguments = ["--shapes", "8x8", "--steps", "2", "--spectra", str(tmp_path / "none")]
    main([*arguments, "--output", str(tmp_path)])
    text = (tmp_path / "orthogonalization_error.md").read_text("utf-8")
    assert "No captured run was found." in text
    assert "None of its shapes was measured." in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["orthogonalization_error_steps.png"]
    assert text.count(".png)") == 1


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (main, ["--shapes", "square"], "a shape is written 2048x8192, got 'square'"),
        (capture_main, ["digits", "--width", "40"], "must be a multiple of 32"),
        (capture_main, ["cifar10"], "`--cifar10 DIR` belongs to the run `cifar10`"),
        (capture_main, ["digits", "--cifar10", "."], "`--cifar10 DIR` belongs to the run"),
    ],
)
def test_a_wrong_option_is_explained(program, arguments, message, capsys):
    with pytest.raises(SystemExit):
        program(arguments)
    assert message in capsys.readouterr().err


def test_shapes_are_read_in_either_order():
    assert as_shape("128x32") == as_shape("32x128") == (32, 128)
    with pytest.raises(ValueError, match="invalid literal"):
        as_shape("square")


class Twin(nn.Module):
    """Two matrices in blocks and a bias and a head that must not be captured."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 12)])
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x).tanh()).tanh())


def test_capture_takes_the_clipped_gradient_at_the_first_step():
    """Momentum is the gradient then, up to scale; numpy finds the quantile and the SVD."""
    model, x = Twin(), torch.randn(5, 6)
    model(x).square().sum().backward()
    expected = {}
    for layer in model.blocks:
        gradient = layer.weight.grad.double().numpy()
        bound = np.quantile(np.abs(gradient), 0.9)
        sigma = np.linalg.svd(np.clip(gradient, -bound, bound), compute_uv=False)
        expected["x".join(map(str, sorted(gradient.shape)))] = sigma / np.linalg.norm(sigma)
    losses = (lambda: model(x).square().sum() for _ in range(2))
    captured, history = capture(model, losses, at=[1, 2], lr=1e-2)
    assert set(captured) == {(step, shape) for step in (1, 2) for shape in ("6x6", "6x12")}
    for shape, sigma in expected.items():
        assert captured[1, shape].shape == (1, 6)
        np.testing.assert_allclose(captured[1, shape][0], sigma, atol=2e-5)  # float32 momentum
    assert len(history) == 2
    assert history[1] < history[0]


def test_patches_hold_every_pixel_once_and_together():
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    patches = cut_patches(images, 4)
    assert patches.shape == (2, 4, 48)
    corner = images[1, :, 4:, :4].flatten()  # third of four: second row, first column
    assert torch.equal(patches[1, 2], corner)


def test_cifar10_is_read_from_parquet_in_patches(tmp_path):
    pixels = write_parquet(tmp_path / "train-0.parquet")
    patches, labels = cifar10(tmp_path, images=30)
    assert patches.shape == (30, 64, 48)
    assert labels.tolist() == [number % 10 for number in range(30)]
    square = pixels[7, 4:8, 8:12].transpose(2, 0, 1).ravel()  # second row, third column
    np.testing.assert_allclose(patches[7, 10].numpy(), square / 127.5 - 1, atol=1e-6)


def test_the_digits_run_writes_what_the_benchmark_reads(tmp_path, capsys):
    arguments = ["digits", "--width", "32", "--depth", "1", "--at", "1", "2", "4"]
    capture_main([*arguments, "--output", str(tmp_path)])
    assert "singular values of 32x128, 32x32 at steps [1, 2, 4]" in capsys.readouterr().out
    run = load_run(tmp_path / "digits.npz")
    assert run.about["early"] == [1, 2]
    assert run.late[32, 32].shape == (4, 32)  # q, k, v and the output matrix
    assert run.late[32, 128].shape == (2, 32)
    torch.testing.assert_close(run.late[32, 32].norm(dim=1), torch.ones(4))
    assert run.about["last_loss"] > 0
