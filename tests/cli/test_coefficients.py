"""`coefficients show|fit|certify|compare`: numbers, files, messages, pictures."""

import json
import os
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch

from lightning_root import ROOT, lookup
from lightning_root.cli import main
from lightning_root.cli.parser import COMMANDS
from lightning_root.coefficients import COEFFICIENT_NAMES, SpectrumHistogram, save_spectra
from lightning_root.coefficients.published import TABLE_1
from lightning_root.coefficients.store import RATIOS, ROWS
from lightning_root.versions import own_version
from tests.integration.test_cli import process

TABLE_1_MSE = {  # arXiv:2511.20626, Table 1, T = 5: Muon's triple, the paper's triple
    "2048x2048": (0.0499, 0.0352),
    "4096x4096": (0.0637, 0.0470),
    "8192x8192": (0.0761, 0.0587),
    "2048x3072": (0.0338, 0.0024),
    "2048x4096": (0.0362, 0.0010),
    "2048x8192": (0.0340, 0.0003),
    "2048x16384": (0.0425, 0.0003),
}
PUBLISHED_SQUARE = "3.4916,-4.8224,2.1095"  # the authors' script, 2048 x 2048


def strict(text):
    """JSON as the standard has it: without NaN and Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture
def run(call):
    return partial(call, "coefficients")


@pytest.fixture
def sets(run):
    """The sets that a call prints as JSON."""

    def call(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return strict(out)["coefficients"]

    return call


@pytest.fixture
def momentum():
    """Matrices like momentum: rows of very different size, one strong direction."""
    generator = np.random.default_rng(0)
    matrices = generator.standard_normal((4, 48, 96))
    matrices *= np.exp(generator.standard_normal((4, 48, 1)))
    strong = generator.standard_normal((4, 48, 1)) * generator.standard_normal((4, 1, 96))
    return matrices + 3 * strong


@pytest.fixture
def spectra(momentum, tmp_path):
    """A file of captured spectra: 48 x 96 and 20 x 20."""
    histograms = {(48, 96): SpectrumHistogram(), (20, 20): SpectrumHistogram()}
    histograms[48, 96].add(torch.linalg.svdvals(torch.from_numpy(momentum)))
    histograms[20, 20].add(torch.linalg.svdvals(torch.from_numpy(momentum[:, :20, :20])))
    path = tmp_path / "spectra.json"
    save_spectra(path, histograms)
    return str(path)


def polynomial(triples, sigma):
    """p_T(sigma), by numpy."""
    for a, b, c in triples:
        sigma = np.polynomial.polynomial.polyval(sigma, [0, a, 0, b, 0, c])
    return sigma


def normalised(matrices):
    sigma = np.linalg.svd(matrices, compute_uv=False)
    return sigma / np.linalg.norm(sigma, axis=-1, keepdims=True)


# compare


def test_compare_prints_the_errors_of_table_1(run):
    """The printed values have two significant digits at the wide end: half a unit of the last."""
    arguments = [*TABLE_1_MSE, "--spectrum", "gaussian", "--steps", "5"]
    status, out, _ = run("compare", *arguments, "--json")
    assert status == 0
    contests = strict(out)
    assert len(contests) == 7
    for contest, printed in zip(contests, TABLE_1_MSE.values(), strict=True):
        errors = {entry["name"]: entry["error"] for entry in contest["sets"]}
        for name, value in zip(("Muon", "paper"), printed, strict=True):
            assert errors[name] == pytest.approx(value, rel=0.02, abs=0.6e-4)


def test_compare_measures_the_captured_singular_values(run, spectra, momentum):
    """Against numpy on the singular values themselves; bins of 7 % cost a few per cent."""
    sigma = normalised(momentum)
    _, out, _ = run("compare", "96x48", "--spectrum", spectra, "--steps", "4", "--json")
    (contest,) = strict(out)
    for entry in contest["sets"]:
        exact = np.mean((polynomial(entry["triples"], sigma) - 1) ** 2)
        assert entry["error"] == pytest.approx(exact, rel=0.1), entry["name"]


def test_compare_measures_the_log_uniform_law(run):
    """Against a fine grid; the package's own has 128 nodes."""
    sigma = np.exp(np.linspace(np.log(1e-3), 0, 100_001))
    _, out, _ = run("compare", "9x9", "--spectrum", "log-uniform", "--steps", "3", "--json")
    for entry in strict(out)[0]["sets"]:
        exact = np.mean((polynomial(entry["triples"], sigma) - 1) ** 2)
        assert entry["error"] == pytest.approx(exact, rel=0.02), entry["name"]


