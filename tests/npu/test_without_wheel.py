"""What needs no torch_npu: names in Lightning's registries, `devices`, and why there is no NPU."""

import importlib
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import StrategyRegistry

import lightning_root
from lightning_root import (
    NPUAccelerator,
    NPUDDPStrategy,
    NPUModelParallelStrategy,
    NPUShardedDDPStrategy,
    ShardedDDPStrategy,
    SingleNPUStrategy,
)
from lightning_root.npu import runtime, strategies

STRATEGIES = {
    "npu_single": SingleNPUStrategy,
    "npu_ddp": NPUDDPStrategy,
    "npu_fsdp2": NPUModelParallelStrategy,
    "npu_ddp_sharded_state": NPUShardedDDPStrategy,
}


@pytest.fixture
def forgetful():
    """Ask for torch_npu anew, here and in the next test."""
    runtime._loading_problem.cache_clear()
    yield
    runtime._loading_problem.cache_clear()


@pytest.fixture
def without(monkeypatch, forgetful):
    """A machine without torch_npu, also where the tests run on one that has it."""
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)


@pytest.fixture
def failing(monkeypatch, forgetful):
    """A machine on which importing torch_npu raises what it is given."""

    def make(error):
        def import_module(name):
            raise error

        monkeypatch.setattr(runtime, "find_spec", lambda name: object())
        monkeypatch.setattr(runtime.importlib, "import_module", import_module)

    return make


class Device:
    """What is asked of `torch.npu`."""

    def __init__(self, count=8, bfloat16=True):
        self.count, self.bfloat16 = count, bfloat16

    def device_count(self):
        return self.count

    def is_bf16_supported(self):
        return self.bfloat16

    def get_device_name(self):
        return "Ascend910A"


@pytest.fixture
def with_devices(monkeypatch):
    """A machine on which torch_npu is loaded, with so many devices."""

    def make(count=8, **options):
        device = Device(count, **options)
        monkeypatch.setattr(runtime, "_loading_problem", lambda: None)
        monkeypatch.setattr(torch, "get_device_module", lambda name: device)

    return make


# ---- names ----


def test_lightning_knows_the_accelerator_and_the_strategies():
    assert AcceleratorRegistry["npu"]["accelerator"] is NPUAccelerator
    assert {name: StrategyRegistry[name]["strategy"] for name in STRATEGIES} == STRATEGIES
    assert StrategyRegistry["ddp_sharded_state"]["strategy"] is ShardedDDPStrategy


SEPARATELY = """
from importlib.util import find_spec
find_spec("pytorch_lightning")  # as those do who only ask whether it is there
import lightning_root, pytorch_lightning as pl
from pytorch_lightning.accelerators import AcceleratorRegistry
assert "torch_npu" not in sys.modules
accelerator = AcceleratorRegistry["npu"]["accelerator"]
assert issubclass(accelerator, pl.accelerators.Accelerator), accelerator
bases = {"npu_single": "SingleDevice", "npu_ddp": "DDP", "npu_fsdp2": "ModelParallel"}
bases |= {"npu_ddp_sharded_state": "DDP", "ddp_sharded_state": "DDP"}
for name, base in bases.items():
    strategy = pl.strategies.StrategyRegistry[name]["strategy"]
    assert issubclass(strategy, getattr(pl.strategies, base + "Strategy")), strategy
try:
    pl.Trainer(accelerator="cpu", strategy="npu_single")
except ValueError as error:
    assert "accelerator: npu" in str(error)
else:
    raise AssertionError("it was not refused")
"""


@pytest.mark.parametrize("imports", ["import pytorch_lightning", "import lightning_root"])
def test_pytorch_lightning_knows_them_too_whichever_is_imported_first(imports, tmp_path):
    """Also: a torch_npu that cannot be imported does no harm to `import lightning_root`."""
    package = tmp_path / "torch_npu"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    start = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{imports}"
    program = start + SEPARATELY
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


PLAIN_COMMAND_LINE = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
LightningCLI(BoringModel, save_config_callback=None)
"""


def test_any_class_path_of_the_package_makes_the_names_known():
    """With Lightning's own command line, in a program that does not import the package."""
    options = ["--optimizer=lightning_root.ROOT", "--trainer.accelerator=npu"]
    strategy = "--trainer.strategy=npu_ddp"
    command = [sys.executable, "-c", PLAIN_COMMAND_LINE, "fit", *options, strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "`accelerator: npu` cannot be used: torch_npu" in done.stderr


# ---- why there is none ----


def message(error, **options):
    with pytest.raises(error) as caught:
        Trainer(logger=False, **options)
    return str(caught.value)


def test_without_torch_npu_the_message_names_the_release_to_install(without):
    release = torch.__version__.split("+")[0]
    text = message(RuntimeError, accelerator="npu")
    assert text.startswith("`accelerator: npu` cannot be used: torch_npu is not installed")
    assert f"torch-npu=={release}" in text


def test_asking_whether_there_is_one_never_raises(without):
    assert not NPUAccelerator.is_available()
    assert NPUAccelerator.auto_device_count() == 0


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libhccl.so: cannot open shared object file: No such file or directory"),
        Exception("ASCEND_OPP_PATH is not set. Please run 'source set_env.sh'"),
    ],
)
def test_without_cann_the_message_says_what_to_source(failing, error):
    failing(error)
    text = message(RuntimeError, accelerator="npu")
    assert str(error) in text
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in text


