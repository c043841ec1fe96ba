import contextlib
import copy
import json
import math
import sys
import threading
import types

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmarks import (
    against,
    near_shapes,
    orthogonalize,
    precondition,
    quantile,
    step,
)
from examples.benchmarks.speed import (
    forms,
    memory,
    muon,
    operations,
    selections,
    sets,
    step_page,
)
from examples.benchmarks.speed.clock import Times, clock_of, interleave, quartiles, speed
from examples.benchmarks.speed.forms import FORMS, published
from examples.benchmarks.speed.machine import Limits
from examples.benchmarks.speed.memory import PROCESS, allocated, grown, peak_memory
from examples.benchmarks.speed.muon import FairMuon, PlainMuon
from examples.benchmarks.speed.operations import matrix_size, work
from examples.benchmarks.speed.optimizers import (
    BASELINE,
    OPTIMIZERS,
    OURS,
    Entry,
    on_gpus,
    usual,
)
from examples.benchmarks.speed.selections import SELECTIONS
from examples.benchmarks.speed.sets import SETS

CPU = torch.device("cpu")
TRIPLES = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (2.8366, -3.0525, 1.2012))
SHAPES = [(6, 10), (10, 6), (6, 10), (8, 8), (4, 3, 2, 2), (6, 10)]


def polynomial_of(matrix, triples):
    """The iteration by the singular value decomposition, in numpy and float64."""
    left, sigma, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    sigma = sigma / np.linalg.norm(sigma)
    for a, b, c in triples:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return (left * sigma) @ right


def textbook_muon(weight, gradients, lr, weight_decay, momentum):
    """K. Jordan's rule with a heavy ball and a look-ahead, in numpy and float64."""
    shape, weight = weight.shape, weight.reshape(len(weight), -1)
    buffer = np.zeros_like(weight)
    for gradient in gradients:
        gradient = gradient.reshape(weight.shape)
        buffer = momentum * buffer + gradient
        update = polynomial_of(gradient + momentum * buffer, ((3.4445, -4.7750, 2.0315),) * 5)
        weight = (1 - lr * weight_decay) * weight
        weight = weight - lr * 0.2 * math.sqrt(max(weight.shape)) * update
    return weight.reshape(shape)


@pytest.mark.parametrize(
    ("kind", "stacked"),
    [(FairMuon, 0), (FairMuon, 60), (FairMuon, 1 << 30), (PlainMuon, 0)],
    ids=["singly", "some", "all", "plain"],
)
def test_the_baseline_is_the_textbook_muon_however_it_stacks(monkeypatch, kind, stacked):
    monkeypatch.setattr(muon, "CACHED", stacked)
    parameters = sets.make_parameters(SHAPES, torch.float32, CPU)
    before = [parameter.detach().double().numpy() for parameter in parameters]
    gradients = [sets.make_gradients(SHAPES, seed, torch.float32, CPU) for seed in range(3)]
    optimizer = kind(parameters, lr=0.1, weight_decay=0.5, momentum=0.9)
    for step_gradients in gradients:
        for parameter, gradient in zip(parameters, step_gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for number, parameter in enumerate(parameters):
        history = [g[number].double().numpy() for g in gradients]
        expected = textbook_muon(before[number], history, 0.1, 0.5, 0.9)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=2e-5)  # float32
        assert torch.equal(parameter.grad, gradients[-1][number])


@pytest.mark.parametrize(("cached", "sizes"), [(0, [1] * 6), (130, [2, 2, 1, 1]), (240, [4, 1, 1])])
def test_a_stack_holds_no_more_than_the_cache(monkeypatch, cached, sizes):
    monkeypatch.setattr(muon, "CACHED", cached)
    stacks = list(muon._stacks(sets.make_parameters(SHAPES, torch.float32, CPU)))
    assert sorted(map(len, stacks), reverse=True) == sizes


@pytest.mark.parametrize("kind", [FairMuon, PlainMuon])
def test_the_baseline_keeps_float32_state_for_bfloat16_parameters(kind):
    (parameter,) = sets.make_parameters([(6, 10)], torch.bfloat16, CPU)
    before = parameter.detach().double().numpy()
    (parameter.grad,) = sets.make_gradients([(6, 10)], 0, torch.bfloat16, CPU)
    optimizer = kind([parameter], lr=0.1, weight_decay=0.0)
    optimizer.step()
    assert optimizer.state[parameter]["momentum_buffer"].dtype == torch.float32
    expected = textbook_muon(before, [parameter.grad.double().numpy()], 0.1, 0.0, 0.95)
    np.testing.assert_allclose(parameter.detach().double().numpy(), expected, atol=4e-3)  # 8 bits


