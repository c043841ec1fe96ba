"""`plan`: what each of N ranks would do, for a model of any size that is never allocated."""

import json
import re
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from lightning_root import ROOTMixin
from lightning_root.cli import main
from lightning_root.cli.plan import with_prefix
from lightning_root.distributed import plan_ownership, standard_operations
from tests.distributed.test_ownership import given_as
from tests.distributed.test_ownership import model as known_model
from tests.integration.test_cli import PROJECT, process


class Net(L.LightningModule):
    """Two matrices of 16 x 32 and one of 16 x 16; embedding and head are AdamW's."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.build()

    def build(self):
        self.embedding = nn.Embedding(10, self.width)
        self.up = nn.Linear(self.width, 2 * self.width)
        self.down = nn.Linear(2 * self.width, self.width)
        self.mix = nn.Linear(self.width, self.width)
        self.head = nn.Linear(self.width, 10)


class Late(ROOTMixin, Net):
    """Complete only after `configure_model`; its options are its own."""

    root_options = {"ns_steps": 3, "rules": {"mix.weight": "adamw"}}

    def build(self):
        pass

    def configure_model(self):
        Net.build(self)


class Reading(Net):
    """Its constructor looks at a number."""

    def build(self):
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        super().build()


class Llama(L.LightningModule):
    """The hidden matrices of Llama 3 70B by their sizes, 270 GB in float32."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(8192, 8192), (8192, 1024), (8192, 1024), (8192, 8192)]
        sizes += [(8192, 28672), (8192, 28672), (28672, 8192)]
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes) for _ in range(80)
        )
        self.head = nn.Linear(8192, 8)


class Heads(L.LightningModule):
    """Nothing for ROOT."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)


HERE = "tests.cli.test_plan"


@pytest.fixture
def run(call, monkeypatch):
    monkeypatch.chdir(PROJECT)
    return partial(call, "plan")


@pytest.fixture
def numbers(run):
    """What a call prints as JSON."""

    def call(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=pytest.fail)

    return call


def test_a_run_for_other_machines_and_without_its_data_is_planned(run):
    """The quick start on GPUs: 16 matrices of 192 x 192, 8 of 192 x 768, work 20 : 29."""
    files = ["--config=configs/quickstart.yaml", "--config=configs/gpu.yaml"]
    status, out, err = run(*files, "--data.root=/nowhere", "--ranks", "8", "2", "64")
    assert (status, err) == (0, "")
    assert out.startswith("GPT: 24 matrices of 2 shapes, 1.77 M parameters, 3.91 G operations in 5")
    two, eight, many = (line.split() for line in out.splitlines()[4:7])
    assert two == "2 12 1.95 G 1.000 1.000 3.54 MB 3.54 MB 3.54 MB 3.54 MB".split()
    assert eight == "8 3 488 M 1.000 1.000 6.19 MB 6.19 MB 1.55 MB 1.55 MB".split()
    assert many[:4] == ["64", "0", "to", "1"]
    assert float(many[6]) == pytest.approx(64 * 29 / (16 * 20 + 8 * 29), abs=1e-3)
    words = " ".join(out.split())
    assert "With 64 ranks the busiest has one 192x768 matrix and nothing else." in words
    assert f"more than {(16 * 20 + 8 * 29) / 29:.1f} times as fast as one" in words
    assert "fewer matrices than ranks with 64" in words


def test_a_model_of_270_gigabytes_is_planned_anywhere(numbers):
    printed = numbers(f"--model={HERE}.Llama", "--ranks", "8", "64")
    for entry in printed["plans"]:
        plan = plan_ownership(known_model("llama-3-70b"), entry["ranks"])
        assert sorted(entry["per_rank"]["operations"]) == sorted(plan.operations)
        assert entry["balance"] == plan.balance
        assert sum(entry["per_rank"]["matrices"]) == 560
        assert sum(entry["ddp"]["received"]) == pytest.approx(
            entry["ranks"] * entry["ddp"]["bytes_bound"]
        )
    assert printed["shapes"] == {"8192x8192": 160, "1024x8192": 160, "8192x28672": 240}


@pytest.mark.parametrize(
    ("options", "shapes", "steps"),
    [
        ([], [((16, 32), 2), ((16, 16), 1)], 5),
        (["--model.width=8"], [((8, 16), 2), ((8, 8), 1)], 5),
        (["--optimizer=ROOT", "--optimizer.ns_steps=4"], [((16, 32), 2), ((16, 16), 1)], 4),
        (["--optimizer=ROOT", "--steps=7"], [((16, 32), 2), ((16, 16), 1)], 7),
        (["--optimizer=AdamW"], [((16, 32), 2), ((16, 16), 1)], 5),
        (
            ["--optimizer=ROOT", '--optimizer.rules={"mix.weight": {"rows": 2}}'],
            [((16, 32), 2), ((8, 16), 2)],
            5,
        ),
    ],
)
def test_rules_and_steps_are_the_optimizers(numbers, options, shapes, steps):
    printed = numbers(f"--model={HERE}.Net", *options, "--ranks", "2")
    (entry,) = printed["plans"]
    plan = plan_ownership(given_as(shapes), 2, steps=steps)
    assert printed["steps"] == steps
    assert entry["operations"] == sum(plan.operations)
    assert entry["busiest"] == plan.busiest


def test_without_an_optimizer_the_mixin_has_options_and_the_model_is_completed(numbers):
    printed = numbers(f"--model={HERE}.Late", "--ranks=2")
    assert printed["steps"] == 3
    assert printed["shapes"] == {"16x32": 2}
    assert numbers(f"--model={HERE}.Late", "--optimizer=ROOT", "--ranks=2")["steps"] == 5


@pytest.mark.parametrize("options", [["--form=standard"], ["--optimizer.ns_form=standard"]])
def test_the_form_is_chosen_or_the_optimizers(numbers, options):
    printed = numbers(f"--model={HERE}.Net", "--optimizer=ROOT", *options, "--ranks=1")
    expected = 2 * standard_operations((16, 32), 5) + standard_operations((16, 16), 5)
    assert printed["plans"][0]["operations"] == expected


def test_half_the_bytes_travel_in_bfloat16(numbers):
    full = numbers(f"--model={HERE}.Net", "--ranks=3")["plans"][0]
    half = numbers(f"--model={HERE}.Net", "--ranks=3", "--dtype=bfloat16")["plans"][0]
    for strategy in ("ddp", "fsdp2"):
        for key in ("sent", "received"):
            assert full[strategy][key] == [2 * value for value in half[strategy][key]]


def test_the_configuration_that_a_run_has_saved_is_understood(numbers, tmp_path):
    """It holds the arguments of `fit`, too."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{class_path: {HERE}.Net}}\nckpt_path: null\nweights_only: null\n"
        "trainer: {accelerator: gpu, devices: 64, strategy: ddp}\nlr_scheduler_interval: step\n"
    )
    assert numbers(f"--config={config}", "--ranks=2")["shapes"] == {"16x32": 2, "16x16": 1}