def test_compare_gives_no_star_to_an_unbounded_set(run, tmp_path):
    """32 sigma^5 is right for the identity, whose singular values are 1/2, and sends 1 to 32."""
    histogram = SpectrumHistogram()
    histogram.add(torch.ones(4))
    save_spectra(tmp_path / "identity.json", {(4, 4): histogram})
    wild = tmp_path / "wild.json"
    wild.write_text(json.dumps({"triples": [[0.0, 0.0, 32.0]]}))
    spectrum = str(tmp_path / "identity.json")
    _, out, _ = run("compare", "--spectrum", spectrum, "--steps", "1", "--with", str(wild))
    cells = dict(re.split(r"  +", line)[:2] for line in out.splitlines() if " to " in line)
    errors = {name: float(cell.rstrip(" *!")) for name, cell in cells.items()}
    assert min(errors, key=errors.get) == "wild"
    assert cells["wild"].endswith("!")
    assert sum(cell.endswith("*") for cell in cells.values()) == 1


def test_compare_marks_the_best_bounded_set_of_each_column(run):
    arguments = ["compare", "2048x2048", "--spectrum", "gaussian", "--steps", "3", "5", "6"]
    contests = strict(run(*arguments, "--json")[1])
    lines = run(*arguments)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("2048x2048"))
    table = [re.split(r"  +", line) for line in lines[start + 2 : start + 9]]
    for column, contest in enumerate(contests, 1):
        bounded = {e["name"]: e["error"] for e in contest["sets"] if e["bounded"]}
        starred = [row[0] for row in table if row[column].endswith("*")]
        assert starred == [min(bounded, key=bounded.get)]


def test_compare_says_why_the_published_triple_is_out(run):
    """It reaches 3.3 after 5 steps and 679 after 6: known from sampling."""
    status, out, _ = run("compare", "2048x2048", "--steps", "5", "6")
    assert status == 0
    assert "! published, 2048x2048, T = 5: p_T reaches 3.31 on [0, 1]" in out
    assert "! published, 2048x2048, T = 6: p_T reaches 679 on [0, 1]" in out
    assert "sigma = 0.163" in out


def test_compare_takes_files_and_leaves_out_what_they_lack(run, tmp_path):
    path = tmp_path / "mine.json"
    run("fit", "48x96", "--steps", "4", "--output", str(path))
    _, out, _ = run("compare", "48x96", "64x64", "--steps", "4", "--with", str(path))
    rows = [line.split() for line in out.splitlines() if line.startswith("mine")]
    assert rows[0][1] != "-"
    assert rows[1][1] == "-"


# fit


def test_a_fit_written_to_a_file_is_what_root_then_uses(run, momentum, tmp_path):
    """The update's singular values are p_T of those of the gradient: numpy's svd."""
    path = str(tmp_path / "mine.json")
    status, out, _ = run("fit", "96x48", "--steps", "4", "--output", path)
    assert status == 0
    assert f"--optimizer.coefficients {path} --optimizer.ns_steps 4" in out
    triples = lookup((48, 96), path, 4).triples
    weight = torch.nn.Parameter(torch.zeros(96, 48, dtype=torch.float64))
    weight.grad = torch.from_numpy(momentum[0].T.copy())
    options = {"lr": 1.0, "weight_decay": 0.0, "outlier_quantile": None, "ns_steps": 4}
    ROOT([{"role": "root", "params": [weight]}], coefficients=path, **options).step()
    update = np.linalg.svd(weight.detach().numpy(), compute_uv=False) / (0.2 * np.sqrt(96))
    expected = np.sort(polynomial(triples, normalised(momentum[0])))[::-1]
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6)


