"""Pages about runs: what is read from logs, what stands on the page, who is ahead of whom."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.integrate
import scipy.signal
import scipy.stats
import yaml
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lightning_root import lookup
from lightning_root.coefficients import training_model
from lightning_root.diagnostics.report import (
    comparison_of,
    find_run,
    page_of,
    read_run,
    report_of,
    write_page,
)
from lightning_root.diagnostics.report.comparison import result_table
from lightning_root.diagnostics.report.curves import Series, is_learning_rate, losses, mode_of
from lightning_root.diagnostics.report.drawing import MAX_OTHERS, Line, Panel, other_curves
from lightning_root.diagnostics.report.page import number, typeset
from lightning_root.diagnostics.report.run_page import outliers, updates

START = 1_700_000_000.0
HOSTILE = '<script>alert("1")</script>&$\\frac{'
VOID = {"meta", "img", "br", "hr", "link", "input"}


def write_events(folder, curves, *, start=START, texts=(), name=".0"):
    """One event file: curves of (step, seconds, value) by tag, whose clock begins at `start`."""
    with SummaryWriter(str(folder), filename_suffix=name) as writer:
        for tag, points in curves.items():
            for step, seconds, value in points:
                writer.add_scalar(tag, value, step, walltime=start + seconds)
        for tag, text, step in texts:
            writer.add_text(tag, text, step, walltime=start)
    (path,) = folder.glob(f"events*{name}")
    # The writer opens the file at the present time; the first record says so.
    _set_first_time(path, start)
    return path


def _set_first_time(path, start):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + length])
    event.wall_time = start
    with path.open("wb") as file:
        RecordWriter(file).write(event.SerializeToString())
        file.write(data[length + 16 :])
    assert path.stat().st_size == len(data)


def config(**options):
    init_args = {"lr": 0.012, "outlier_quantile": 0.9, **options}
    return {"optimizer": {"class_path": "lightning_root.ROOT", "init_args": init_args}}


def curve(*values, every=10, seconds=1.0):
    """Points at steps 10, 20, ... with a clock of `seconds` per step."""
    steps = range(every, every * (len(values) + 1), every)
    return [(s, s * seconds, v) for s, v in zip(steps, values, strict=True)]


@pytest.fixture(scope="module")
def root_run(tmp_path_factory):
    """What `ROOTMonitor` logs of a model with two layers, one of them with a hostile name."""
    layers = {"up.weight": 0.02, f"{HOSTILE}.weight": 0.5}
    curves = {
        "train/loss": curve(3.0, 2.5, 2.0, 1.75),
        "val/loss": curve(2.75, 1.625, every=20),
        "lr-ROOT/root": curve(0.1, 0.2, 0.1, 0.05),
        "lr-ROOT/adamw": curve(0.1, 0.2, 0.1, 0.05),
        "root/orth_error/mean": curve(0.5, 0.3, 0.2, 0.125),
        "root/orth_error/max": curve(0.9, 0.7, 0.6, 0.5),
        "root/sigma_max/max": curve(1.1, 1.1, 1.1, 1.1),
        "root/outlier_energy/mean": curve(0.1, 0.2, 0.1, 0.1),
        "root/update_rms/mean": curve(0.19, 0.2, 0.2, 0.2),
        "root/skipped": curve(0.0, 2.0, 0.0, 1.0),
        "epoch": curve(0, 0, 0, 0),
        HOSTILE: curve(1, 2, 3, 4),
    }
    for layer, value in layers.items():
        curves[f"root/orth_error/{layer}"] = curve(*[value] * 4)
        curves[f"root/outlier_energy/{layer}"] = curve(*[1 - value] * 4)
    in_use = f"8 x 32: {lookup((8, 32), 'muon')}"
    texts = [("root/coefficients", f"    {in_use}", 9), ("note", HOSTILE, 0)]
    folder = tmp_path_factory.mktemp("logs") / "version_0"
    write_events(folder, curves, texts=texts)
    saved = "# lightning.pytorch==2.6.6\n" + yaml.safe_dump({**config(), "tag": HOSTILE})
    (folder / "config.yaml").write_text(saved)
    (folder / "partition.txt").write_text(f"parameter\n{HOSTILE}\n")
    return folder


class Reader(HTMLParser):
    """All tags with their attributes, the text outside of style, and whether tags nest."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(path.read_text())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.text += data + "\n"

    def values(self, name):
        """An attribute of all tags that have it."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def page(root_run):
    return write_page(report_of(read_run(root_run)), root_run / "report" / "report.html")


# reading


def test_reads_what_tensorboards_writer_wrote(tmp_path):
    """Values are float32 in the file; the new form of scalars is read too."""
    values = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate(values):
            writer.add_scalar("old", value, step, walltime=START + 2 * step)
            writer.add_scalar("new", value, step, new_style=True)
        writer.add_text("words", "    one\n    two", 3)
        writer.add_histogram("histogram", values, 0)
        writer.add_image("image", np.zeros((3, 2, 2), np.uint8), 0)
    run = read_run(tmp_path)
    assert list(run.scalars) == ["old", "new"]
    for series in run.scalars.values():
        assert np.array_equal(series.values, values.astype(np.float64))
        assert series.steps.tolist() == list(range(20))
    assert np.diff(run.scalars["old"].seconds) == pytest.approx(2.0)
    assert run.texts == {"words": [(3, "one\ntwo")]}
    assert run.notes == ()


def test_a_csv_file_gives_the_numbers_of_an_event_file(tmp_path):
    """Lightning's own logger beside torch's writer; only the clock is missing."""
    curves = {"train_loss": curve(3.0, 2.5, 2.0, 1.5), "val_loss": curve(2.75, 1.625, every=20)}
    write_events(tmp_path / "events", curves)
    logger = CSVLogger(str(tmp_path), "csv", version="")
    for tag, points in curves.items():
        for step, _, value in points:
            logger.log_metrics({tag: value}, step)
    logger.save()
    found = [report_of(read_run(tmp_path / name)) for name in ("events", "csv")]
    cards = [{card.label: card.value for card in page.cards} for page in found]
    assert cards[0].pop("Time") == "0:00:40"
    assert cards[0] == cards[1]
    assert cards[1]["Best val_loss"] == "1.6250"


def test_both_kinds_of_logs_in_one_folder_are_one_run(tmp_path):
    write_events(tmp_path, {"loss": curve(3.0, 2.0)})
    (tmp_path / "metrics.csv").write_text("step,loss,extra\n10,3.0,7\n20,2.0,\n")
    run = read_run(tmp_path)
    assert run.scalars["loss"].seconds.tolist() == [10.0, 20.0]
    assert run.scalars["extra"].values.tolist() == [7.0]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path):
    """It crashed at step 40 and was resumed from step 20 a day later: 20 s, and 20 s more."""
    write_events(tmp_path, {"loss": curve(4.0, 3.0, 9.0, 9.0)}, name=".0")
    again = [(30, 10.0, 2.0), (40, 20.0, 1.0)]
    write_events(tmp_path, {"loss": again}, start=START + 86_400, name=".1")
    run = read_run(tmp_path)
    series = run.scalars["loss"]
    assert series.steps.tolist() == [10, 20, 30, 40]
    assert series.values.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert series.seconds.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert run.seconds == 40.0


@pytest.mark.parametrize("cut", [1, 7, 13, 30])
def test_a_torn_event_file_is_read_up_to_the_tear(tmp_path, cut):
    path = write_events(tmp_path, {"loss": curve(4.0, 3.0, 2.0)})
    path.write_bytes(path.read_bytes()[:-cut])
    run = read_run(tmp_path)
    assert run.scalars["loss"].values.tolist() == [4.0, 3.0]
    assert re.search(r"cut off: read up to record 3$", run.notes[0])


def test_a_damaged_record_ends_the_reading_with_a_note(tmp_path):
    path = write_events(tmp_path, {"loss": curve(4.0, 3.0, 2.0)})
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(data)
    run = read_run(tmp_path)
    assert run.scalars["loss"].values.tolist() == [4.0, 3.0]
    assert "damaged" in run.notes[0]


def test_a_torn_csv_file_is_read_without_its_last_line(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n10,3.5\n20,2.5\n30,1.")
    run = read_run(tmp_path)
    assert run.scalars["loss"].values.tolist() == [3.5, 2.5]
    assert "last line" in run.notes[0]


@pytest.mark.parametrize("content", [b"", b"no event file at all, but text", bytes(100)])
def test_an_event_file_without_scalars_is_an_error(tmp_path, content):
    (tmp_path / "events.out.tfevents.0.host").write_bytes(content)
    with pytest.raises(ValueError, match=r"`RUN_DIR` must hold scalars, found none in .*tfevents"):
        read_run(tmp_path)


def test_a_configuration_that_is_no_yaml_is_a_note(tmp_path):
    write_events(tmp_path, {"loss": curve(4.0, 3.0)})
    (tmp_path / "config.yaml").write_text("a: !!python/object:os.system {}\n")
    run = read_run(tmp_path)
    assert run.config == {}
    assert "config.yaml is not plain YAML" in run.notes[0]


def test_a_folder_above_one_run_stands_for_it(tmp_path):
    run = tmp_path / "logs" / "name" / "version_0"
    write_events(run, {"loss": curve(1.0)})
    assert find_run(tmp_path) == find_run(run) == run
    for version in (2, 10):
        write_events(run.with_name(f"version_{version}"), {"loss": curve(1.0)})
    with pytest.raises(ValueError, match=r"found 3 .*version_0, .*version_2, .*version_10$"):
        find_run(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        find_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none in or below"):
        find_run(tmp_path / "empty")


# curves


def test_smoothing_is_the_filter_that_it_is_called():
    """scipy's first-order filter, divided by its answer to ones."""
    values = np.random.default_rng(0).standard_normal(50)
    series = Series.of([(step, 0.0, value) for step, value in enumerate(values)])
    for weight in (0.0, 0.5, 0.95):
        kernel = ([1 - weight], [1, -weight])
        expected = scipy.signal.lfilter(*kernel, values) / scipy.signal.lfilter(*kernel, [1.0] * 50)
        np.testing.assert_allclose(series.smoothed(weight), expected, rtol=1e-12, atol=1e-12)