@pytest.mark.parametrize("shape", [(24, 24), (24, 80), (3, 8, 12)])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_evaluates_the_polynomial(name, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stack = matrix if matrix.ndim == 3 else matrix[None]
    expected = np.stack([polynomial_of(single, TRIPLES) for single in stack]).reshape(shape)
    result = FORMS[name].run(matrix, TRIPLES)
    assert result.shape == shape
    assert orthogonalize.error(result, torch.from_numpy(expected)) < 1e-5


def counted(function, *arguments):
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def gram_iteration(x, steps):
    """The iteration in Gram space, coefficients left out: only its products count."""
    gram, total = x @ x.mT, None
    for number in range(steps):
        polynomial = gram + gram @ gram
        total = polynomial if total is None else polynomial @ total
        if number < steps - 1:
            gram = polynomial @ (gram @ polynomial)
    return total @ x


@pytest.mark.parametrize(("m", "n", "steps"), [(8, 8, 1), (8, 20, 5), (16, 24, 3)])
def test_operations_are_those_that_torch_counts(m, n, steps):
    x = torch.randn(m, n)
    assert counted(published, x, TRIPLES[:1] * steps) == operations.standard(m, n, steps)
    assert counted(gram_iteration, x, steps) == operations.gram(m, n, steps)


def test_symmetric_products_and_restarts_by_hand():
    # m = 2, n = 3, T = 2: XX' 2*4*3 = 24, (XX')^2 16, times X 24.
    assert operations.standard(2, 3, 2) == 2 * (24 + 16 + 24)
    assert operations.standard_symmetric(2, 3, 2) == 2 * (12 + 8 + 24)
    # R = XX' 12; first step R^2 8, P R and (P R) P 16; second step R^2 8, P2 P1 8; times X 24.
    assert operations.gram_symmetric(2, 3, 2) == 12 + (8 + 16) + (8 + 8) + 24
    # A restart after the first of two steps is two iterations of one step each.
    assert operations.gram(2, 3, 2, restarts=1) == 2 * operations.gram(2, 3, 1)


def test_work_of_a_set_by_hand():
    """64x256 transposed or not, T = 5: standard 5 (4 * 2^20 + 2 * 2^18); Gram, symmetric, least."""
    found = work([(64, 256), (256, 8, 2, 4)], itemsize=2)
    assert found.published == 2 * 5 * (4 * 2**20 + 2 * 2**18)
    assert found.cheapest == 2 * (3 * 2**20 + 17 * 2**18)
    assert found.traffic == 2 * 2**14 * (4 * 4 + 3 * 2)
    limits = Limits(products={"float32": {8: 1e3, 16: 2e3}, "bfloat16": {8: 1e2}}, bandwidth=5e2)
    assert found.floor(limits) == pytest.approx(found.cheapest / 2e3 + found.traffic / 5e2)
    assert limits.rate("bfloat16") == 1e2


@pytest.mark.parametrize(
    ("name", "elements", "gflop"),
    [
        # GPT-2 small: 12 * 12 * 768^2 hidden weights, 4 and 12 layers; ResNet-18: 11.17 M in
        # convolutions, as torchvision has them.
        ("gpt2", 4 * 12 * 768**2, 507.3),
        ("gpt2-124m", 84_934_656, 3 * 507.3),
        ("vit", 5_898_240, 56.6),
        ("small", 200 * 64 * 256, 4.72),
        ("conv", 11_166_912, 103.7),
        ("llama", 2 * (4 * 4096**2 + 3 * 4096 * 11008), None),
    ],
)
def test_sets_are_the_models_they_say(name, elements, gflop):
    chosen = SETS[name]
    assert chosen.elements == elements
    if gflop is not None:
        assert work(chosen.shapes).published / 1e9 == pytest.approx(gflop, rel=1e-3)


def test_the_largest_stack_is_that_of_the_most_frequent_size():
    # 2 + 1 matrices of 6x10 in either direction against one of 8x8 and one of 4x12.
    assert sets.ParameterSet("", tuple(SHAPES)).largest_stack == 4 * 4 * 60
    assert matrix_size((4, 3, 2, 2)) == (4, 12)


def test_gradients_differ_by_seed_and_have_loud_columns():
    first, again, other = (
        sets.make_gradients([(200, 40)], seed, torch.float32, CPU)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.norm(dim=0).max() > 5 * first.norm(dim=0).median()
    even = first / first.norm(dim=0)
    assert even.norm(dim=1).max() < 2 * even.norm(dim=1).median()


def test_the_peak_of_memory_is_the_most_that_lives_at_a_time():
    """4 MiB kept; beside it 1 MiB, then 2 MiB after that is freed; views cost nothing."""
    before = torch.ones(1 << 18)

    def run():
        kept = torch.zeros(1 << 20)
        before.add(1)
        view = kept[: 1 << 19].view(2, -1)
        view.mul_(2)
        return float((view + 1).sum())

    assert peak_memory(run, CPU) == pytest.approx(6 << 20, abs=256)
    assert peak_memory(lambda: before.add_(1), CPU) < 256


@pytest.mark.skipif(not PROCESS.joinpath("clear_refs").exists(), reason="Linux tells it")
def test_growth_of_the_process_sees_other_threads():
    """32 MiB here and 32 in another thread, which the profiler does not see."""

    def run():
        kept = [torch.zeros(1 << 23)]
        thread = threading.Thread(target=lambda: kept.append(torch.ones(1 << 23)))
        thread.start()
        thread.join()

    run()
    assert grown(run) == pytest.approx(64 << 20, rel=0.1)
    assert allocated(run) == pytest.approx(32 << 20, rel=0.1)


def test_where_the_system_does_not_tell_there_is_no_growth(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    assert grown(list) is None


def test_every_round_runs_everything_once_after_its_preparation():
    calls, prepared = [], []
    runs = {name: lambda name=name: calls.append(name) for name in "abcd"}

    def prepare(name, number):
        assert len(prepared) == len(calls)
        prepared.append((name, number))

    times = interleave(runs, 6, device=CPU, prepare=prepare)
    assert [name for name, _ in prepared] == calls
    assert [number for _, number in prepared] == [number for number in range(6) for _ in range(4)]
    rounds = [tuple(calls[start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 1
    assert {len(t.cpu) for t in times.values()} == {len(t.wall) for t in times.values()} == {6}


def test_speeds_are_ratios_within_a_round():
    """A round in which the machine is ten times slower changes no ratio."""
    baseline, fast = Times(cpu=[2.0, 20.0, 2.0]), Times(cpu=[1.0, 10.0, 1.0])
    assert speed(fast, baseline, "cpu") == (2.0, 2.0, 2.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 9.0]) == (2.0, 3.0, 4.0)


def test_cpu_time_is_read_on_one_thread_of_a_cpu_only():
    assert clock_of(CPU, 1) == "cpu"
    assert clock_of(CPU, 2) == clock_of(torch.device("cuda"), 1) == "wall"


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_finds_the_quantile_of_numpy(name):
    matrix = quantile.heavy_tailed(40, 25, torch.Generator().manual_seed(3))
    magnitudes = np.abs(matrix.double().numpy())
    exact = [np.quantile(magnitudes, 0.9, method=way) for way in ("linear", "nearest")]
    found = SELECTIONS[name].run(matrix, 0.9).item()
    assert min(abs(found / value - 1) for value in exact) < 1e-6


def test_kinds_of_matrices_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    heavy = quantile.heavy_tailed(300, 300, generator).flatten().numpy()
    assert stats.kstest(heavy, stats.t(df=2).cdf).pvalue > 0.01
    loud = quantile.loud(200, 64, generator).square().mean(0).sqrt()
    assert torch.equal(loud > 5, torch.arange(64) % 16 == 0)
    share = quantile.clipped_share(torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor(2.5))
    assert share == 0.5


def test_matrices_of_low_rank_are_of_low_rank():
    matrices = orthogonalize.make_matrices((3, 16, 24), 0, torch.float32, CPU)
    assert matrices["full"].shape == matrices["low"].shape == (3, 16, 24)
    assert torch.linalg.matrix_rank(matrices["low"]).tolist() == [4] * 3
    assert torch.linalg.matrix_rank(matrices["full"]).tolist() == [16] * 3


class Meddler(torch.optim.SGD):
    """Updates, then changes gradients in place and drops them, as some optimizers do."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.zero_()
                parameter.grad = None


class Still(torch.optim.SGD):
    """Does nothing, which would be the fastest."""

    def step(self, closure=None):
        pass


def test_no_optimizer_sees_what_another_did_to_the_gradients(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "meddler", Entry("Meddler", Meddler))
    contest = step.Contest(SETS["tiny"], [BASELINE, "meddler"], torch.float32, CPU, seed=0)
    assert list(contest.optimizers) == [BASELINE, "meddler"]
    assert all(float(gradient.abs().max()) == 0 for gradient in contest.gradient)
    for name, optimizer in contest.optimizers.items():
        contest.load(name, 4)
        parameters = optimizer.param_groups[0]["params"]
        for parameter, expected in zip(parameters, contest.gradients[1], strict=True):
            assert torch.equal(parameter.grad, expected)
            assert float(expected.abs().max()) > 0


def test_an_optimizer_that_does_nothing_is_not_timed(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "still", Entry("Still", Still))
    contest = step.Contest(SETS["tiny"], [BASELINE, "still"], torch.float32, CPU, seed=0)
    assert list(contest.optimizers) == [BASELINE]
    assert contest.missing == {"still": "RuntimeError: it left parameters as they were"}


def test_all_begin_with_equal_parameters_of_their_own(monkeypatch):
    monkeypatch.setattr(step, "WARM_UP", 1)
    for name, flat in (("sgd", False), ("sgd-flat", True)):
        monkeypatch.setitem(OPTIMIZERS, name, Entry(name, torch.optim.SGD, matrices=flat))
    contest = step.Contest(SETS["tiny"], ["sgd", "sgd-flat"], torch.float32, CPU, seed=0)
    own, flat = (o.param_groups[0]["params"] for o in contest.optimizers.values())
    for one, other, shape in zip(own, flat, SETS["tiny"].shapes, strict=True):
        assert one.shape == shape
        assert other.ndim == 2
        assert one.data_ptr() != other.data_ptr()
        assert torch.equal(one.flatten(1), other)  # after one step with the same gradient
        assert one.grad.data_ptr() == other.grad.data_ptr()


def test_a_peer_that_fails_is_left_out_by_name_but_ours_is_an_error(monkeypatch):
    def fail(parameters):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(OPTIMIZERS, "torch-muon", Entry("Muon", fail))
    contest = step.Contest(SETS["tiny"], [BASELINE, "torch-muon"], torch.float32, CPU, seed=0)
    assert list(contest.optimizers) == [BASELINE]
    assert contest.missing == {"torch-muon": "RuntimeError: no compiler"}
    monkeypatch.setitem(OPTIMIZERS, "root", Entry("ROOT", fail))
    with pytest.raises(RuntimeError, match="no compiler"):
        step.Contest(SETS["tiny"], [BASELINE, "root"], torch.float32, CPU, seed=0)


def test_peers_are_given_what_they_want(monkeypatch):
    """Stand-ins for the packages: they see the options, and the same options as ours."""
    seen = {}

    def stand_in(name):
        def muon_of(params, lr, weight_decay, **options):
            seen[name] = (lr, weight_decay, options)
            return torch.optim.SGD(params, lr=1.0)

        return types.SimpleNamespace(Muon=muon_of)

    for name in ("pytorch_optimizer", "heavyball"):
        monkeypatch.setitem(sys.modules, name, stand_in(name))
    names = ["pytorch-optimizer", "heavyball"]
    contest = step.Contest(SETS["tiny"], names, torch.float32, CPU, seed=0)
    assert list(contest.optimizers) == names
    assert seen["pytorch_optimizer"] == (1e-3, 0.1, {"use_adjusted_lr": True})
    assert seen["heavyball"][:2] == (1e-3, 0.1)


def run(module, folder, *arguments):
    """What a benchmark writes: the page's text, and its numbers."""
    name = module.MODULE.rpartition(".")[2]
    module.main(["--quick", "--output", str(folder), *arguments])
    text = (folder / f"{name}.md").read_text("utf-8")
    return text, json.loads((folder / f"{name}.json").read_text("utf-8"))


def table_after(text, heading):
    """Cells of the first table below a heading."""
    below = text.partition(f"{heading}\n")[2].splitlines()
    start = next(i for i, line in enumerate(below) if line.startswith("|"))
    rows = []
    for line in below[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[0], rows[2:]


@pytest.fixture(scope="module")
def step_results(tmp_path_factory):
    hidden = dict.fromkeys(("pytorch_optimizer", "heavyball"))  # as if not installed
    with pytest.MonkeyPatch.context() as patch:
        for name in hidden:
            patch.setitem(sys.modules, name, None)
        return run(step, tmp_path_factory.mktemp("step"))


def test_the_step_page_shows_the_numbers_of_the_json(step_results):
    text, numbers = step_results
    head, rows = table_after(text, "## tiny")
    optimizers = numbers["sets"]["tiny"]["optimizers"]
    assert [row[0] for row in rows] == [OPTIMIZERS[name].title for name in optimizers]
    for cells, row in zip(rows, optimizers.values(), strict=True):
        assert float(cells[head.index("CPU ms")]) == pytest.approx(
            1e3 * float(np.median(row["cpu"])), rel=0.01
        )
        ratios = np.array(optimizers[BASELINE]["cpu"]) / np.array(row["cpu"])
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        assert cells[head.index("speed")] == f"{median:.2f} ({low:.2f} to {high:.2f})"
        assert row["peak"] >= 0
        assert len(row["cpu"]) == len(row["wall"]) == numbers["about"]["rounds"] == 3


def test_the_share_of_the_floor_is_the_floor_over_the_time(step_results):
    _, numbers = step_results
    values = numbers["sets"]["tiny"]
    limits = numbers["limits"]
    rate = max(r for sizes in limits["products"].values() for r in sizes.values())
    floor = values["cheapest"] / rate + values["traffic"] / limits["bandwidth"]
    assert values["floor"] == pytest.approx(floor)
    for name, row in values["optimizers"].items():
        if OPTIMIZERS[name].products:
            assert row["floor_share"] == pytest.approx(floor / np.median(row["cpu"]))
        else:
            assert row["floor_share"] is None


def test_the_share_of_the_threshold_is_that_of_the_rounds(step_results):
    text, numbers = step_results
    values = numbers["sets"]["tiny"]
    times = [np.array(values["optimizers"][n]["cpu"]) for n in ("root", "root-no-threshold")]
    expected = np.quantile(1 - times[1] / times[0], (0.25, 0.5, 0.75))
    np.testing.assert_allclose(values["threshold_share"], expected, atol=1e-12)
    assert table_after(text, "## What the threshold costs")[1][0][0] == "tiny"


def test_the_share_of_muons_time_is_that_of_the_rounds(step_results):
    text, numbers = step_results
    rows = numbers["sets"]["tiny"]["optimizers"]
    _, body = table_after(text, "## ROOT's time as a share of Muon's")
    for cell, other in zip(body[-1][1:], ("muon", "muon-plain", "torch-muon"), strict=True):
        expected = np.median(np.array(rows["root"]["cpu"]) / np.array(rows[other]["cpu"]))
        assert float(cell.split()[0]) == pytest.approx(expected, abs=0.005)


def test_a_limit_of_the_cpus_instructions_is_part_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    text, _ = run(step, tmp_path, "--rounds", "1", "--optimizers", "root")
    assert "\n    ONEDNN_MAX_CPU_ISA=AVX512_CORE python -m examples.benchmarks.step --quick" in text


@pytest.mark.parametrize(("passed", "said"), [(1.04, False), (1.5, True)])
def test_the_step_page_says_when_the_machine_was_shared(step_results, passed, said):
    numbers = copy.deepcopy(step_results[1])
    for row in numbers["sets"]["tiny"]["optimizers"].values():
        row["wall"] = [passed * seconds for seconds in row["cpu"]]
    text = step_page.page_text(numbers)
    assert ("Other programs were running" in text) == said
    assert ("50 % more than the CPU time" in text) == said


def test_padding_with_zeros_changes_no_update():
    """Against the polynomial of the singular values of each matrix as it is."""
    generator = torch.Generator().manual_seed(3)
    stacks = [torch.randn(shape, generator=generator) for shape in ((2, 5, 9), (1, 4, 7))]
    triples = ((3.0, -3.2, 1.2), (1.5, -0.5, 0.0))
    for way in (near_shapes.by_shape, near_shapes.padded):
        for stack, updates in zip(stacks, way(stacks, triples), strict=True):
            for matrix, update in zip(stack, updates, strict=True):
                np.testing.assert_allclose(update, polynomial_of(matrix, triples), atol=1e-5)


def test_the_page_of_near_shapes(tmp_path):
    text, numbers = run(near_shapes, tmp_path)
    ((name, values),) = numbers["sets"].items()
    times = [np.array(values["times"][way]["cpu"]) for way in ("by shape", "padded")]
    np.testing.assert_allclose(values["speed"][1], np.median(times[0] / times[1]))
    assert table_after(text, "disturb least.\n")[1][0][0] == name


def test_the_step_page_says_command_machine_and_who_is_missing(step_results):
    text, numbers = step_results
    assert "python -m examples.benchmarks.step --quick" in text
    assert numbers["about"]["date"] in text
    assert f"torch {torch.__version__}" in text
    assert "1 thread;" in text
    assert "a trial, not a measurement" in text
    missing = text.partition("Left out:")[2]
    assert "HeavyBall's Muon: not installed" in missing
    assert "pytorch-optimizer's Muon: not installed" in missing
    assert set(numbers["sets"]["tiny"]["missing"]) == {"pytorch-optimizer", "heavyball"}
    assert "nan" not in text.lower().split()


def test_every_option_of_ours_is_a_column(step_results):
    _, numbers = step_results
    found = set(numbers["sets"]["tiny"]["optimizers"])
    assert found >= set(OURS) - {"root-float32"}  # what "auto" is on a CPU


def test_bfloat16_parameters_and_chosen_optimizers(tmp_path):
    chosen = ["--dtype", "bfloat16", "--optimizers", "root", "adamw-fused"]
    text, numbers = run(step, tmp_path, *chosen, "--rounds", "1")
    values = numbers["sets"]["tiny"]
    assert list(values["optimizers"]) == [BASELINE, "root", "adamw-fused"]
    assert values["bytes"] == 2 * values["elements"]
    assert "bfloat16 parameters" in text
    assert "Not measured: it takes ROOT with the threshold and without." in text
    assert "Left out" not in text


def test_the_page_of_forms_shows_the_numbers_of_the_json(tmp_path):
    text, numbers = run(orthogonalize, tmp_path)
    for values in numbers["shapes"]:
        head, rows = table_after(text, "## " + "x".join(map(str, values["shape"])))
        assert [row[0].strip("`") for row in rows] == list(FORMS)
        batch, m, n = math.prod(values["shape"][:-2]), *values["shape"][-2:]
        for cells, (name, row) in zip(rows, values["forms"].items(), strict=True):
            assert row["seconds"] == pytest.approx(float(np.median(row["cpu"])))
            assert row["operations"] == batch * FORMS[name].operations(m, n, 5)
            best = max(numbers["limits"]["products"]["float32"].values())
            assert row["peak_share"] == pytest.approx(row["operations"] / row["seconds"] / best)
            assert float(cells[head.index("ms")]) == pytest.approx(1e3 * row["seconds"], rel=0.01)
            through_gram = name in ("ours, gram", "ours, eigh")
            assert max(row["error"].values()) < (1e-2 if through_gram else 1e-4)  # float32


def test_the_page_of_selections_shows_the_numbers_of_the_json(tmp_path):
    text, numbers = run(quantile, tmp_path)
    _, rows = table_after(text, "## Nanoseconds an element")
    assert [row[0].strip("`") for row in rows] == list(SELECTIONS)
    for column, values in enumerate(numbers["shapes"], start=1):
        for cells, row in zip(rows, values["selections"].values(), strict=True):
            expected = 1e9 * float(np.median(row["cpu"])) / values["elements"]
            assert row["nanoseconds"] == pytest.approx(expected)
            assert float(cells[column]) == pytest.approx(expected, rel=0.01)
            for share in row["clipped"].values():
                assert share == pytest.approx(0.1, abs=1.5 / values["elements"] + 1e-9)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (step, ["--rounds", "0"], "`--rounds` must be at least 1, got 0"),
        (step, ["--device", "meta"], "`--device` must be cpu or cuda, got meta"),
        (step, ["--sets", "bert"], "invalid choice: 'bert'"),
        (step, ["--optimizers", "root-graph"], "root-graph: for GPUs only; give `--device cuda`"),
        (quantile, ["--threads", "0"], "`--threads` must be at least 1, got 0"),
        (orthogonalize, ["--shapes", "768"], "a shape is written 768x3072, a stack 200x64x256"),
        (orthogonalize, ["--shapes", "8xa"], "got '8xa'"),
        (orthogonalize, ["--shapes", "8x0"], "got '8x0'"),
    ],
)
def test_a_wrong_option_is_explained(module, arguments, message, capsys):
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert message in capsys.readouterr().err


def test_what_does_not_fit_into_memory_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr(step.os, "sysconf", lambda name: 1 << 15)  # 1 GiB
    with pytest.raises(SystemExit):
        step.main(["--sets", "tiny", "llama", "--optimizers", "root"])
    assert "optimizers on these sets may need" in capsys.readouterr().err


def test_shapes_are_read_smaller_size_first():
    assert orthogonalize.shape_option("3072x768") == (768, 3072)
    assert orthogonalize.shape_option("200x256x64") == (200, 64, 256)


def test_operations_of_our_forms_are_those_that_are_executed():
    """Counted by hand; 384 rows are computed in four blocks of 96, so ten of sixteen products."""
    assert forms.symmetric_share(64) == 1.0
    assert forms.symmetric_share(384) == 10 / 16
    small, large = (64, 256), (384, 768)
    assert forms.executed_standard(*small, 5) == operations.standard(*small, 5)
    assert forms.executed_gram(*small, 5) == operations.gram(*small, 5)
    product, half = 2 * 384**3, 10 / 16
    ends = product * 2 * (half + 1)
    assert forms.executed_gram(*large, 5) == pytest.approx(ends + product * (13 * half + 4))
    assert forms.executed_eigh(*large, 5) == pytest.approx(ends + product * (half + 4.5))


@pytest.mark.parametrize("module", [step, orthogonalize, quantile])
def test_without_a_gpu_one_is_refused(module, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        module.main(["--device", "cuda"])
    assert "`--device cuda`: torch finds no GPU here" in capsys.readouterr().err


def test_kernels_are_columns_on_gpus_only(monkeypatch):
    gpu = torch.device("cuda")
    for module in (forms, selections):
        monkeypatch.setattr(module, "can_run", lambda device: True)
    assert set(forms.forms_for(gpu)) - set(forms.forms_for(CPU)) == {"ours, kernels"}
    assert set(selections.selections_for(gpu)) - set(SELECTIONS) == {"sampled, kernel"}
    assert set(usual(gpu)) - set(usual(CPU)) == {*on_gpus(), "root-float32"}


def test_a_graph_is_captured_in_the_second_step_and_replayed(monkeypatch):
    """What is captured is not run, so the second step replays it at once."""
    replays = []
    graph = types.SimpleNamespace(replay=lambda: replays.append(1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda found: contextlib.nullcontext(found))
    parameters = sets.make_parameters(SETS["tiny"].shapes, torch.float32, CPU)
    optimizer = OPTIMIZERS["root-graph"].build(parameters)
    for number in range(4):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert len(replays) == number


def test_a_checkout_is_stepped_in_turns_with_itself(tmp_path):
    assert against.main([str(against.HERE), "--quick", "--output", str(tmp_path)]) == 0
    (result,) = json.loads((tmp_path / "against.json").read_text())["sets"].values()
    assert {name: len(times) for name, times in result["times"].items()} == {
        "here": 3,
        "other": 3,
        "here again": 3,
    }
    assert against.ratio({"a": [2.0, 4.0], "b": [1.0, 2.0]}, "a", "b") == [2.0, 2.0, 2.0]
    assert "200 matrices of 64x256" in (tmp_path / "against.md").read_text()


def test_preconditioned_steps_are_timed_and_their_state_is_counted(tmp_path, monkeypatch):
    """State by hand: one number, and s (s + 1) of a side; with soap also s^2 and m n."""
    monkeypatch.setitem(SETS, "small", sets.ParameterSet("two of 4x6", ((4, 6), (6, 4))))
    assert precondition.main(["--quick", "--rounds", "1", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "precondition.json").read_text())["sets"]["small"]
    assert set(found["seconds"]) == set(found["state"]) == set(precondition.VARIANTS)
    assert all(len(times) == 1 and times[0] > 0 for times in found["seconds"].values())
    covariance, soap = (1 + 4 * 5) / 24, (1 + 4 * 5 + 4 * 4 + 4 * 6) / 24
    both = (1 + 4 * 5 + 6 * 7) / 24
    expected = dict(
        zip(precondition.VARIANTS, (0, covariance, covariance, both, soap), strict=True)
    )
    assert found["state"] == pytest.approx(expected)
    assert "| two of 4x6 | auto |" in (tmp_path / "precondition.md").read_text()