def test_any_other_failure_is_shown_with_its_kind(failing):
    failing(OSError("undefined symbol: _ZN3c10"))
    text = message(RuntimeError, accelerator="npu")
    assert "OSError: undefined symbol" in text
    assert "same release" in text


def test_torch_npu_is_imported_once_however_often_it_fails(failing):
    failing(ImportError("first"))
    first = runtime.problem()
    failing(ImportError("second"))
    assert runtime.problem() == first


def test_a_torch_for_another_accelerator_is_refused_before_torch_npu_is_imported(
    monkeypatch, failing
):
    """torch_npu 2.13 would end the process beside a torch for CUDA."""
    failing(AssertionError("it was imported"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert "is built for cuda" in message(RuntimeError, accelerator="npu")
    assert "CPU build" in runtime.problem()


def test_no_device_is_told_apart_from_hidden_devices(with_devices, monkeypatch):
    with_devices(0)
    monkeypatch.delenv(runtime.VISIBLE_DEVICES, raising=False)
    assert "npu-smi info" in message(RuntimeError, accelerator="npu")
    monkeypatch.setenv(runtime.VISIBLE_DEVICES, "9")
    assert "ASCEND_RT_VISIBLE_DEVICES='9'" in message(RuntimeError, accelerator="npu")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_for_npus_refuses_another_accelerator(name):
    """`accelerator: auto` ends here too: it never takes an NPU."""
    text = message(ValueError, accelerator="cpu", strategy=name)
    assert STRATEGIES[name].__name__ in text
    assert "`cpu`" in text
    assert "set `accelerator: npu`" in text


# ---- devices ----


@pytest.mark.parametrize(
    ("given", "indices"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ("auto", [0, 1, 2, 3]),
        ("2", [0, 1]),
        ("2,", [2]),
        (" 3, 1", [3, 1]),
        ([2], [2]),
        ((3, 0), [3, 0]),
    ],
)
def test_devices_are_read_as_lightning_reads_them_for_gpus(with_devices, given, indices):
    with_devices(4)
    assert NPUAccelerator.parse_devices(given) == indices


@pytest.mark.parametrize("given", [0, "0", [], [1, 1], "1,1", "one", -2, "-3"])
def test_devices_that_name_none_or_one_twice_are_refused(with_devices, given):
    with_devices(4)
    with pytest.raises(ValueError, match="`devices` must be"):
        NPUAccelerator.parse_devices(given)


@pytest.mark.parametrize("given", [True, 1.0, None, [True], ["0"], {"0": 1}])
def test_devices_of_another_kind_are_refused(with_devices, given):
    with_devices(4)
    with pytest.raises(TypeError, match="`devices` must be"):
        NPUAccelerator.parse_devices(given)


@pytest.mark.parametrize("given", [5, [4], "0,4", [-1]])
def test_devices_that_are_not_there_are_refused_with_what_is_visible(
    with_devices, given, monkeypatch
):
    with_devices(4)
    monkeypatch.setenv(runtime.VISIBLE_DEVICES, "0,1,2,3")
    with pytest.raises(ValueError, match=r"sees 4, numbered from 0 \(ASCEND_.* is '0,1,2,3'\)"):
        NPUAccelerator.parse_devices(given)


# ---- precision ----


def test_mixed_precision_of_lightning_becomes_that_of_npus(with_devices):
    with_devices()
    plugin = strategies.on_npu(MixedPrecision("bf16-mixed", "cuda"))
    assert plugin.device == "npu"


@pytest.mark.parametrize(
    ("plugin", "instead"),
    [
        (lambda: MixedPrecision("bf16-mixed", "cuda"), "16-mixed"),
        (lambda: HalfPrecision("bf16-true"), "16-true"),
    ],
)
def test_bfloat16_on_a_chip_without_it_is_refused(with_devices, plugin, instead):
    with_devices(bfloat16=False)
    with pytest.raises(ValueError, match=f"Ascend910A, which has no bfloat16.*use {instead}"):
        strategies.on_npu(plugin())


def test_importing_the_package_leaves_one_waiting_finder_at_most():
    importlib.import_module("lightning_root.npu.registration")
    waiting = [f for f in sys.meta_path if type(f).__name__ == "_OtherPackageFinder"]
    assert len(waiting) <= 1


def test_the_public_names_are_at_the_top():
    names = {"NPUAccelerator", "SingleNPUStrategy", "NPUDDPStrategy", "NPUModelParallelStrategy"}
    assert names <= set(lightning_root.__all__)