def test_smoothing_passes_over_what_is_not_finite():
    series = Series.of([(0, 0, 1.0), (1, 1, np.nan), (2, 2, 1.0), (3, 3, np.inf)])
    np.testing.assert_array_equal(series.smoothed(0.9), [1.0, np.nan, 1.0, np.inf])


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
def test_a_target_is_reached_where_straight_lines_cross_it(mode, sign):
    """Against numpy's interpolation of the steps over the values, which fall all the way."""
    generator = np.random.default_rng(0)
    steps = generator.integers(1, 9, 30).cumsum()
    values = -generator.random(30).cumsum()
    series = Series.of([(s, 3.0 * s, sign * v) for s, v in zip(steps, values, strict=True)])
    for target in np.linspace(values[0], values[-1], 17):
        reached = series.reach(sign * target, mode)
        assert reached.step == pytest.approx(np.interp(-target, -values, steps))
        assert reached.seconds == pytest.approx(3.0 * reached.step)
    assert series.reach(sign * (values[-1] - 1.0), mode) is None
    assert series.reach(sign * (values[0] + 1.0), mode).step == steps[0]
    two = Series.of([(10, 0.0, sign * 3.0), (20, 5.0, sign * 1.0)])
    assert two.reach(sign * 2.0, mode) == (15.0, 2.5, sign * 2.0)


