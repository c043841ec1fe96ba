"""`doctor`: what it finds, what it says about it, and that its check can fail."""

import json
import platform
from functools import partial

import pytest
import torch

from lightning_root.cli import doctor
from lightning_root.cli.doctor import SHAPE, check_device
from lightning_root.kernels import orthogonalize
from lightning_root.npu import runtime
from lightning_root.versions import Version


@pytest.fixture
def run(call):
    return partial(call, "doctor")


@pytest.fixture
def sound(monkeypatch):
    """Any machine on which the tests pass: versions and devices are as they should be."""
    monkeypatch.setattr(doctor, "packages", lambda: [])
    monkeypatch.setattr(doctor, "devices", lambda: [doctor.Device("cpu", "some chip", ("cpu",))])


def test_a_sound_machine_has_nothing_to_do(run, sound):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out.endswith("\nAll is well.\n")
    assert all(len(line) <= 100 for line in out.splitlines())


def test_what_this_machine_has_is_listed(run):
    status, out, _ = run()
    assert status in (0, 1)
    assert torch.__version__ in out
    for name in ("jsonargparse", "torch_npu", "cpu ", "cuda ", "npu ", "cache "):
        assert f"\n{name}" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_json_has_the_same(run, sound, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    (folder / "coefficients-2").mkdir(parents=True)
    (folder / "coefficients-2" / "a.json").touch()
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(folder))
    status, out, _ = run("--json")
    printed = json.loads(out, parse_constant=pytest.fail)
    assert status == 0
    assert printed["problems"] == []
    counts = {"failure": None, "coefficients": 1, "rates": 0}
    assert printed["cache"] == {"folder": str(folder), **counts}
    assert {check["form"] for check in printed["orthogonalizer"]} == {"standard", "gram", "eigh"}


def test_nothing_is_written(run, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path / "cache"))
    assert run()[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(run, sound, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path / "file"))
    status, out, _ = run()
    assert status == 1
    assert "\nTo do: cache folder: " in out
    assert "LIGHTNING_ROOT_CACHE" in out


def test_without_a_home_folder_the_other_answers_are_given(run, sound, monkeypatch):
    """As in a container whose user is in no list of users."""
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", "~nobody-of-that-name/cache")
    status, out, _ = run()
    assert status == 1
    assert "\ncache  ~nobody-of-that-name/cache cannot be written; 0 fitted sets" in out
    assert "\nTo do: cache folder: there is no home folder; until LIGHTNING_ROOT_CACHE names" in out
    printed = json.loads(run("--json")[1])
    assert printed["cache"]["folder"] == "~nobody-of-that-name/cache"


@pytest.mark.parametrize("device", ["cpu"])
def test_the_check_measures_the_distance_to_the_polar_factor(device):
    """The polar factor itself has no error; one that keeps the matrix or turns it has."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    exact = (left @ right).float()
    for check in check_device(device, lambda x, *_, **__: exact):
        assert check.error < 1e-6
        assert check.problem is None
    for wrong in (lambda x, *_, **__: -exact, lambda x, *_, **__: x / x.norm()):
        assert all("do not train" in check.problem for check in check_device(device, wrong))
    lost = check_device(device, lambda x, *_, **__: exact * float("nan"))
    assert all(check.error == float("inf") and check.problem for check in lost)


def test_an_error_on_a_device_is_reported_and_ends_nothing():
    def fails(*args, **options):
        raise RuntimeError("out of luck\nand a long trace")

    for check in check_device("cpu", fails):
        assert check.problem.endswith(": out of luck")


def test_the_bound_leaves_little_room():
    """A set of four steps, less accurate, would not pass for the one of five."""

    def shorter(matrix, triples, **options):
        return orthogonalize(matrix, triples[:-1], **options)

    assert all(check.problem is None for check in check_device("cpu"))
    assert all(check.problem is not None for check in check_device("cpu", shorter))


@pytest.mark.parametrize(
    ("version", "purpose", "note", "problem"),
    [
        (Version("a", "1.5", ">=1,<2"), None, "", None),
        (Version("a", "2.0", ">=1,<2"), None, "OUTSIDE", "a 2.0 is outside"),
        (Version("a", None, ">=1,<2"), None, "MISSING", "a is not installed: pip install 'a>=1"),
        (Version("a", None, ">=1,<2"), "x", "for x: lightning-root[b]", None),
        (Version("a", "0.9", ">=1,<2"), "x", "OUTSIDE", "a 0.9 is outside"),
    ],
)
def test_packages_are_marked(version, purpose, note, problem):
    package = doctor.Package(version, purpose, "b")
    assert package.note == note
    assert package.problem is None if problem is None else package.problem.startswith(problem)


@pytest.mark.parametrize(
    ("wheel", "sourced", "words", "to_do"),
    [
        (False, None, "none: no torch_npu, no CANN", False),
        (True, None, "none: torch_npu is there, no CANN", True),
        (True, "/opt/cann", "none: torch_npu is there, CANN sourced from /opt/cann", True),
    ],
)
def test_an_npu_is_missed_only_where_somebody_wants_one(monkeypatch, wheel, sourced, words, to_do):
    monkeypatch.setattr(runtime, "problem", lambda: "its reason; its cure")
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if wheel else None)
    monkeypatch.setattr(doctor, "CANN_FOLDERS", ())
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    if sourced:
        monkeypatch.setenv("ASCEND_HOME_PATH", sourced)
    found = doctor._npu()
    assert found.state == words
    assert found.problem == ("NPU: its reason; its cure" if to_do else None)


def test_cann_that_is_not_sourced_is_seen(monkeypatch, tmp_path):
    (tmp_path / "set_env.sh").touch()
    monkeypatch.setattr(doctor, "CANN_FOLDERS", (tmp_path,))
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    assert doctor._cann() == f"CANN in {tmp_path} is not sourced"


@pytest.mark.parametrize("driver", [False, True])
def test_a_gpu_is_missed_only_where_there_is_a_driver(monkeypatch, tmp_path, driver):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(doctor, "GPU_DRIVER", tmp_path if driver else tmp_path / "none")
    found = doctor._cuda()
    assert "is built without CUDA" in found.state
    assert (found.problem is not None) is driver
    assert not driver or "install torch's CUDA build" in found.problem


def test_gpus_are_listed_by_name(monkeypatch):
    names = ["H100", "A100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    expected = doctor.Device("cuda", "H100, A100; torch is built for 12.8", ("cuda:0", "cuda:1"))
    assert doctor._cuda() == expected


def test_a_gpu_that_torch_could_use_and_does_not_see_has_a_next_move(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(doctor, "GPU_DRIVER", tmp_path)
    found = doctor._cuda()
    assert (found.state, found.usable) == ("none: torch sees no GPU", ())
    assert "`nvidia-smi` must list one" in found.problem
    assert "as new as CUDA 12.8" in found.problem


def test_a_chip_that_tells_nothing_is_no_obstacle(monkeypatch):
    """On macOS and Windows there is no /proc/cpuinfo."""

    def missing(*_):
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    found = doctor._cpu()
    assert "the chip has what it does not tell" in found.state
    assert platform.machine() in found.state
    assert (found.usable, found.problem) == (("cpu",), None)
