"""What the accelerator finds on a machine, and what it refuses to do in silence."""

import re

import pytest

ONE = {"accelerator": "npu", "devices": 1}
SINGLE = {**ONE, "strategy": "npu_single"}
REFUSED = {
    "auto": (ONE, "would train on the device `cpu`.*set `strategy: npu_single`"),
    "ddp": ({**ONE, "strategy": "ddp"}, "`DDPStrategy` does not know NPUs"),
    "two on one": ({**SINGLE, "devices": 2}, "`npu_single` trains on one NPU.*`devices` gives 2"),
    "too many": ({**ONE, "devices": 99}, "`devices` must name NPUs that are there, got 99"),
    "twice": ({**ONE, "devices": [0, 0]}, "each once and at least one"),
    "float64": ({**SINGLE, "precision": "64-true"}, "casts to float64 give float32 there"),
    "shards": (
        {**ONE, "strategy": "npu_fsdp2", "precision": "16-mixed"},
        "`precision` must not be 16-mixed with `NPUModelParallelStrategy`",
    ),
    "comm_hook": (ONE, "`ddp_comm_hook` is not supported on NPUs"),  # the program adds the hook
}
BFLOAT16 = {
    "bf16-mixed": {**SINGLE, "precision": "bf16-mixed"},
    "bf16-true": {**SINGLE, "precision": "bf16-true"},
}


@pytest.fixture(scope="module")
def found(machine):
    cases = {name: options for name, (options, _) in REFUSED.items()}
    return machine.call("facts_and_refusals", cases)


@pytest.fixture(scope="module")
def facts(found):
    return found[0]


@pytest.fixture(scope="module")
def refusals(found):
    return found[1]


def test_the_npus_are_found(facts, machine):
    count = facts["count"]
    assert facts["available"]
    assert count == 2 if machine.emulated else count >= 1
    everything = list(range(count))
    assert facts["parsed"] == {
        "1": [0],
        "-1": everything,
        "auto": everything,
        "[0]": [0],
    }
    assert facts["devices"] == ["npu:0"]
    if machine.emulated:  # as a 910B
        assert facts["iteration"] == "torch.bfloat16"


def test_the_monitor_of_devices_is_told_about_memory(facts):
    stats = facts["stats"]
    assert stats["allocated_bytes.all.current"] >= facts["bytes"]
    assert 0 < stats["memory.free"] < stats["memory.total"]


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_falls_back_in_silence(refusals, name):
    assert name in refusals, "it trained"
    kind, message = refusals[name]
    assert kind == "ValueError"
    assert re.search(REFUSED[name][1], message), message


def test_hidden_devices_are_not_counted(emulated):
    hidden = emulated.call("facts", ASCEND_RT_VISIBLE_DEVICES="1")
    assert hidden["count"] == 1
    assert hidden["parsed"]["-1"] == [0]  # the one that is left has the first number


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"EMULATED_NPUS": "0"}, "sees no device; `npu-smi info` must list one"),
        (
            {"LD_LIBRARY_PATH": None, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
            "libhccl.so: cannot open shared object file.*source /usr/local/Ascend",
        ),
    ],
)
def test_the_trainer_says_why_there_is_none(emulated, changes, text):
    problem, available, (kind, message) = emulated.call("reason", **changes)
    assert not available
    assert kind == "RuntimeError"
    assert message == f"`accelerator: npu` cannot be used: {problem}"
    assert re.search(text, message), message


def test_a_chip_without_bfloat16_refuses_it_and_is_not_used_for_it(emulated):
    """Its autocast would compute in float32 and say nothing."""
    chip = {"EMULATED_SOC": "Ascend910A"}
    refused, iteration = emulated.call("old_chip", BFLOAT16, **chip)
    assert {kind for kind, _ in refused.values()} == {"ValueError"}
    assert "Ascend910A, which has no bfloat16" in refused["bf16-mixed"][1]
    assert refused["bf16-mixed"][1].endswith("use 16-mixed")
    assert refused["bf16-true"][1].endswith("use 16-true")
    assert iteration == "torch.float32"