@pytest.mark.parametrize(
    ("tags", "training", "validation"),
    [
        (["val/loss", "train/loss"], "train/loss", "val/loss"),
        (["train_loss_epoch", "train_loss_step", "val_loss"], "train_loss_step", "val_loss"),
        (["loss", "val_aux_loss", "valid/loss"], "loss", "valid/loss"),
        (["root/loss/x", "test/loss", "gloss"], "root/loss/x", None),
    ],
)
def test_losses_are_known_by_the_words_of_their_tags(tags, training, validation):
    assert losses(tags, "training")[0] == training
    assert next(iter(losses(tags, "validation")), None) == validation


def test_rates_and_directions_are_known_by_the_words_of_their_tags():
    tags = ["lr-ROOT/root", "lr-SGD-momentum", "train/lr", "learning_rate", "color", "rate"]
    assert [tag for tag in tags if is_learning_rate(tag)] == [
        "lr-ROOT/root",
        "train/lr",
        "learning_rate",
    ]
    assert [mode_of(tag) for tag in ("val/acc", "val_top1_accuracy", "val/loss")] == [
        *("max", "max", "min")
    ]


# text


def test_numbers_are_written_as_a_person_would():
    found = [number(value) for value in (1.26823, 0.00123456, 12345.6, -0.0, np.inf, None)]
    assert found == ["1.2682", "0.00123", "12,346", "0", "inf", "-"]


