"""What a mutant changes is told rightly, the sample is fixed, and no survivor goes unseen."""

import json
import subprocess
import sys
import types

import pytest

from examples.benchmarks import mutants
from examples.benchmarks.mutating import order, runs
from examples.benchmarks.mutating.kinds import WORDING, Change, change, functions
from examples.benchmarks.mutating.runs import Mutant, Package
from lightning_root.coefficients.solver import greedy_schedule

ORIGINAL = '''
def x_f__mutmut_orig(a, b=2):
    """A law of f."""
    total = load(a, key="name") if not a else a + b
    total += 1
    if a < b and a:
        raise ValueError(f"`a` is {a}")
    return h(total, "a long sentence")
'''
CHANGES = [
    ("a + b", "a - b", "arithmetic"),
    ("a < b", "a <= b", "comparison"),
    (" and ", " or ", "and, or"),
    ("total += 1", "total += 2", "number"),
    ("b=2", "b=3", "number"),
    ('"name"', '"NAME"', "text"),
    ("load(a, key", "load(None, key", "argument becomes None"),
    ("load(a, ", "load(", "argument left out"),
    ("total += 1", "total = 1", "assignment"),
    ('load(a, key="name") if not a else a + b', "None", "value becomes None"),
    ("not a", "a", "not"),
    ("if not a else", "if (not a) or True else", "one branch only"),
    ('ValueError(f"`a` is {a}")', "ValueError(None)", WORDING),
    ("a long sentence", "A LONG SENTENCE", WORDING),
]


@pytest.mark.parametrize(("old", "new", "kind"), CHANGES)
def test_a_mutant_is_told_by_what_it_changes(tmp_path, old, new, kind):
    file = tmp_path / "f.py"
    mutant = ORIGINAL.replace(old, new).replace("__mutmut_orig", "__mutmut_1")
    file.write_text(ORIGINAL + mutant)
    found = change("x_f__mutmut_1", functions(file))
    assert found.kind == kind
    before, after = (text.replace('"', "'").replace("(not a)", "not a") for text in (old, new))
    assert before.strip() in found.old
    assert after.strip() in found.new
    assert "mutmut" not in found.new


def meta(folder, codes):
    """What mutmut leaves of one file: the outcomes, and the mutants beside the original."""
    package = folder / "mutants" / "lightning_root" / "functional"
    package.mkdir(parents=True, exist_ok=True)
    names = {f"lightning_root.functional.f.x_f__mutmut_{n}": code for n, code in codes.items()}
    (package / "f.py.meta").write_text(json.dumps({"exit_code_by_key": names}))
    made = [
        ORIGINAL.replace("a + b", f"a - {n}").replace("mutmut_orig", f"mutmut_{n}") for n in codes
    ]
    (package / "f.py").write_text(ORIGINAL + "".join(made))


@pytest.fixture
def mutmut(monkeypatch):
    """The one table that is asked of mutmut, which tests do without."""
    stats = types.ModuleType("mutmut.stats")
    stats.status_by_exit_code = {0: "survived", 1: "killed", 33: "no tests", None: "not checked"}
    monkeypatch.setitem(sys.modules, "mutmut", types.ModuleType("mutmut"))
    monkeypatch.setitem(sys.modules, "mutmut.stats", stats)


def test_a_sample_stays_the_same_when_other_mutants_come(tmp_path, mutmut):
    package = Package("functional", tmp_path)
    meta(tmp_path, dict.fromkeys(range(1, 41), None))
    first = [mutant.name for mutant in package.sample(40, seed=0)]
    assert first != sorted(first)
    assert first != [mutant.name for mutant in package.sample(40, seed=1)]
    assert [mutant.name for mutant in package.sample(10, seed=0)] == first[:10]
    meta(tmp_path, dict.fromkeys(range(1, 61), None))
    more = [mutant.name for mutant in package.sample(60, seed=0)]
    assert [name for name in more if name in first] == first


