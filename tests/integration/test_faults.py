"""What goes wrong on real machines ends in continued training, or in one clear error."""

import copy
import errno
import io
import json
import os
import re
import threading
import time
import warnings
from typing import ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_root import ROOT, AtomicCheckpointIO, ROOTMixin, ROOTMonitor, lookup
from lightning_root.binder import notes_of
from lightning_root.cli import entry
from lightning_root.coefficients import (
    Coefficients,
    SpectrumHistogram,
    load_coefficients,
    load_spectra,
    save_coefficients,
    save_spectra,
    store,
)
from lightning_root.diagnostics import ROOTRefit
from lightning_root.diagnostics.training import SuppressLogWriteErrors
from lightning_root.kernels import rates
from lightning_root.strategies import ShardedDDPStrategy
from tests.integration.models import PlainNet, ShardedNet, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

WITHOUT_HOME = "~nobody-of-that-name/cache"


class Net(ROOTMixin, PlainNet):
    root_options = {"lr": 1e-2, "warmup_steps": 2, "max_steps": 8}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def trained(optimizer_class=ROOT, named=True, **options):
    model = net()
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = optimizer_class(parameters, **options)
    model(torch.ones(4, 6)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def nested(values, path=()):
    """Every place in plain values."""
    yield path
    if isinstance(values, dict | list):
        children = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in children:
            yield from nested(value, (*path, key))


def replaced(values, path, new):
    """The values with another one at a place."""
    if not path:
        return new
    values = copy.copy(values)
    values[path[0]] = replaced(values[path[0]], path[1:], new)
    return values


HOSTILE = [None, True, "triples", -1, 10**400, 1e300, float("inf"), float("nan"), [], [[]], {}]


def hostile(path, read):
    """Put each hostile value at each place of a JSON file, and the file in other bad states."""
    good = path.read_bytes()
    values = json.loads(good)
    texts = [
        json.dumps(replaced(values, place, bad)) for place in nested(values) for bad in HOSTILE
    ]
    cut = [good[: len(good) * share // 4] for share in range(4)]
    others = [bytes(100), b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, *cut]
    for content in [*(text.encode() for text in texts), *others]:
        path.write_bytes(content)
        yield content, read


@pytest.mark.parametrize("kind", ["coefficients", "spectra"])
def test_a_damaged_file_is_refused_with_its_name_or_holds_what_it_should(tmp_path, kind):
    path = tmp_path / "own.json"
    if kind == "coefficients":
        save_coefficients(path, [Coefficients.from_json(lookup((6, 8), "muon", 2).to_json())])
        read, entry = load_coefficients, Coefficients
    else:
        histogram = SpectrumHistogram([0] * 236 + [1, 2, 0, 1], 1)
        save_spectra(path, {(6, 8): histogram})
        read, entry = (lambda path: list(load_spectra(path).values())), SpectrumHistogram
    refused = 0
    for _, load in hostile(path, read):
        try:
            found = load(path)
        except ValueError as error:
            refused += 1
            assert "own.json" in str(error)
            assert len(str(error)) < 2000
        else:
            assert all(type(one) is entry for one in found)
            assert all(str(one) for one in found)
    assert refused > 40


def test_damaged_kept_measurements_are_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "measure", lambda: rates.DEFAULT_RATES)
    path = rates.rates_file(1)
    monkeypatch.setattr(rates, "known", {})
    assert rates.rates(1) == rates.DEFAULT_RATES
    for _, _ in hostile(path, None):
        monkeypatch.setattr(rates, "known", {})
        found = rates.rates(1)
        assert all(1e-3 < x < 1e6 for x in (*found.eigh, *found.symmetric, *found.fused))


REAL_CLOCK = time.perf_counter


@pytest.mark.parametrize("clock", [lambda: 1.0, lambda: -REAL_CLOCK()], ids=["still", "backwards"])
def test_a_clock_that_stands_still_or_runs_backwards_ends_no_step(tmp_path, monkeypatch, clock):
    monkeypatch.setenv("LIGHTNING_ROOT_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "known", {})
    monkeypatch.setattr(rates, "_MAX_ROUNDS", 5)
    monkeypatch.setattr(rates, "SIZES", rates.SIZES[:2])
    for name in ("thread_time", "perf_counter"):
        monkeypatch.setattr(time, name, clock)
    model, _ = trained()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    monkeypatch.undo()


def test_no_home_folder_and_a_full_disk_cost_nothing_but_the_cache(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = dict(store.known)
    expected = lookup((3, 77), "paper").triples
    for folder in (WITHOUT_HOME, str(tmp_path)):
        monkeypatch.setenv("LIGHTNING_ROOT_CACHE", folder)
        monkeypatch.setattr(rates, "known", {})
        store.known.clear()
        with monkeypatch.context() as disk:
            disk.setattr("pathlib.Path.write_text", full)
            assert rates.rates(1) == rates.DEFAULT_RATES
            assert lookup((3, 77), "paper").triples == expected
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.known.clear()
    store.known.update(before)


def test_a_race_for_one_cache_file_leaves_one_whole_file(tmp_path):
    path, entry = tmp_path / "own.json", lookup((6, 8), "muon", 2)
    save_coefficients(path, [entry])
    errors = []

    def work(write):
        try:
            for _ in range(40):
                save_coefficients(path, [entry]) if write else load_coefficients(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert load_coefficients(path)[0].triples == entry.triples
    assert os.listdir(tmp_path) == ["own.json"]


def damaged_states():
    _, optimizer = trained()
    state = optimizer.state_dict()
    group, matrix = state["param_groups"][0], state["param_groups"][0]["params"][0]
    names = {"param_groups": [dict(g) for g in state["param_groups"]]}

    def with_group(**changes):
        groups = [{**group, **changes}, *state["param_groups"][1:]]
        return {**state, "param_groups": groups}

    def with_state(**changes):
        return {**state, "state": {**state["state"], matrix: changes}}

    adam = trained(torch.optim.Adam, named=False)[1].state_dict()
    split = {
        **state,
        "param_groups": [
            {**adam["param_groups"][0], "params": g["params"]} for g in names["param_groups"]
        ],
    }
    return {
        "Adam": (adam, "not ROOT's"),
        "AdamW with names": (trained(torch.optim.AdamW)[1].state_dict(), "not ROOT's"),
        "Adam in as many groups": (split, "not ROOT's"),
        "nothing": ({}, "not an optimizer's"),
        "no state": ({"param_groups": state["param_groups"]}, "not an optimizer's"),
        "words for groups": ({**state, "param_groups": ["a"]}, "no parameter group"),
        "a name fewer": (
            with_group(param_names=group["param_names"][:-1]),
            f"has {len(group['params']) - 1} names for {len(group['params'])} param",
        ),
        "a group fewer": ({**state, "param_groups": []}, "does not belong"),
        "a later option value": (with_group(ns_form="quantum"), "version.*`ns_form`"),
        "garbled lr": (with_group(lr=float("nan")), "version.*`lr`"),
        "garbled coefficients": (with_group(coefficients='{"6x8'), "`coefficients` are damaged"),
        "deep coefficients": (with_group(coefficients='{"a":' * 10**5), "are damaged"),
        "other sizes": (with_state(momentum_buffer=torch.ones(1, 6)), r"shape \(1, 6\)"),
        "no tensor": (with_state(momentum_buffer="zeros"), "is no tensor"),
        "other rule": (with_state(exp_avg=torch.ones(8, 6)), "from the rule `adamw`"),
    }


@pytest.mark.parametrize("name", damaged_states())
def test_a_foreign_or_damaged_state_is_refused_whole(name):
    given, message = damaged_states()[name]
    model, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(given)
    after = optimizer.state_dict()
    assert str(after) == str(before)
    model(torch.ones(4, 6)).sum().backward()
    optimizer.step()


def test_options_of_a_later_version_are_no_obstacle():
    model, optimizer = trained()
    state = optimizer.state_dict()
    state["param_groups"] = [{**group, "later": 1} for group in state["param_groups"]]
    state["later"] = {"a": 1}
    optimizer.load_state_dict(state)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def checkpointed(folder, **options):
    """A Trainer that saves every step, with everything that has state."""
    return trainer(
        callbacks=[
            ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, filename="{step}"),
            ROOTMonitor(1),
            ROOTRefit(2, save=options.pop("save", False)),
        ],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        **options,
    )


class Poisoned(ROOTMixin, ShardedNet):
    """Some gradients are not finite, on one rank each: step 2 on rank 1, step 4 on rank 0."""

    root_options = Net.root_options
    poison: ClassVar = {2: (1, "body.0.weight", float("nan")), 4: (0, "head.bias", float("inf"))}

    def configure_model(self):
        if self.device_mesh is not None:
            ShardedNet.configure_model(self)
        elif not hasattr(self, "head"):
            PlainNet.build(self)

    def backward(self, loss):
        """DDP averages while this runs, so its gradients are spoiled on their way there."""
        rank, name, value = self.poison.get(self.global_step, (None, None, None))
        mine = rank == self.global_rank and self.device_mesh is None
        hooked = dict(self.named_parameters())[name] if mine else None
        hook = hooked.register_hook(lambda g: g * value) if mine else None
        super().backward(loss)
        if hook is not None:
            hook.remove()

    def on_before_optimizer_step(self, optimizer):
        """FSDP2's are spoiled after that: what this rank holds, and no other."""
        rank, name, value = self.poison.get(self.global_step, (None, None, None))
        if rank == self.global_rank and self.device_mesh is not None:
            dict(self.named_parameters())[name].grad.to_local().fill_(value)


def poisoned_on_ranks(rank, ranks, sharded):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ddp = {"process_group_backend": "gloo"}
    strategy = ModelParallelStrategy(ranks, 1) if sharded else DDPStrategy(**ddp)
    fit, model = trainer(max_steps=6, strategy=strategy, devices=ranks), Poisoned()
    fit.fit(model)
    return dict(fit.optimizers[0].skipped), weights(model)


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_all_ranks_skip_what_one_rank_spoils(gloo_pool, sharded):
    (skipped, first), (others, second) = gloo_pool.run(poisoned_on_ranks, sharded)
    assert skipped == others == {"body.0.weight": 1, "head.bias": 1}
    for name, weight in first.items():
        assert weight.isfinite().all()
        assert torch.equal(weight, second[name])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpointed(folder, max_steps=3).fit(Net())
    return (folder / "last.ckpt").read_bytes()


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", ["half", "zeros", "empty", "text", "code", "code in state"])
def test_a_damaged_checkpoint_is_one_error_with_its_name_and_runs_nothing(
    tmp_path, checkpoint, damage
):
    target, path = tmp_path / "made", tmp_path / "bad.ckpt"
    content = torch.load(io.BytesIO(checkpoint), weights_only=True)
    content["optimizer_states"][0]["state"]["evil"] = Evil(target)
    path.write_bytes(
        {
            "half": checkpoint[: len(checkpoint) // 2],
            "zeros": bytes(len(checkpoint)),
            "empty": b"",
            "text": b"no checkpoint",
            "code": saved(Evil(target)),
            "code in state": saved(content),
        }[damage]
    )
    fit, model = checkpointed(tmp_path), Net()
    before = weights(model)
    with pytest.raises(ValueError, match=r"bad\.ckpt' (is|holds)"):
        fit.fit(model, ckpt_path=path)
    assert not target.exists()
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    assert path.exists()


def test_no_json_file_of_ours_is_ever_unpickled(tmp_path):
    target, path = tmp_path / "made", tmp_path / "evil.json"
    path.write_bytes(saved(Evil(target)))
    for load in (load_coefficients, load_spectra):
        with pytest.raises(ValueError, match=r"evil\.json` is not a JSON file"):
            load(path)
    with pytest.raises(ValueError, match=r"evil\.json"):
        ROOT(net().parameters(), coefficients=str(path))
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_callbacks_meet_damaged_states_with_a_warning_or_one_error(checkpoint):
    """Heat maps begin anew; a refit would be another run, so it is refused."""
    good = torch.load(io.BytesIO(checkpoint), weights_only=True)["callbacks"]
    history = good["ROOTMonitor"]["history"]
    for change in ({"_columns": "x"}, {"steps": None}, {"_pending": torch.ones(3)}, {"width": "a"}):
        monitor = ROOTMonitor()
        with pytest.warns(UserWarning, match="heat maps is damaged or of another version"):
            monitor.load_state_dict({"history": {**history, **change}})
        assert monitor.history.points == 0
    monitor = ROOTMonitor()
    monitor.load_state_dict({"history": {**history, "add": 1, "later": 2}})
    assert callable(monitor.history.add)
    assert monitor.history.points == history["points"] == 3
    memory = good["ROOTRefit"]["memory"]
    for change in ({"memory": 3}, {"memory": {"axb": {}}}, {"steps": "x"}, {"captures": None}):
        callback = ROOTRefit()
        with pytest.raises(ValueError, match=r"state of `ROOTRefit` is damaged .* Go on without"):
            callback.load_state_dict({**good["ROOTRefit"], **change})
        assert callback.state_dict() == ROOTRefit().state_dict()
    assert memory


class Full:
    """Raises ENOSPC from its n-th call on."""

    def __init__(self, call, then):
        self.left, self.then = call, then

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.then(*arguments, **options)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_disk_that_fills_while_logging_leaves_the_last_checkpoint_to_go_on_from(
    tmp_path, monkeypatch
):
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger.experiment, "flush", Full(7, logger.experiment.flush))
    broken = checkpointed(tmp_path / "saved", logger=logger)
    with pytest.raises(OSError, match="No space left") as failure:
        broken.fit(Net())
    (note,) = notes_of(failure.value)
    assert re.fullmatch(r"The disk is full: [\d.,]+ MB are left in '.*'\. Make room, .*", note)
    assert note.endswith(f"then go on with ckpt_path='{tmp_path / 'saved' / 'last.ckpt'}'")
    assert not broken.optimizers[0]._stack_hooks
    last = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)
    assert 0 < last["global_step"] < 8
    whole, resumed = Net(), Net()
    checkpointed(tmp_path / "whole").fit(whole)
    checkpointed(tmp_path / "saved").fit(resumed, ckpt_path=tmp_path / "saved" / "last.ckpt")
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight)


class FullLogger(TensorBoardLogger):
    """The disk has room for the run's own numbers, not for those of callbacks.

    TensorBoard's logger says of everything that its writer raises what this one says.
    """

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("root/") for name in metrics):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise ValueError("you tried to log 0.3 which is not supported") from error
        super().log_metrics(metrics, step)


def test_callbacks_that_cannot_log_say_so_once_and_training_goes_on(tmp_path):
    model, fit = Net(), checkpointed(tmp_path / "saved", logger=FullLogger(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(model)
    assert fit.global_step == 8
    texts = [str(warning.message) for warning in caught]
    for name in ("ROOTMonitor", "ROOTRefit"):
        (text,) = [text for text in texts if text.startswith(f"{name} cannot write to the logs")]
        assert text.endswith("[Errno 28] No space left on device")


def test_other_errors_of_a_logger_are_not_hidden():
    with pytest.raises(ValueError, match="wrong"), SuppressLogWriteErrors("ROOTMonitor"):
        raise ValueError("wrong")


def test_a_full_disk_ends_a_command_with_one_line(monkeypatch, capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "a.ckpt")
    error.add_note("Make room")

    def broken(_):
        try:
            raise error
        except OSError as cause:
            raise ValueError("you tried to log 0.3") from cause

    monkeypatch.setattr(entry, "_run_lightning", broken)
    assert entry.main(["fit"]) == 1
    said = "error: [Errno 28] No space left on device: 'a.ckpt'. Make room\n"
    assert capsys.readouterr() == ("", said)


def test_a_disk_that_fills_within_torch_is_called_full(tmp_path, monkeypatch):
    """torch's writer knows of no cause: `unexpected pos 768 vs 662`."""
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"step": 1}, path)

    def torn(content, target):
        target.write_bytes(b"half")
        raise RuntimeError("unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(RuntimeError, match="unexpected pos"):  # there is room
        plugin.save_checkpoint({"step": 2}, path)
    monkeypatch.setattr(os, "fsync", Full(0, os.fsync))
    with pytest.raises(OSError, match=r"the checkpoint before it is left as it was: '.*last.ckpt'"):
        plugin.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """And its name after that: what a power cut leaves is the old file or the new one."""
    done, names = [], {}
    sync, replace = os.fsync, os.replace

    def synced(descriptor):
        sync(descriptor)
        number = os.fstat(descriptor).st_ino
        names.setdefault(number, "folder" if number == tmp_path.stat().st_ino else "file")
        done.append((names[number], os.fstat(descriptor).st_size > 500))

    def replaced(source, target):
        replace(source, target)
        done.append("replaced")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(200)}, tmp_path / "last.ckpt")
    assert done[:2] == [("file", True), "replaced"]
    assert [entry[0] for entry in done[2:]] == ["folder"]