def test_formulas_have_the_signs_of_print():
    assert typeset("(s - 1)^2") == "(s \N{MINUS SIGN} 1)\N{SUPERSCRIPT TWO}"


# the page of one run


def test_the_page_needs_nothing_but_itself(page):
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert reader.values("href") == []
    sources = reader.values("src")
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [value for value in reader.values("style") if "url" in value]


def test_pictures_are_png_files_and_lie_beside_the_page(page):
    embedded = [base64.b64decode(s.partition(",")[2]) for s in Reader(page).values("src")]
    files = {path.read_bytes() for path in page.parent.glob("*.png")}
    assert files == set(embedded)
    for data in embedded:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 1800
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 2  # not blank


def test_whatever_a_run_says_is_text(page):
    """As the name of a layer, in the partition, in a text, in the configuration; and metrics'
    names are drawn as they are, no formulas."""
    reader = Reader(page)
    assert reader.text.count(HOSTILE) == 4
    assert "<script" not in page.read_text().lower()


def test_numbers_on_the_page_are_those_that_were_logged(page):
    text = Reader(page).text
    lines = text.split("\n")
    for label, value in {
        "Best val/loss": "1.6250",
        "Last train/loss": "1.7500",
        "Last step": "40",
        "Time": "0:00:40",
        "Orthogonalization error": "0.1250",
        "Skipped updates": "3",
    }.items():
        assert value in lines[lines.index(label) :][:3]
    assert "ROOT, lr 0.012" in lines
    assert "lightning.pytorch 2.6.6" in lines


def test_the_worst_layers_lead_the_table(root_run):
    (section,) = [s for s in report_of(read_run(root_run)).sections if s.title == "Layers"]
    table = section.parts[1]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == [f"{HOSTILE}.weight", "up.weight"]
    assert rows["up.weight"] == ("0.0200", "0.9800", "highest error, most outliers")


def test_heat_maps_show_what_was_logged_layer_by_layer(tmp_path):
    """A layer that is missing in one statistic, or at some steps, is grey there."""
    energy = {"a.weight": [1, 2, 3], "b": [4, 5, 6], "c/0": [7, 8, 9]}
    curves = {f"root/outlier_energy/{layer}": curve(*v) for layer, v in energy.items()}
    curves["root/orth_error/b"] = curve(1, 2, 3)[1:]
    write_events(tmp_path, {**curves, "root/orth_error/mean": curve(0, 0, 0)})
    (section,) = [s for s in report_of(read_run(tmp_path)).sections if s.title == "Layers"]
    figure = Figure()
    section.parts[0].draw(figure)
    error, outliers = (axes.collections[0].get_array() for axes in figure.axes[:2])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "a", "c/0"]
    nan = np.nan
    np.testing.assert_array_equal(error.filled(nan), [[nan, 2, 3], [nan] * 3, [nan] * 3])
    np.testing.assert_array_equal(outliers.filled(nan), [[4, 5, 6], [1, 2, 3], [7, 8, 9]])


def test_the_expected_error_is_that_of_the_polynomial(root_run):
    """Composed by numpy over the singular values that training has."""
    (section,) = [
        s for s in report_of(read_run(root_run)).sections if s.title == "Orthogonalization"
    ]
    (row,) = section.parts[1].rows
    spectrum = training_model(8, 32)
    sigma = image = spectrum.sigma.numpy()
    for _ in range(5):
        image = np.polyval([2.0315, 0, -4.775, 0, 3.4445, 0], image)
    assert sigma.max() <= 1.0
    expected = float(np.sum(spectrum.weight.numpy() * (image - 1) ** 2))
    assert row[2:4] == ["5", "Muon (K. Jordan et al., 2024)"]
    assert float(row[-1]) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("quantile", [0.8, 0.9, 0.99])
