"""Training on NPUs follows training on the CPU."""

import pytest
import torch

from tests.npu.programs import LIKE_A_CPU, Net

STEPS = {
    "exact": (LIKE_A_CPU, torch.float32),
    "sampled": ({**LIKE_A_CPU, "outlier_quantile_mode": "sampled"}, torch.float32),
    "float32": ({}, torch.float32),
    "bfloat16": ({}, torch.bfloat16),
}
ORDER_STATISTICS = {"sort", "kthvalue", "topk", "quantile", "histc", "median"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


@pytest.fixture(scope="module")
def single(machine):
    """12 steps on the CPU, on an NPU, and on both by turns."""
    return machine.call("single", str(machine.scratch))


@pytest.fixture(scope="module")
def optimizer(machine):
    """ROOT's steps; torch_npu raises where an operator of theirs would go to the CPU."""
    return machine.call("optimizer", STEPS, TORCH_NPU_FALLBACK_CPU_DISABLE="1")


def assert_same(weights, expected):
    """Up to rounding of float32, in sums of another order."""
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.device.type == "cpu"
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_on_one_npu_follows_that_on_the_cpu(single):
    start = dict(Net().named_parameters())
    assert all((weight - start[name]).abs().max() > 1e-3 for name, weight in single["cpu"].items())
    assert_same(single["npu"], single["cpu"])


def test_checkpoints_go_from_an_npu_to_the_cpu_and_back(single):
    assert_same(single["resumed"], single["cpu"])


def test_two_npus_that_see_the_same_do_what_one_does(machine, single):
    weights, means = machine.call("data_parallel", ranks=2)
    assert_same(weights, single["cpu"])
    assert means == [[0.5, 2.0], [2, 8]]  # HCCL itself has none of whole numbers


def test_sharded_training_does_what_one_does_also_from_a_checkpoint_in_shards(
    machine, single, tmp_path
):
    whole, resumed, files = machine.call("sharded", str(tmp_path / "shards"), ranks=2)
    assert_same(whole, single["cpu"])
    assert_same(resumed, single["cpu"])
    assert {"__0_0.distcp", "__1_0.distcp"} <= set(files)


def test_plain_precision_settings_reach_the_npu(single):
    """Lightning's own mixed precision is CUDA's: on an NPU, float32 without a word."""
    on = "npu:0"
    found, warned = single["precisions"]
    assert warned == []
    assert found == {
        "bf16-mixed": ("torch.bfloat16", on, "torch.float32", None),
        "16-mixed": ("torch.float16", on, "torch.float32", (True, "npu")),
        "bf16-true": ("torch.bfloat16", on, "torch.bfloat16", None),
        "32-true": ("torch.float32", on, "torch.float32", None),
    }


@pytest.mark.parametrize("model", ["gpt", "cnn"])
@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_a_step_is_the_cpus_and_needs_no_operator_of_the_cpu(optimizer, mode, model):
    results = optimizer[0][mode]
    assert_same(results[model, "npu"], results[model, "cpu"])


@pytest.mark.parametrize("model", ["gpt", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_uses_dtypes_that_the_device_has(optimizer, dtype, model):
    """By Ascend's tables: no float64, order statistics in float32; products in bfloat16."""
    results = optimizer[0][dtype]
    used = results[model, "operators"].keys()
    assert not [entry for entry in used if entry[1] == "torch.float64"]
    selecting = {entry for entry in used if entry[0] in ORDER_STATISTICS}
    assert selecting == {("sort", "torch.float32")}
    assert {entry[1] for entry in used if entry[0] in PRODUCTS} == {"torch.bfloat16"}
    for name, weight in results[model, "npu"].items():
        error = (weight - results[model, "cpu"][name]).abs().max()
        assert error <= 5e-3, name  # of two updates of about 0.01 each, iterated in bfloat16


def test_the_emulation_does_not_invent_what_a_device_lacks(machine, optimizer):
    """Or else the tests that nothing of the kind is used could not fail."""
    if not machine.emulated:
        pytest.skip("is about the emulation")
    errors = optimizer[1]
    assert "sort does not take bfloat16" in errors["sort"]
    assert "mm does not take float64" in errors["mm"]
    assert "CPU fallback is disabled" in errors["eigh"]
    assert errors["cast"] == "torch.float32"
    assert "RmsNorm" in errors["fused"]
