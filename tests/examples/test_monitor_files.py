"""What `ROOTMonitor` promises, in the event files that the quick start leaves."""

import re
from itertools import product

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_root import ROOTMonitor
from lightning_root.cli import ROOTCLI
from tests.examples.test_quickstart import CONFIGS, TINY
from tests.sources import write_sources

STATISTICS = (
    *("orth_error", "outlier_fraction", "outlier_energy", "update_rms", "update_to_weight"),
    *("neuron_spread", "precondition_cosine", "precondition_condition"),
)
HISTOGRAMS = ("momentum_over_threshold", "log10_sigma_clipped_momentum", "log10_sigma_update")
SHAPES = ("32x32", "32x128")
MATRICES = (
    *(f"blocks.0.attention.qkv.weight/{number}" for number in range(3)),
    *("blocks.0.attention.output.weight", "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"),
)


def promised(text):
    """Tags between backticks, the braces of a shell expanded."""
    found = set()
    for written in re.findall(r"`(root/[^`]*)`", text):
        choices = [part.split(",") for part in re.split(r"[{}]", written)]
        found |= {"".join(parts) for parts in product(*choices)}
    return found


def test_braces_are_expanded():
    expected = {"root/a/mean", "root/a/max", "root/b"}
    assert promised("See `root/a/{mean,max}` and `root/b`, not `other`.") == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quick start with a tiny model, and its event files."""
    folder = write_sources(tmp_path_factory.mktemp("quickstart"))
    arguments = [
        *(f"--config={CONFIGS / 'quickstart.yaml'}", *TINY, f"--data.root={folder}"),
        *("--trainer.max_steps=20", "--trainer.val_check_interval=17"),
        "--optimizer.normalize=neuron",  # for the numbers that are only there with these two
        "--optimizer.precondition=auto",
        *("--trainer.log_every_n_steps=1", f"--trainer.logger.init_args.save_dir={folder}"),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["train.py"])
        cli = ROOTCLI(args=["fit", *arguments])
    every = {"images": 0, "scalars": 0, "histograms": 0, "tensors": 0}
    return cli, EventAccumulator(cli.trainer.log_dir, size_guidance=every).Reload()


def test_every_number_that_the_docstring_names_is_there_at_every_point(run):
    _, files = run
    tags = promised(ROOTMonitor.__doc__)
    assert len(tags) == 26  # 25 of all matrices, and an example of one of a parameter
    tags |= {f"root/{statistic}/{name}" for statistic, name in product(STATISTICS, MATRICES)}
    assert {tag for tag in files.Tags()["scalars"] if tag.startswith("root/")} == tags
    for tag in tags:
        assert [event.step for event in files.Scalars(tag)] == list(range(20)), tag


def test_pictures_are_drawn_after_a_validation_and_at_the_end(run):
    _, files = run
    names = ("orth_error", "outlier_energy", "update_rms", "update_to_weight")
    assert set(files.Tags()["images"]) == {f"root/heat_map/{name}" for name in names}
    for name in names:
        assert [event.step for event in files.Images(f"root/heat_map/{name}")] == [16, 19]


def test_histograms_are_of_every_shape_at_every_tenth_point(run):
    _, files = run
    tags = {f"root/{name}/{shape}" for name, shape in product(HISTOGRAMS, SHAPES)}
    assert set(files.Tags()["histograms"]) == tags
    for tag in tags:
        assert [event.step for event in files.Histograms(tag)] == [0, 10]


def test_texts_are_the_split_and_the_coefficients_in_use(run):
    cli, files = run
    texts = {}
    for name in ("partition", "coefficients"):
        (event,) = files.Tensors(f"root/{name}/text_summary")
        texts[name] = event.tensor_proto.string_val[0].decode()
    partition = cli.trainer.optimizers[0].partition
    assert all(route.name in texts["partition"] for route in partition.routes)
    assert all(
        f"    {shape.replace('x', ' x ')}: 5 steps" in texts["coefficients"] for shape in SHAPES
    )


def test_every_chart_of_the_layout_shows_a_curve(run):
    _, files = run
    (event,) = files.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert len(charts) == 15
    scalars = files.Tags()["scalars"]
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in scalars), chart.title