def test_the_json_of_a_fit_is_the_file(run, sets, tmp_path):
    path = tmp_path / "mine.json"
    arguments = ["fit", "20x20", "30x20", "--single", "--steps", "3", "4"]
    printed = sets(*arguments, "--output", str(path))
    assert printed == strict(path.read_text())["coefficients"]
    assert [(entry["shape"], entry["steps"]) for entry in printed] == [
        ([20, 20], 3),
        ([20, 20], 4),
        ([20, 30], 3),
        ([20, 30], 4),
    ]


def test_one_triple_on_gaussian_matrices_is_the_papers(sets):
    (entry,) = sets("fit", "3072x2048", "--single", "--spectrum", "gaussian")
    assert entry["triples"] == [pytest.approx(TABLE_1[2048, 3072], abs=1e-3)] * 5


def test_a_fit_to_captured_spectra_takes_their_shapes_and_beats_muon(sets, spectra, momentum):
    wide, square = sets("fit", "--spectrum", spectra)
    assert (wide["shape"], square["shape"]) == ([48, 96], [20, 20])
    sigma = normalised(momentum)

    def error(triples):
        return np.mean((polynomial(triples, sigma) - 1) ** 2)

    assert error(wide["triples"]) < 0.5 * error(lookup((48, 96), "muon").triples)


def test_the_share_of_captured_singular_values_is_what_was_asked_for(sets, spectra):
    (default,) = sets("fit", "20x20", "--spectrum", spectra)
    assert "72.8 % captured 20x20 (4 matrices), 24.2 % Gaussian 20x20" in default["spectrum"]
    (paper,) = sets("fit", "20x20", "--single", "--spectrum", spectra, "--captured-share", "0.25")
    assert paper["spectrum"] == "25 % captured 20x20 (4 matrices), 75 % Gaussian 20x20"
    (alone,) = sets("fit", "20x20", "--single", "--spectrum", spectra, "--captured-share", "1")
    assert alone["spectrum"] == "captured 20x20 (4 matrices)"


def test_a_bar_only_for_those_who_watch_several_fits(run, monkeypatch):
    two = ["fit", "20x20", "20x30", "--single"]
    assert run(*two)[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("lightning_root.cli.output.sys.stderr", sys.stderr)
    assert run("fit", "20x20", "--single")[2] == ""
    assert "fitting" in run(*two)[2]


# show


def test_show_prints_the_triples_of_lookup(run, sets):
    (entry,) = sets("show", "3072x768", "--coefficients", "cans")
    assert entry["triples"] == [list(triple) for triple in lookup((768, 3072), "cans").triples]
    _, out, _ = run("show", "3072x768", "--coefficients", "cans")
    numbers = [list(map(float, line.split())) for line in out.splitlines()[-5:]]
    assert np.allclose(numbers, entry["triples"], atol=1e-8)


def test_show_measures_on_gaussian_matrices(sets):
    """By SVD of one matrix, whose singular values fluctuate a little."""
    (entry,) = sets("show", "300x500", "--coefficients", "muon")
    matrix = np.random.default_rng(0).standard_normal((300, 500))
    exact = np.mean((polynomial(entry["triples"], normalised(matrix)) - 1) ** 2)
    assert entry["errors"]["gaussian"] == pytest.approx(exact, rel=0.1)


def test_show_without_shapes_is_the_whole_table(run, sets):
    assert len(sets("show", "--steps", "4")) == len(ROWS) * len(RATIOS)
    _, out, _ = run("show", "--steps", "4")
    assert [line.split()[0] for line in out.splitlines() if re.match(r"\d", line)] == [
        str(m) for m in ROWS
    ]


def test_shown_json_is_a_file_for_certify_and_lookup(run, tmp_path):
    _, out, _ = run("show", "64x96", "--json")
    path = tmp_path / "shown.json"
    path.write_text(out)
    assert lookup((64, 96), str(path)).triples == lookup((64, 96)).triples
    assert run("certify", str(path))[0] == 0


# certify


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["published", "2048x2048", "--steps", "5"], 1),
        (["published", "2048x8192", "--steps", "5"], 0),
        (["muon", "--steps", "5", "40"], 0),
        ([PUBLISHED_SQUARE, "--steps", "4"], 0),
        ([PUBLISHED_SQUARE, "--steps", "4", "5"], 1),
        (["2,-1.5,.5 1.5, -0.5, 0"], 0),
        (["[[5, 1, 1], [5, 1, 1]]"], 1),
        *((["adaptive", "64x64", "--steps", str(steps)], 0) for steps in (1, 5, 9)),
    ],
)
def test_certify_exits_with_the_verdict(run, arguments, status):
    """That of a numpy evaluation on a fine grid: within [-2, 2] or not."""
    assert run("certify", *arguments)[0] == status
    assert run("certify", *arguments, "--json")[0] == status
    entries = strict(run("certify", *arguments, "--json")[1])["coefficients"]
    for entry in entries:
        values = polynomial(entry["triples"], np.linspace(0, 1, 200_001))
        assert entry["bounded"] == (np.abs(values).max() <= 2)


