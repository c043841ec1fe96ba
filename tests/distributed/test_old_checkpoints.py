"""What two ranks of commit 9cd8273 saved, two ranks of today load; see the tests of `optim`."""

from dataclasses import replace

import pytest

from tests.optim.old_checkpoints.cases import (
    BEFORE,
    CASES,
    FOLDER,
    FOLDERS,
    LATER,
    ON_RANKS,
    begun,
    check_end,
    far,
    machine,
    read,
    unlike,
)

NO_STATE = {"state": {}, "param_groups": []}


def resumed(rank, ranks, name, folder):
    """What is there after loading, and after the rest of the steps.

    All options come from the checkpoint; but torch asks the optimizer for entries of FSDP2's state
    by name before, and in 8 bits there is one more.
    """
    own = {k: v for k, v in CASES[name].options.items() if k == "momentum_dtype"}
    run = begun(CASES[name], {"lr": 9.0, **own})
    if folder:
        run.load_folder(str(FOLDER / name))
    else:
        run.load(read(name))
    first = run.saved()
    run.steps(LATER)
    return first, run.saved()


def uninterrupted(rank, ranks, name):
    """What is there at the same two moments of a run without a pause."""
    run = begun(CASES[name])
    run.steps(range(BEFORE))
    first = run.saved()
    run.steps(LATER)
    return first, run.saved()


def taken_apart(rank, ranks, name):
    """What two ranks that keep a part of the state each make of a file of one process."""
    run = begun(replace(CASES[name], ranks="parts"), {"lr": 9.0})
    run.load(read(name))
    first = run.saved()
    run.steps(LATER)
    return first, run.saved()


def assert_same_weights(ranks):
    """Whoever has the state, all ranks have the same weights."""
    first, *others = [[{**saved, "optimizer": NO_STATE} for saved in moments] for moments in ranks]
    for other in others:
        for one, another in zip(first, other, strict=True):
            assert unlike(one, another) == []


@pytest.mark.parametrize(
    ("name", "folder"), [*((n, False) for n in ON_RANKS), *((n, True) for n in FOLDERS)]
)
def test_an_old_checkpoint_goes_on_as_a_run_without_a_pause(gloo_pool, name, folder):
    old = read(name)
    ranks = gloo_pool.run(resumed, name, folder)
    assert_same_weights(ranks)
    first, last = ranks[0]
    assert unlike(old, first) == []
    check_end(name, last)
    whole_first, whole_last = gloo_pool.run(uninterrupted, name)[0]
    starts_alike = not unlike(old, whole_first)
    assert starts_alike or old["machine"] != machine()
    if starts_alike:
        assert unlike(last, whole_last) == []
    assert far(CASES[name], last, whole_last) == {}


@pytest.mark.parametrize("name", ["plain", "views", "momentum_float8", "groups"])
def test_what_one_process_saved_goes_on_in_parts(gloo_pool, name):
    """To rounding: one process multiplies other matrices in one batch."""
    ranks = gloo_pool.run(taken_apart, name)
    assert_same_weights(ranks)
    first, last = ranks[0]
    assert unlike(read(name), first) == []
    check_end(name, last, exact=False)
