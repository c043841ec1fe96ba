"""Checkpoints that the code of commit 9cd8273 wrote load, and training goes on from them.

Three laws for each. What is in the file is in the optimizer, bit for bit. From there it takes the
steps of a run that was never interrupted, bit for bit, which holds on every machine; but that run
has to be in the very state that the file holds, and on a processor with other instructions it may
be some last bits away. And it ends where the old code ended: exactly on the machine that wrote the
file, to rounding elsewhere.
"""

from dataclasses import replace

import pytest

from tests.optim.old_checkpoints.cases import (
    BEFORE,
    CASES,
    FOLDER,
    LATER,
    ON_RANKS,
    begun,
    check_end,
    far,
    machine,
    read,
    unlike,
)

pytestmark = pytest.mark.filterwarnings("ignore:ROOT got tensors without names")

ALONE = [name for name, case in CASES.items() if case.ranks == "one"]


def loaded(name, case=None):
    """A run that has loaded the file of a case; its options come from there."""
    run = begun(case or CASES[name], {"lr": 9.0})
    run.load(read(name))
    return run


def test_every_case_has_its_file_by_one_commit():
    assert {path.stem for path in FOLDER.glob("*.pt")} == set(CASES)
    assert {read(name)["commit"][:7] for name in CASES} == {"9cd8273"}
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".pt", ".distcp", "")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 400_000


@pytest.mark.parametrize("name", ALONE)
def test_all_of_an_old_checkpoint_is_taken_over(name):
    assert unlike(read(name), loaded(name).saved()) == []


@pytest.mark.parametrize("name", ALONE)
def test_steps_from_an_old_checkpoint_are_those_of_a_run_without_a_pause(name):
    run, whole = loaded(name), begun(CASES[name])
    whole.steps(range(BEFORE))
    starts_alike = not unlike(read(name), whole.saved())
    assert starts_alike or read(name)["machine"] != machine()
    run.steps(LATER)
    whole.steps(LATER)
    if starts_alike:
        assert unlike(run.saved(), whole.saved()) == []
    assert far(CASES[name], run.saved(), whole.saved()) == {}


@pytest.mark.parametrize("name", ALONE)
def test_steps_from_an_old_checkpoint_end_where_the_old_code_ended(name):
    run = loaded(name)
    run.steps(LATER)
    check_end(name, run.saved())


@pytest.mark.parametrize("name", ON_RANKS)
def test_what_two_ranks_saved_goes_on_on_one_process(name):
    """To rounding: one process multiplies other matrices in one batch."""
    run = loaded(name, replace(CASES[name], ranks="one"))
    assert unlike(read(name), run.saved()) == []
    run.steps(LATER)
    check_end(name, run.saved(), exact=False)


def test_a_parameter_whose_rule_has_changed_since_goes_on_under_the_one_it_was_saved_with():
    """Older versions took a layer for hidden that is known to be a head today."""
    old = read("plain")
    run = begun(CASES["plain"], {"lr": 9.0})
    groups = old["optimizer"]["param_groups"]
    root, adamw = groups[0], groups[1]
    key = dict(zip(adamw["param_names"], adamw["params"], strict=True))["head.weight"]
    average = old["optimizer"]["state"].pop(key)["exp_avg"]
    old["optimizer"]["state"][key] = {"momentum_buffer": average}
    for group, change in ((adamw, list.remove), (root, list.append)):
        change(group["params"], key)
        change(group["param_names"], "head.weight")
    with pytest.warns(UserWarning, match="1 parameters go on .*'head.weight' under `root`"):
        run.load(old)
    (route,) = [r for r in run.optimizer.partition.routes if r.name == "head.weight"]
    assert route.role == "root"
    run.steps(LATER)
    state = run.optimizer.state[run.model.head.weight]
    assert set(state) == {"momentum_buffer"} and not state["momentum_buffer"].equal(average)
    strict = begun(CASES["plain"], {"lr": 9.0, "rules": {"head.weight": "adamw"}})
    with pytest.raises(ValueError, match=r"from the rule `root`.*rules=\{'head.weight': 'root'\}"):
        strict.load(old)
