"""An entry in the table of statistics is all that the monitor, the board and reports need."""

import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_root import ROOTMixin
from lightning_root.diagnostics import Measurements, ROOTMonitor, measure
from lightning_root.diagnostics.measurements import aggregates, by_label, per_parameter
from lightning_root.diagnostics.report import comparison_of, page_of, read_run, report_of
from lightning_root.diagnostics.statistics import (
    STATISTICS,
    Statistic,
    parameter_statistics,
    row_of,
)
from tests.integration.models import PlainNet, trainer

NAMES = ("body.0.weight", "body.1.weight")


class Net(ROOTMixin, PlainNet):
    """Two matrices, 12 x 10 and 10 x 12."""

    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 8}


def spread(stack):
    """Largest row norm of each matrix by the smallest, here of the momentum."""
    norms = stack.momentum.norm(dim=2)
    return norms.amax(dim=1) / norms.amin(dim=1)


@pytest.fixture
def neuron_spread(monkeypatch):
    def add(stage=None):
        entry = Statistic(
            name="neuron_spread",
            compute=spread,
            stage=stage,
            reductions=("mean", "max"),
            per_parameter=True,
            chart="spread of the rows, of all",
            heat_map="Spread of the rows",
            section="updates",
            title="Neuron spread",
            unit="largest / smallest",
            about="Neuron spread: the largest row by the smallest.",
            largest="most uneven",
        )
        monkeypatch.setitem(STATISTICS, "neuron_spread", entry)

    return add


@pytest.fixture
def logs(tmp_path):
    def train(name="run"):
        logger = TensorBoardLogger(tmp_path, name=name, version="")
        trainer(callbacks=[ROOTMonitor(2)], logger=logger).fit(Net())
        sizes = {"images": 0, "scalars": 0, "tensors": 0}
        return EventAccumulator(logger.log_dir, size_guidance=sizes).Reload(), tmp_path / name

    return train


def layout_of(events):
    """Regular expressions of the charts by category and title."""
    (event,) = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in found.category
    }


def text_of(page):
    """All that is said on a page."""
    return repr([page.cards, page.sections])


def test_a_new_entry_is_measured_logged_and_shown_everywhere(neuron_spread, logs):
    neuron_spread()
    events, folder = logs()
    tags = {f"root/neuron_spread/{of}" for of in ("mean", "max", *NAMES)}
    assert {t for t in events.Tags()["scalars"] if "neuron_spread" in t} == tags
    each = [events.Scalars(f"root/neuron_spread/{name}") for name in NAMES]
    for point, total in enumerate(events.Scalars("root/neuron_spread/mean")):
        values = [row[point].value for row in each]
        assert min(values) > 1.0
        assert total.value == pytest.approx(sum(values) / 2)
    assert "root/heat_map/neuron_spread" in events.Tags()["images"]
    charts = layout_of(events)
    (together,) = charts["ROOT: all matrices"]["spread of the rows, of all"]
    (apart,) = charts["ROOT: each parameter"]["spread of the rows"]
    assert {tag for tag in tags if re.match(together, tag)} == {
        "root/neuron_spread/mean",
        "root/neuron_spread/max",
    }
    assert {tag for tag in tags if re.match(apart, tag)} == {
        f"root/neuron_spread/{name}" for name in NAMES
    }
    shown = text_of(report_of(read_run(folder)))
    assert shown.count("Neuron spread: the largest row by the smallest.") == 2  # panel, heat map
    assert "most uneven" in shown
    assert "Other metrics" not in shown
    _, second = logs("second")
    compared = text_of(page_of(comparison_of([read_run(folder), read_run(second)])))
    assert "Neuron spread: the largest row by the smallest." in compared


def test_nothing_is_logged_drawn_or_counted_of_a_stage_that_is_off(neuron_spread, logs):
    plain, _ = logs("plain")
    neuron_spread(lambda group: group.get("normalize") == "neuron")
    events, folder = logs()
    assert set(events.Tags()["scalars"]) == set(plain.Tags()["scalars"])
    assert events.Tags()["images"] == plain.Tags()["images"]
    assert layout_of(events) == layout_of(plain)
    assert "Neuron spread" not in text_of(report_of(read_run(folder)))


def test_only_matrices_that_have_a_statistic_count(neuron_spread):
    """One NaN says that the stage is off; of statistics without a stage it is shown."""
    neuron_spread(lambda group: group.get("normalize") == "neuron")
    values = torch.ones(len(STATISTICS), 3)
    values[row_of("neuron_spread")] = torch.tensor([2.0, torch.nan, 4.0])
    values[row_of("cosine"), 1] = torch.nan
    found = Measurements((("a", 0), ("b", 0), ("c", 0)), values)
    numbers = aggregates(found)
    assert numbers["root/neuron_spread/mean"] == 3.0
    assert numbers["root/neuron_spread/max"] == 4.0
    assert numbers["root/cosine/mean"].isnan()
    each = per_parameter(by_label(found, ["a", "b", "c"]))
    spreads = {tag: value for tag, value in each.items() if "neuron_spread" in tag}
    assert spreads == {"root/neuron_spread/a": 2.0, "root/neuron_spread/c": 4.0}


def test_the_stage_is_told_by_the_options_of_the_group(neuron_spread):
    neuron_spread(lambda group: group.get("normalize") == "neuron")
    generator = torch.Generator().manual_seed(0)
    momentum = torch.randn(2, 5, 7, generator=generator)
    stack = SimpleNamespace(
        names=(("a", 0), ("a", 1)),
        group={"lr": 0.1},
        scales=(1.0, 1.0),
        momentum=momentum,
        clipped=momentum,
        update=momentum,
    )
    assert measure(stack)["neuron_spread"].isnan().all()
    stack.group["normalize"] = "neuron"
    torch.testing.assert_close(measure(stack)["neuron_spread"], spread(stack))


def test_the_help_of_the_monitor_names_everything_that_is_logged():
    for statistic in STATISTICS.values():
        assert (f"root/{statistic.name}/" in ROOTMonitor.__doc__) == bool(statistic.reductions)
    each = {name for name, statistic in STATISTICS.items() if statistic.per_parameter}
    assert each == set(re.split(", | and ", parameter_statistics()))
    assert parameter_statistics() in ROOTMonitor.__doc__