def test_references_are_those_of_gaussian_entries(tmp_path, quantile):
    """By scipy's integrals over the normal density."""
    curves = {
        f"root/{name}/mean": curve(0.1, 0.1)
        for name in ("outlier_energy", "outlier_fraction", "relative_threshold", "kurtosis")
    }
    write_events(tmp_path, curves)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(outlier_quantile=quantile)))
    found = [panel.references[0][0] for panel in outliers(read_run(tmp_path))]
    threshold = scipy.stats.norm.ppf((1 + quantile) / 2)

    def density(x):
        return 2 * scipy.stats.norm.pdf(x)

    def integral(function):
        return scipy.integrate.quad(function, threshold, np.inf)[0]

    energy = integral(lambda x: (x - threshold) ** 2 * density(x))
    fraction = integral(density)
    assert found == pytest.approx([energy, fraction, threshold, 3.0], rel=1e-6)


def test_a_run_without_a_threshold_has_no_outliers_to_show(tmp_path):
    zeros = {f"root/{name}/mean": curve(0, 0) for name in ("outlier_energy", "outlier_fraction")}
    others = {f"root/{name}/mean": curve(5, 6) for name in ("kurtosis", "relative_threshold")}
    write_events(tmp_path, {**zeros, **others})
    assert [panel.title for panel in outliers(read_run(tmp_path))] == ["Kurtosis"]


def test_skipped_updates_are_drawn_where_there_are_some(root_run, tmp_path):
    assert "Skipped updates" in [panel.title for panel in updates(read_run(root_run))]
    write_events(tmp_path / "well", {"root/skipped": curve(0.0, 0.0)})
    assert updates(read_run(tmp_path / "well")) == []


def test_a_run_without_root_has_its_losses_and_no_empty_sections(tmp_path):
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    write_events(tmp_path, {"train/loss": curve(3, 2), "lr-AdamW": curve(0.1, 0.2)})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"optimizer": adamw}))
    page = report_of(read_run(tmp_path))
    assert page.title == "AdamW, lr 0.001"
    assert [section.title for section in page.sections] == ["Training", "Set-up"]
    assert [picture.name for picture in page.pictures] == ["training"]


def test_curves_of_unknown_meaning_are_drawn_up_to_a_number(tmp_path):
    curves = {f"metric_{number:02}": curve(1, 2) for number in range(MAX_OTHERS + 3)}
    write_events(tmp_path, {**curves, "val/accuracy": curve(0.5, 0.6), "epoch": curve(0, 0)})
    (section,) = report_of(read_run(tmp_path)).sections
    assert section.title == "Other curves"
    picture, paragraph = section.parts
    assert picture.name == "others"
    assert "4 more curves are left out: metric_15, metric_16" in paragraph


def test_curves_without_a_finite_value_are_drawn_without_a_warning(tmp_path):
    write_events(tmp_path, {"train/loss": curve(np.nan, np.nan), "x": curve(np.inf, np.inf)})
    path = write_page(report_of(read_run(tmp_path)), tmp_path / "report.html")
    assert "nan" in Reader(path).text


def test_a_panel_of_long_runs_and_steep_curves_can_be_drawn():
    values = np.geomspace(1e-6, 1e3, 5000)
    series = Series.of([(100 * step, step, value) for step, value in enumerate(values)])
    (picture,) = other_curves({"steep": [Line("", series)]})
    figure = Figure()
    picture.draw(figure)
    assert figure.axes[0].get_yscale() == "log"
    assert Panel("steep", [Line("", series)]).over == "step"


# several runs


@pytest.fixture
def two(tmp_path):
    """A falls to 1 in steps of a second; B to 2.5 in steps of two, and is the worse run."""
    write_events(tmp_path / "a", {"val/loss": curve(4, 3, 2, 1), "train/loss": curve(4, 3, 2, 1)})
    write_events(tmp_path / "b", {"val/loss": curve(4, 3.5, 3, 2.5, seconds=2.0)})
    (tmp_path / "a" / "config.yaml").write_text(yaml.safe_dump(config(lr=0.5)))
    (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(config(lr=0.25)))
    return [read_run(tmp_path / name) for name in ("a", "b")]


