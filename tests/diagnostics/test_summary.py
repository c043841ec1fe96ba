import logging
import re
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core import rank_zero

from lightning_root.diagnostics import RunSummary, summary
from lightning_root.diagnostics.summary import format_block


class Net(L.LightningModule):
    """Two weights, one of them frozen; validation losses are read from a list."""

    def __init__(self, losses=(3.0, 1.0, 2.0, 4.0)):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))
        self.frozen = torch.nn.Parameter(torch.ones(7), requires_grad=False)
        self.losses = list(losses)

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        loss = 0.0 if self.trainer.sanity_checking else self.losses.pop(0)
        self.log("val/loss", loss, batch_size=1)
        self.log("val/accuracy", -loss, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Batches:
    """Not a list, which Lightning takes for several loaders."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([torch.zeros(1)] * self.count)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return Batches(8)

    def val_dataloader(self):
        return Batches(1)


class DataWithBaseline(Data):
    def summary_lines(self):
        return ["baseline: 4.5 bits: by counting"]


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def log():
    """Lightning's messages, as a handler of its logger gets them.

    Which logger that is depends on whether `pytorch_lightning` has been imported, too.
    """
    logger, handler = rank_zero.log, Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.setLevel(level)
    logger.removeHandler(handler)


def fit(model, *callbacks, data=None, checkpoint=None, **options):
    defaults = dict(max_steps=8, val_check_interval=2, logger=False, enable_checkpointing=False)
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer = L.Trainer(callbacks=list(callbacks), **(defaults | quiet | options))
    trainer.fit(model, datamodule=data or Data(), ckpt_path=checkpoint, weights_only=True)
    return trainer


def printed(log) -> dict[str, str]:
    """The rows of the one block that was printed."""
    blocks = [line for line in log if "Run summary" in line]
    assert len(blocks) == 1
    rows = blocks[0].split("Run summary")[1].strip().splitlines()
    return dict(re.split(r"  +", row.strip(), maxsplit=1) for row in rows)


def test_shows_last_and_best_values_steps_and_parameters(log):
    fit(Net(), RunSummary())
    rows = printed(log)
    assert rows["val/loss"] == "4.0000 (best 1.0000 at step 4)"
    assert rows["val/accuracy"] == "-4.0000"
    assert rows["optimizer steps"] == "8"
    assert rows["parameters"] == "12, 5 of them trainable"
    assert rows["total time"] == "0:00:00"
    assert not [label for label in rows if "checkpoint" in label or "folder" in label]


def test_the_best_can_be_the_greatest(log):
    fit(Net(), RunSummary(monitor="val/accuracy", mode="max"))
    assert printed(log)["val/accuracy"] == "-4.0000 (best -1.0000 at step 4)"


def test_nan_is_never_the_best(log):
    fit(Net([float("nan"), 2.0, float("nan"), 3.0]), RunSummary())
    assert printed(log)["val/loss"] == "3.0000 (best 2.0000 at step 4)"


def test_names_every_file_and_how_to_look_at_them(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = ModelCheckpoint(
        tmp_path / "elsewhere",
        monitor="val/loss",
        save_last=True,
        filename="{step}",
        auto_insert_metric_name=False,
    )
    logger = TensorBoardLogger("logs", name="tiny", version=3, default_hp_metric=False)
    fit(
        Net(),
        RunSummary(),
        checkpoints,
        logger=logger,
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    rows = printed(log)
    assert rows["best checkpoint"] == "elsewhere/4.ckpt"
    assert rows["last checkpoint"] == "elsewhere/last.ckpt"
    assert rows["log folder"] == "logs/tiny/version_3"
    assert rows["to see the curves"] == "tensorboard --logdir logs/tiny"


def test_a_checkpoint_without_a_metric_is_the_last_not_the_best(log, tmp_path):
    fit(Net(), RunSummary(), ModelCheckpoint(tmp_path, filename="x"), enable_checkpointing=True)
    rows = printed(log)
    assert rows["last checkpoint"] == str(tmp_path / "x.ckpt")
    assert "best checkpoint" not in rows


def test_a_path_outside_the_current_folder_stays_absolute(log, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    logger = TensorBoardLogger(tmp_path, name="there", version=0, default_hp_metric=False)
    fit(Net(), RunSummary(), logger=logger, log_every_n_steps=1)
    assert printed(log)["log folder"] == str(tmp_path / "there" / "version_0")


def test_the_datamodule_may_add_rows(log):
    fit(Net(), RunSummary(), data=DataWithBaseline())
    assert printed(log)["baseline"] == "4.5 bits: by counting"


def test_works_without_validation(log):
    fit(Net(), RunSummary(), limit_val_batches=0)
    rows = printed(log)
    assert rows["validation"] == "none ran"
    assert rows["optimizer steps"] == "8"


def test_works_with_fast_dev_run(log):
    fit(Net(), RunSummary(), fast_dev_run=True)
    rows = printed(log)
    assert rows["val/loss"] == "3.0000 (best 3.0000 at step 1)"
    assert rows["steps per second"] == "not measured, needs more than 5 steps"


class SaveAtStepFour(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def test_the_best_value_survives_a_resume(log, tmp_path):
    path = tmp_path / "step4.ckpt"
    fit(Net(), RunSummary(), SaveAtStepFour(path), max_steps=4, limit_train_batches=4)
    log.clear()
    fit(Net([2.5, 2.0]), RunSummary(), checkpoint=path, limit_train_batches=4)
    rows = printed(log)
    assert rows["val/loss"] == "2.0000 (best 1.0000 at step 4)"
    assert rows["optimizer steps"] == "8, 4 of them in this run"


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


class TimedNet(Net):
    """A step takes half a second, five at the start; a validation takes a hundred."""

    def __init__(self, clock, steps_before=0):
        super().__init__([1.0] * 20)
        self.clock, self.steps_before = clock, steps_before

    def training_step(self, batch, batch_idx):
        self.clock.now += 0.5 if self.trainer.global_step >= 5 else 5.0
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock.now += 100.0
        super().validation_step(batch, batch_idx)


class SlowSave(L.Callback):
    def __init__(self, clock, path):
        self.clock, self.path = clock, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 9:
            trainer.save_checkpoint(self.path)
            self.clock.now += 1000.0


def test_speed_counts_training_alone(log, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(summary, "time", clock)
    slow_save = SlowSave(clock, tmp_path / "slow.ckpt")
    fit(TimedNet(clock), RunSummary(), slow_save, max_steps=16, val_check_interval=4)
    rows = printed(log)
    assert rows["steps per second"] == "2 (training alone, without the first 5)"
    # 5 * 5 + 11 * 0.5 for training, 100 for the sanity check, 4 * 100, 1000 for the checkpoint
    assert rows["total time"] == "0:25:30"  # 1530.5, rounded


class Failing(L.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 6:
            raise self.error


@pytest.fixture
def interrupt_handler():
    """Lightning ignores further interrupts after the first: undo that."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_a_run_that_breaks_off_prints_no_summary(log, interrupt_handler, error, raised):
    with pytest.raises(raised):
        fit(Net(), RunSummary(), Failing(error))
    assert not any("Run summary" in line for line in log)


def test_is_silenced_like_lightning(log):
    rank_zero.log.setLevel(logging.WARNING)
    fit(Net(), RunSummary())
    assert not any("Run summary" in line for line in log)


def test_only_rank_zero_prints(log, monkeypatch):
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    fit(Net(), RunSummary())
    assert not any("Run summary" in line for line in log)


def test_a_mode_must_be_min_or_max():
    with pytest.raises(ValueError, match='`mode` must be "min" or "max", got \'least\''):
        RunSummary(mode="least")


def test_a_block_has_a_title_and_two_columns():
    block = format_block("Run summary", [("val/loss", "1.2500"), ("steps", "400")])
    assert block.strip().split("\n") == ["Run summary", "  val/loss  1.2500", "  steps     400"]
