"""`doctor` on a machine with NPUs: it names them and orthogonalizes on each."""

import json


def test_doctor_checks_every_npu(machine):
    printed = machine.run("-m", "lightning_root", "doctor", "--json")
    report = json.loads(printed[printed.index("\n{\n") :])  # torch_npu has words of its own before
    (npu,) = [device for device in report["devices"] if device["name"] == "npu"]
    checks = [check for check in report["orthogonalizer"] if check["device"].startswith("npu")]
    assert npu["problem"] is None
    assert {check["device"] for check in checks} == set(npu["usable"]) != set()
    assert all(check["error"] <= check["bound"] < 0.1 for check in checks)