def test_certify_gives_range_reason_and_fixed_points(run):
    """Fixed points from numpy's roots of p(x) = x."""
    status, out, _ = run("certify", PUBLISHED_SQUARE, "--steps", "6")
    assert status == 1
    assert "6 steps: p_T reaches 679 on [0, 1]; beyond [-2, 2] first at sigma = 0.163" in out
    a, b, c = map(float, PUBLISHED_SQUARE.split(","))
    roots = np.sqrt(np.sort(np.roots([c, b, a - 1])))
    assert f"{roots[0]:.4g} (repels), {roots[1]:.4g} (repels), larger values grow" in out


def test_certify_reads_files_that_root_refuses(run, tmp_path):
    path = tmp_path / "wild.json"
    path.write_text(json.dumps({"triples": [[5.0, 1.0, 1.0]] * 40}))
    assert run("certify", str(path))[0] == 1
    status, out, _ = run("certify", str(path), "--json")
    (entry,) = strict(out)["coefficients"]  # infinities are null
    assert (status, entry["range"]) == (1, [None, None])
    assert "overflows" in entry["reason"]


# input that is wrong, and what is printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit"], "name at least one SHAPE, for example 768x3072"),
        (["fit", "768"], "written like 768x3072, got '768'"),
        (["fit", "0x5"], "two whole numbers >= 1"),
        (["fit", "8x8", "--steps", "5", "3x4"], "got '3x4'; shapes come before the options"),
        (["fit", "8x8", "--steps", "13"], "`steps` must be a whole number from 1 to 12, got 13"),
        (["fit", "8x8", "--output", "mine.txt"], "must end in .json"),
        (["fit", "8x8", "--output", "no/folder.json"], "the folder of 'no/folder.json' does not"),
        (["fit", "8x8", "--plot", "a.xyz"], "`--plot` must end in one of .avif, .eps"),
        (["fit", "8x8", "--captured-share", "0.5"], "add `--spectrum FILE.json`"),
        (["fit", "8x8", "--captured-share", "2"], "must be in (0, 1], got '2'"),
        (["fit", "8x8", "--spectrum", "normal"], "`--spectrum` must be one of ['training'"),
        (["fit", "8x8", "--spectrum", "none.json"], "`none.json` cannot be read"),
        (["show", "8x8", "--coefficients", "muno"], "got 'muno'"),
        (["show", "8x8", "--coefficients", "1,2"], "must be triples (a, b, c)"),
        (["show", "--coefficients", "paper"], "`paper` depends on the shape"),
        (["certify", "none.json"], "`none.json` cannot be read"),
        (["certify", "1,2,3 4,5,6", "--steps", "5"], "`coefficients` holds 2 triples"),
        (["compare", "8x8", "--with", "none.json"], "`none.json` cannot be read"),
        (["compare", "8x8", "--what"], "unrecognized arguments: --what"),
        (["prove"], "invalid choice: 'prove'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", "3", "{"),
        *('{"coefficients": []}', '{"coefficients": [3]}', '{"triples": 3}'),
        *('{"triples": [[1, 2]]}', '{"triples": [1, 2]}', '{"triples": [[1, 2, "x"]]}'),
        '{"triples": [[1, 0, 0]], "shape": [3]}',
        '{"triples": [[1, 0, 0]], "mse": "x"}',
    ],
)
@pytest.mark.parametrize("command", [["certify"], ["compare", "8x8", "--with"]])
def test_files_that_hold_no_sets_are_named(run, tmp_path, command, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    status, _, err = run(*command, str(path))
    assert status == 2
    assert err.startswith(f"error: `{path}` ")


def test_what_a_file_lacks_is_answered_with_what_it_has(run, spectra, tmp_path):
    _, _, err = run("fit", "8x8", "--spectrum", spectra)
    assert "holds no spectrum of 8x8; it has 48x96, 20x20" in err
    path = str(tmp_path / "mine.json")
    run("fit", "48x96", "--single", "--steps", "3", "4", "--output", path)
    _, _, err = run("show", "8x8", "--coefficients", path)
    assert "it has 48x96, 3 steps; 48x96, 4 steps" in err


def test_nothing_is_wider_than_100_columns(run, spectra, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    calls = [
        *([name, "--help"] for name in ("show", "fit", "certify", "compare")),
        ["--help"],
        ["show"],
        ["show", "2048x16384", "16384x16384", "--coefficients", "published"],
        ["fit", "--spectrum", "spectra.json", "--steps", "2", "5", "--output", "mine.json"],
        ["show", "--coefficients", "mine.json"],
        ["certify", "published", "2048x2048", "2048x16384", "--steps", "5", "16"],
        ["compare", "2048x2048", "2048x16384", "--steps", "2", "5", "--with", "mine.json"],
    ]
    for call in calls:
        out = run(*call)[1]
        assert out
        assert max(map(len, out.splitlines())) <= 100, call


def test_help_names_every_set_and_subcommand(run):
    out = run("--help")[1]
    assert all(f"    {name}  " in out for name in ("show", "fit", "certify", "compare"))
    assert all(name in run("certify", "--help")[1] for name in COEFFICIENT_NAMES)
    status, _, err = run()
    assert (status, err) == (2, out)


# pictures


@pytest.mark.parametrize(
    "arguments",
    [["20x20", "--steps", "5"], ["20x20", "--steps", "4", "6"], ["20x20", "2048x2048"]],
)
def test_compare_draws_one_contest_steps_or_shapes(run, tmp_path, arguments):
    path = tmp_path / "picture.png"
    status, _, err = run("compare", *arguments, "--plot", str(path))
    assert (status, err) == (0, "")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_fit_draws_as_well(run, tmp_path):
    path = tmp_path / "picture.svg"
    assert run("fit", "20x20", "20x30", "--single", "--plot", str(path))[0] == 0
    text = path.read_text()
    assert "<svg" in text


def test_without_matplotlib_the_extra_is_named_before_the_work(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = tmp_path / "mine.json"
    picture = str(tmp_path / "a.png")
    status, _, err = run("fit", "20x20", "--output", str(output), "--plot", picture)
    assert status == 2
    assert "pip install 'lightning-root[plot]'" in err
    assert not output.exists()


# among the other commands


def test_the_main_help_lists_all_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m lightning_root ")
    for name in ("fit", "validate", "test", "predict", "partition", "coefficients"):
        assert re.search(rf"^    {name}  ", out, re.MULTILINE)
    described = re.findall(r"(?m)^    ([a-z-]+) {2,}(.+(?:\n {8,}.+)*)", out)
    assert len(described) == 4 + len(COMMANDS)
    assert all(text.endswith(".") for _, text in described), "a sentence that is cut off"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"python -m lightning_root {own_version()}\n"


def test_the_help_of_an_optimizer_names_the_program(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--optimizer.help", "ROOT"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m lightning_root [--optimizer.lr LR]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["coeficients"], "'predict', 'partition', 'coefficients'"),
        (["--config", "empty.yaml", "coefficients"], "`coefficients` must be the first argument"),
    ],
)
def test_a_command_in_the_wrong_place_is_named(capsys, monkeypatch, tmp_path, arguments, words):
    (tmp_path / "empty.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_the_process_ends_with_the_status_of_the_command():
    result = process("-m", "lightning_root", "coefficients", "certify", PUBLISHED_SQUARE)
    assert (result.returncode, result.stderr) == (1, "")
    assert "UNBOUNDED" in result.stdout


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    """As `| head` is: the other end of the pipe is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["coefficients", "show", "48x96", "--coefficients", "muon"]) == 0
        pipe.write("what the interpreter flushes at its end")