def test_survivors_meet_whole_folders_and_are_judged(tmp_path, mutmut, monkeypatch, capsys):
    """Four mutants: one dies at once, two in whole folders (or waits there), one is harmless."""
    tried, wholes = [], []

    def run(self, new, seconds):
        tried.append((sorted(mutant.name[-1] for mutant in new), seconds))
        meta(self.folder, {1: 1, 2: 0, 3: 0, 4: 33})

    def start(command, cwd, env, stdout, timeout):
        number = env["MUTANT_UNDER_TEST"][-1]
        wholes.append((number, [word for word in command if word.startswith("tests/")]))
        assert cwd == tmp_path / "functional" / "mutants"
        if number == "4":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, int(number == "2"))

    def generate(self):
        if not tried:
            meta(self.folder, dict.fromkeys("1234"))

    monkeypatch.setattr(Package, "generate", generate)
    monkeypatch.setattr(Package, "run", run)
    monkeypatch.setattr(runs.subprocess, "run", start)
    monkeypatch.setattr(mutants, "commit", lambda: "abc")
    monkeypatch.setattr(mutants, "version", lambda name: "3.8.1")
    monkeypatch.setattr(mutants, "HARMLESS", tmp_path / "harmless.toml")
    options = ["--packages", "functional", "--folder", str(tmp_path), "--output", str(tmp_path)]
    (tmp_path / "harmless.toml").write_text("# none yet\n")
    assert mutants.main(options) == 1
    assert tried == [(["1", "2", "3", "4"], 5.0)]
    folders = ["tests/functional", "tests/kernels", "tests/diagnostics"]
    assert sorted(wholes) == [(number, folders) for number in "234"]
    assert "4 mutants, 1 survivors not judged" in capsys.readouterr().out
    page = (tmp_path / "mutants.md").read_text()
    assert "**4 mutants: 3 noticed, 1 survived.**" in page
    assert "| functional | 2 | 1 | 1 |" in page
    [survivor] = [
        mutant
        for mutant in json.loads((tmp_path / "mutants.json").read_text())["mutants"]
        if mutant["outcome"] == "survived"
    ]
    assert survivor["function"] == "functional.f.f"
    judged = {"function": survivor["function"], "new": survivor["new"], "reason": "the same"}
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in judged.items())
    (tmp_path / "harmless.toml").write_text(f"[[harmless]]\n{text}\n")
    assert mutants.main(options) == 0
    assert len(tried) == 1 and len(wholes) == 3  # all is known
    assert "| the same |" in (tmp_path / "mutants.md").read_text()


def test_methods_are_named_with_their_class():
    name = "lightning_root.optim.root.xǁROOTǁstep__mutmut_3"
    mutant = Mutant(name, Change("number", "1", "2"), "killed")
    assert mutants.record("optim", mutant)["function"] == "optim.root.ROOT.step"


def test_the_quickest_tests_come_first_and_the_slow_ones_not_at_all(tmp_path, monkeypatch):
    seconds = {"slow": 9.0, "quick": 0.1, "middle": 1.0}
    (tmp_path / "mutmut-stats.json").write_text(json.dumps({"duration_by_test": seconds}))
    monkeypatch.chdir(tmp_path)
    left_out = []
    hook = types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    config = types.SimpleNamespace(hook=hook)

    def ordered(limit, mutant="a.x_f__mutmut_1"):
        monkeypatch.setenv("MUTANT_UNDER_TEST", mutant)
        monkeypatch.setenv(order.SECONDS, limit)
        items = [types.SimpleNamespace(nodeid=name) for name in seconds]
        order.pytest_collection_modifyitems(config, items)
        return [item.nodeid for item in items]

    assert ordered("2", mutant="stats") == ["slow", "quick", "middle"]
    assert ordered("inf") == ["quick", "middle", "slow"]
    assert not left_out
    assert ordered("2") == ["quick", "middle"]
    assert ordered("0") == ["quick"]


def test_what_the_unmutated_code_has_cached_is_forgotten():
    """A mutant below a cache would otherwise never be asked, and survive."""
    greedy_schedule(0.01, 3)
    assert greedy_schedule.cache_info().currsize
    order.forget()
    assert not greedy_schedule.cache_info().currsize
