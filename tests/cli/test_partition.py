"""`partition`: the split of a model of any size, which is never allocated."""

import re
from functools import partial

import pytest
import torch

from lightning_root.partition import partition_parameters
from tests.cli.test_plan import HERE, Late, Llama, Net
from tests.integration.test_cli import PROJECT


@pytest.fixture
def run(call, monkeypatch):
    monkeypatch.chdir(PROJECT)
    return partial(call, "partition")


def test_a_model_of_270_gigabytes_is_split_anywhere(run):
    status, out, err = run(f"--model={HERE}.Llama")
    assert (status, err) == (0, "")
    with torch.device("meta"):
        assert out == f"{partition_parameters(Llama())}\n"
    assert "ROOT:  560 matrices, 68.5 B parameters" in out


@pytest.mark.parametrize("net", [Net, Late])
def test_it_is_the_split_of_the_model_in_memory(run, net):
    model = net()
    model.configure_model()
    rules = getattr(net, "root_options", {}).get("rules")
    for more in ([], ["--allocate"]):
        status, out, err = run(f"--model={HERE}.{net.__name__}", *more)
        assert (status, out, err) == (0, f"{partition_parameters(model, rules=rules)}\n", "")


def test_data_and_devices_of_the_run_are_not_needed(run):
    files = ["--config=configs/quickstart.yaml", "--config=configs/gpu.yaml"]
    status, out, err = run(*files, "--data.root=/nowhere", '--optimizer.rules={"head.*": "root"}')
    assert (status, err) == (0, "")
    assert "rule 'head.*'" in out


def test_a_model_that_needs_memory_is_made_in_memory_when_asked(run):
    status, out, err = run(f"--model={HERE}.Reading")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: the model cannot be made without memory \(.*\); .*\n", err)
    status, out, _ = run(f"--model={HERE}.Reading", "--allocate")
    assert status == 0
    assert "ROOT:  3 matrices" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=no.yaml"], "no.yaml"),
        (["--config={checkpoint}"], "`--config` must be a YAML file, got one that is no text"),
        (["--config={broken}"], "broken.yaml' at line 2, column 1: expected ',' or ']', but got"),
        (["--model=my.Net"], "'my.Net': No module named 'my'"),
        (["--model=torch.nn.Linear"], "subclass of LightningModule. Got value: torch.nn.Linear"),
        ([f"--model={HERE}.Net", "--optimizer=SGDD"], "no class is known by the name SGDD"),
        (
            [f"--model={HERE}.Net", "--optimizer=ROOT", "--optimizer.momentum=2"],
            "`momentum` must be in [0, 1)",
        ),
        ([f"--model={HERE}.Net", "--trainer.max_steps=x"], "max_steps"),
        (
            [f"--model={HERE}.Net", "--optimizer=ROOT", '--optimizer.rules={{"hed.*": "root"}}'],
            "'hed.*' matches none",
        ),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, arguments, words):
    checkpoint, broken = tmp_path / "last.ckpt", tmp_path / "broken.yaml"
    torch.save({"a": torch.ones(3)}, checkpoint)
    broken.write_text("model: [1\n")
    given = [argument.format(checkpoint=checkpoint, broken=broken) for argument in arguments]
    status, out, err = run(*given)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
