"""What a person may get wrong about `fit`: one line, status 2, no traceback."""

import re

import pytest
import torch

from lightning_root import ROOT, ROOTMixin
from lightning_root.cli import entry
from lightning_root.cli.lightning import MainCLI
from lightning_root.cli.messages import one_line
from tests.cli.test_plan import HERE
from tests.integration.models import PlainNet, trainer

NET = f"--model={HERE}.Net"
QUIET = ["--trainer.logger=false", "--trainer.fast_dev_run=1"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a checkpoint of something else, a text, an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(3)}, "foreign.ckpt")
    (tmp_path / "text.yaml").write_text("hello\n")
    (tmp_path / "nothing.yaml").write_text("")
    (tmp_path / "broken.yaml").write_text("trainer:\n  max_steps: [1\nmodel: x\n")
    (tmp_path / "alias.yaml").write_text("model: *net\n")
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=foreign.ckpt"], "`--config` must be a YAML file, got one that is no text"),
        (["--config=empty"], "Path is not a file"),
        (["--config=text.yaml"], "`--config` must be a YAML file of keys with values, got"),
        (["--config=nothing.yaml"], "`--config` must be a YAML file of keys with values, got an"),
        (
            ["-c", "broken.yaml"],
            "`--config` must be a YAML file, but in 'broken.yaml' at line 3, column 6: expected",
        ),
        (["--config=alias.yaml"], "'alias.yaml' at line 1, column 8: found undefined alias 'net'"),
        ([NET, "--ckpt_path=none.ckpt"], "`ckpt_path` must be a checkpoint, but there is no"),
        ([NET, "--ckpt_path=empty"], "the folder 'empty' holds none"),
        ([NET, "--ckpt_path=text.yaml"], "`ckpt_path`: 'text.yaml' is no checkpoint"),
        ([NET, "--trainer.strategy=nope"], "invalid strategy name: `strategy='nope'`"),
        ([NET, "--trainer.accelerator=gpu"], "No supported gpu backend found!"),
        (
            [NET, "--trainer.callbacks=ROOTMonitor", "--trainer.callbacks.log_every_n_steps=0"],
            "`log_every_n_steps` must be >= 1, got 0",
        ),
        ([NET], "`optimizer` must be given, for `Net` has no `configure_optimizers`"),
        ([NET, "--trainer.accumulate_grad_batches=0"], "`trainer.accumulate_grad_batches` must"),
        ([NET, "--trainer.val_check_interval=0.0"], "`trainer.val_check_interval` must be > 0"),
        ([NET, "--seed_everything=-1"], "`seed_everything` must be in [0, 2**32)"),
    ],
)
def test_what_is_wrong_is_one_line(call, files, monkeypatch, arguments, words):
    fit = {"fit": MainCLI.subcommands()["fit"]}  # each of the others takes time
    monkeypatch.setattr(MainCLI, "subcommands", staticmethod(lambda: fit))
    status, out, err = call("fit", *QUIET, *arguments)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in err


def test_a_value_that_lightning_refuses_when_training_starts_is_one_line_too(call, monkeypatch):
    def refuse(_):
        raise ValueError(" `val_check_interval` (99) must be\n less than 4.")

    monkeypatch.setattr(entry, "_run_lightning", refuse)
    status, out, err = call("fit")
    assert (status, out) == (2, "")
    assert err == "error: `val_check_interval` (99) must be less than 4.\n"


class Trained(PlainNet):
    """It needs no data of its own, and its optimizer is the command line's."""


class Wider(Trained):
    def build(self):
        super().build()
        self.more = torch.nn.Linear(3, 3)


class Faulty(Trained):
    def on_load_checkpoint(self, checkpoint):
        raise KeyError("of the user's own code")


def saved(optimizer, weights_only=False):
    fit = trainer(max_steps=1)
    model = Trained()
    model.configure_optimizers = lambda: optimizer(model.parameters())
    fit.fit(model)
    fit.save_checkpoint("saved.ckpt", weights_only)


@pytest.mark.parametrize(
    ("net", "optimizer", "weights_only", "words"),
    [
        (Wider, ROOT, False, r'Missing key\(s\) in state_dict: "more.weight"'),
        (Trained, torch.optim.AdamW, False, "the loaded state is not ROOT's"),
        (Trained, lambda p: ROOT(list(p)[:-1]), False, "the loaded state does not belong"),
        (Trained, ROOT, True, "restore optimizer state but checkpoint contains only the model"),
    ],
)
@pytest.mark.filterwarnings("ignore:ROOT got tensors without names")
def test_a_state_that_does_not_load_is_one_line(
    call, tmp_path, monkeypatch, net, optimizer, weights_only, words
):
    monkeypatch.chdir(tmp_path)
    saved(optimizer, weights_only)
    arguments = [
        "--optimizer=lightning_root.ROOT",
        "--ckpt_path=saved.ckpt",
        "--trainer.max_steps=2",
    ]
    status, _, err = call("fit", f"--model={__name__}.{net.__name__}", QUIET[0], *arguments)
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(rf"^error: `ckpt_path`: .*{words}", line)
    assert "Traceback" not in err


def test_a_fault_in_the_users_own_code_keeps_its_traceback(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(ROOT)
    with pytest.raises(KeyError, match="of the user's own code"):
        call(
            *("fit", f"--model={__name__}.Faulty", QUIET[0], "--optimizer=lightning_root.ROOT"),
            *("--ckpt_path=saved.ckpt", "--trainer.max_steps=2"),
        )


@pytest.mark.parametrize("net", ["Mixed", "OfItsOwn"])
def test_a_scheduler_that_nothing_would_use_is_one_line(call, net):
    arguments = ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"]
    status, out, err = call("fit", f"--model={__name__}.{net}", *QUIET, *arguments)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "`lr_scheduler` needs `--optimizer`" in line


class Mixed(ROOTMixin, PlainNet):
    pass


class OfItsOwn(PlainNet):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def test_a_report_on_all_types_is_shortened_to_the_nearest():
    said = "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: x"
    assert one_line(said) == "trainer.max_steps: expected int. Got value: x"