def test_a_disk_that_fills_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", Full(5, torch.save))
    with pytest.raises(OSError, match="No space left"):
        checkpointed(tmp_path).fit(Net())
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("plugin", [AtomicCheckpointIO, TorchCheckpointIO])
def test_state_in_parts_is_read_from_a_mapped_file(tmp_path, monkeypatch, plugin):
    """Otherwise every rank reads all of it."""
    path, strategy = tmp_path / "last.ckpt", ShardedDDPStrategy(checkpoint_io=plugin())
    plugin().save_checkpoint({"a": torch.arange(5.0)}, path)
    load, given = torch.load, []

    def seen(*arguments, **options):
        given.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", seen)
    loaded = strategy.load_checkpoint(path, weights_only=True)
    assert torch.equal(loaded["a"], torch.arange(5.0))
    assert given == [{"map_location": "cpu", "mmap": True, "weights_only": True}]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises((ValueError, RuntimeError), match=r"is not complete|central directory"):
        strategy.load_checkpoint(path, weights_only=True)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.unfinished-abc").write_bytes(b"half")
    others = [tmp_path / ".last.ckpt.mine", tmp_path / ".other.ckpt.unfinished-abc"]
    for other in others:
        other.write_bytes(b"somebody's")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_files_beside_the_logs_that_cannot_be_written_end_no_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    logger, model = TensorBoardLogger(tmp_path), Net()
    model.root_options = {"lr": 1e-2, "max_steps": 4}
    fit = trainer(max_steps=4, logger=logger, callbacks=[ROOTRefit(2)])
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(model)
    texts = [str(warning.message) for warning in caught]
    assert any("the split of the parameters could not be kept" in text for text in texts)
    assert any("ROOTRefit could not write" in text for text in texts)
    assert fit.global_step == 4