def test_the_speed_up_is_what_it_is_by_hand(two):
    """A is at 2.5 half way between steps 20 and 30: 40 / 25 in steps, 80 s / 25 s in time."""
    comparison = comparison_of(two)
    assert comparison.metric == "val/loss"
    assert comparison.target == 2.5
    a, b = comparison.standings()
    assert (a.reached.step, a.reached.seconds) == pytest.approx((25.0, 25.0))
    assert (a.speed_up, a.speed_up_in_time) == pytest.approx((1.6, 3.2))
    assert (b.speed_up, b.speed_up_in_time) == (1.0, 1.0)
    _, rows = result_table(comparison)
    assert rows[0][1:] == ["1", "1", "40", "25", "1.60x", "0:00:25", "3.20x"]
    header, _ = result_table(comparison_of(two, steps_only=True))
    assert not [name for name in header if "time" in name]


def test_more_is_better_where_the_metric_says_so(tmp_path):
    write_events(tmp_path / "a", {"val/acc": curve(0.5, 0.9)})
    write_events(tmp_path / "b", {"val/acc": curve(0.5, 0.7)})
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    comparison = comparison_of(runs, metric="val/acc")
    assert comparison.target == pytest.approx(0.7)
    assert [round(s.speed_up, 3) for s in comparison.standings()] == [1.333, 1.0]


def test_a_run_that_ends_in_nan_sets_no_target(tmp_path, two):
    write_events(tmp_path / "c", {"val/loss": curve(4, np.nan)})
    comparison = comparison_of([*two, read_run(tmp_path / "c")])
    assert comparison.target == 2.5
    diverged = comparison.standings()[2]
    assert (diverged.reached, diverged.speed_up, diverged.best.value) == (None, None, 4.0)
    assert result_table(comparison)[1][2][1:6] == ["nan", "4", "10", "-", "-"]


def test_without_a_clock_steps_are_compared(tmp_path, two):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,val/loss\n10,5\n20,4\n")
    comparison = comparison_of([two[0], read_run(folder)])
    assert not comparison.has_clock
    assert comparison.standings()[0].speed_up == 2.0
    assert len(result_table(comparison)[0]) == 6


def test_the_page_of_two_runs_names_what_differs(two, tmp_path):
    page = page_of(comparison_of(two))
    assert page.title == "ROOT, lr 0.5 \N{MIDDLE DOT} ROOT, lr 0.25"
    table = page.sections[-1].parts[0]
    assert table.rows == [["optimizer.lr", "0.5", "0.25"]]
    reader = Reader(write_page(page, tmp_path / "out" / "comparison.html"))
    assert "1.60x" in reader.text.split("\n")
    assert len(reader.values("src")) == len(list((tmp_path / "out").glob("*.png"))) == 2


def test_labels_tell_equal_optimizers_apart(two):
    same = comparison_of([two[0], two[0]])
    assert len(set(same.labels)) == 1  # the very same folder
    muon = {**config(coefficients="muon", outlier_quantile=None)}
    two[1].config.update(muon)
    assert comparison_of(two).labels[1] == "ROOT (muon, no threshold), lr 0.012"
    two[1].config.update(config(outlier_quantile="auto"))
    assert comparison_of(two).labels[1] == "ROOT (automatic threshold), lr 0.012"
    two[1].config.update(config(lr=0.5))
    assert [label.rpartition("/")[2] for label in comparison_of(two).labels] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "val/missing"}, r"got 'val/missing'.*'train/loss', 'val/loss'"),
        ({"labels": ["one"]}, "one label for each of the 2 runs, got 1"),
        ({"metric": "train/loss"}, r"'.*b' has \['val/loss'\]"),
    ],
)
def test_what_cannot_be_compared_is_an_error(two, options, message):
    with pytest.raises(ValueError, match=message):
        comparison_of(two, **options)


def test_importing_the_package_reads_and_draws_nothing():
    """torchmetrics imports matplotlib where it is installed; the readers are TensorBoard's."""
    code = "import json, sys, lightning_root; print(json.dumps(list(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = json.loads(result.stdout)
    unwanted = ("lightning_root.diagnostics.report", "tensorboard.backend")
    assert [name for name in modules if name.startswith(unwanted)] == []