def test_a_model_that_needs_memory_is_made_in_memory_when_asked(run):
    status, _, err = run(f"--model={HERE}.Reading", "--ranks=2")
    assert status == 2
    assert re.fullmatch(
        r"error: the model cannot be made without memory \(.*\); give `--allocate` .*\n", err
    )
    status, out, _ = run(f"--model={HERE}.Reading", "--ranks=2", "--allocate")
    assert status == 0
    assert "3 matrices of 2 shapes" in out


def test_the_loads_are_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "load.png"
    status, out, _ = run(f"--model={HERE}.Net", "--ranks", "2", "3", "100", "4", f"--plot={path}")
    assert status == 0
    assert out.endswith(f"load of each rank drawn to {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--model={HERE}.Net"], "the following arguments are required: --ranks"),
        (["--ranks=2"], "give the model, as `--config FILE` or `--model CLASS_PATH`"),
        ([f"--model={HERE}.Net", "--ranks=0"], "must be a whole number from 1 to 999999, got '0'"),
        ([f"--model={HERE}.Net", "--ranks=2", "--rank=2"], "--rank=2"),
        ([f"--model={HERE}.Nt", "--ranks=2"], f"'{HERE}.Nt'"),
        (["--config=no.yaml", "--ranks=2"], "no.yaml"),
        ([f"--model={HERE}.Heads", "--ranks=2"], "`Heads` has no matrix for ROOT"),
        ([f"--model={HERE}.Net", "--ranks=2", "--plot=x.txt"], "`--plot` must end in one of"),
        ([f"--model={HERE}.Net", "--ranks=2", "--steps=0"], "whole number from 1 to 99"),
    ],
)
def test_what_is_wrong_is_said(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err


def test_without_arguments_the_help_is_shown(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    status, help_text, _ = run("--help")
    assert status == 0
    assert err == help_text
    for option in ("--ranks", "--steps", "--form", "--dtype", "--allocate", "--plot", "--json"):
        assert option in help_text


def test_it_is_among_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert re.search(r"^    plan  +Plan which of N ranks", capsys.readouterr().out, re.MULTILINE)


def test_as_a_person_types_it():
    result = process(
        *("-m", "lightning_root", "plan", "--config", "configs/quickstart.yaml", "--ranks", "2"),
        *("--model.depth", "12", "--optimizer.ns_steps", "4"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "72 matrices of 2 shapes" in result.stdout
    assert "in 4 steps (cheapest form)" in result.stdout


def test_numbers_have_three_digits_and_a_prefix():
    found = with_prefix(1_234_567), with_prefix(999.6e9, "B"), with_prefix(12, "B")
    assert found == ("1.23 M", "1 TB", "12 B")
