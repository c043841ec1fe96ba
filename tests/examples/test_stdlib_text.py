import math
import sysconfig
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from examples.gpt import GPT
from examples.stdlib_text import (
    FixedWindows,
    RandomWindows,
    StdlibText,
    find_files,
    split_files,
    unigram_cross_entropy,
)

TEXT = torch.randint(256, (1000,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
NAMES = [f"package{i % 7}/module{i}.py" for i in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty small text files, and some that are not Python's own."""
    for i, name in enumerate([*NAMES, "site-packages/other.py", "package1/__pycache__/old.py"]):
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def function_{i}(x):\n    return x + {i * i}\n" * 5)
    (tmp_path / "text" / "notes.txt").write_text("no source file")
    return tmp_path / "text"


def rows(loader) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in loader for row in batch.tolist()]


def random_windows(**changes) -> RandomWindows:
    defaults = dict(text=TEXT, context=8, batch_size=4, seed=0, rank=0, world_size=1)
    return RandomWindows(**(defaults | changes))


def fixed_windows(**changes) -> FixedWindows:
    defaults = dict(text=TEXT, context=8, batch_size=4, count=10, rank=0, world_size=1)
    return FixedWindows(**(defaults | changes))


def test_finds_source_files_without_installed_packages_and_caches(folder):
    assert find_files(folder, "*.py") == sorted(NAMES)
    assert find_files(folder, "*.txt") == ["notes.txt"]


def test_leaves_out_what_cannot_be_read(folder):
    (folder / "broken.py").symlink_to(folder / "nowhere.py")
    assert "broken.py" not in find_files(folder, "*.py")


def test_split_is_a_partition_with_about_the_fraction_asked_for():
    names = [f"{i}.py" for i in range(4000)]
    training, held_out = split_files(names, 0.05)
    assert sorted(training + held_out) == sorted(names)
    assert not set(training) & set(held_out)
    # binomial(4000, 0.05): mean 200, standard deviation 14; five of them
    assert abs(len(held_out) - 200) < 70


def test_split_holds_out_at_least_one_file():
    training, held_out = split_files(["a.py", "b.py", "c.py"], 0.0)
    assert (len(training), len(held_out)) == (2, 1)


def test_a_file_keeps_its_side_when_others_come():
    names = [f"{i}.py" for i in range(400)]
    few, many = set(split_files(names[:200], 0.2)[1]), set(split_files(names, 0.2)[1])
    assert few == many & set(names[:200])


def test_unigram_loss_is_the_add_one_cross_entropy():
    training, validation = b"aaab", b"abc"
    counts = Counter(training)
    expected = -sum(math.log((counts[byte] + 1) / (4 + 256)) for byte in validation) / 3
    as_tensors = (torch.tensor(list(text), dtype=torch.uint8) for text in (training, validation))
    assert unigram_cross_entropy(*as_tensors) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loader", [random_windows(), fixed_windows()])
def test_every_window_is_a_piece_of_the_text(loader):
    text = bytes(TEXT.tolist())
    pieces = rows(loader)
    assert len(pieces) > 0
    assert all(len(piece) == 9 and bytes(piece) in text for piece in pieces)


def test_random_windows_reach_both_ends_of_the_text():
    text = torch.arange(12, dtype=torch.uint8)
    firsts = {row[0] for row in rows(random_windows(text=text, batch_size=2, context=3))}
    for index in range(60):
        firsts |= set(random_windows(text=text, context=3).batch(index)[:, 0].tolist())
    assert firsts == set(range(9))  # the last window is 8, 9, 10, 11


def test_batches_depend_on_seed_and_index_alone():
    first, again, other = random_windows(), random_windows(), random_windows(seed=1)
    first_pass = rows(first)
    assert first_pass == rows(again)
    assert first_pass != rows(first)  # a second pass goes on to new windows
    assert not torch.equal(first.batch(3), first.batch(4))
    assert not torch.equal(first.batch(3), other.batch(3))


def test_ranks_share_out_one_global_batch():
    alone = random_windows(batch_size=8)
    ranks = [random_windows(batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    for index in range(5):
        parts = torch.cat([rank.batch(index) for rank in ranks])
        assert sorted(parts.tolist()) == sorted(alone.batch(index).tolist())


def test_state_continues_with_the_next_batch():
    uninterrupted = iter(random_windows())
    for _ in range(3):
        next(uninterrupted)
    first, second = random_windows(), random_windows()
    iterator = iter(first)
    for _ in range(3):
        next(iterator)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(next(iter(second)), next(uninterrupted), rtol=0, atol=0)


def test_validation_windows_are_the_same_at_every_call_and_do_not_overlap():
    loader = fixed_windows()
    assert rows(loader) == rows(loader) == rows(fixed_windows())
    starts = torch.cat(loader.chunks)
    assert starts[0] == 0 and starts[-1] == len(TEXT) - 9  # from end to end
    assert starts.diff().min() >= 8


def test_validation_takes_no_more_windows_than_fit():
    assert torch.cat(fixed_windows(count=10**6).chunks).diff().min() >= 8


def test_ranks_validate_equally_many_windows_and_together_all():
    ranks = [fixed_windows(rank=rank, world_size=2) for rank in range(2)]
    assert sorted(rows(ranks[0]) + rows(ranks[1])) == sorted(rows(fixed_windows()))
    uneven = [fixed_windows(count=11, rank=rank, world_size=4, batch_size=1) for rank in range(4)]
    assert [len(loader) for loader in uneven] == [2, 2, 2, 2]


def test_too_few_validation_windows_for_the_ranks_are_refused():
    with pytest.raises(ValueError, match="each of 4 ranks at least one window, got 3"):
        fixed_windows(count=3, world_size=4)


def test_reads_the_standard_library_unless_told_otherwise():
    assert StdlibText().root == Path(sysconfig.get_paths()["stdlib"])
    assert (StdlibText().root / "os.py").is_file()


def test_texts_hold_the_bytes_of_disjoint_files(folder):
    data = StdlibText(context=16, root=str(folder), validation_fraction=0.2)
    data.setup("fit")
    assert not set(data.training_files) & set(data.validation_files)
    for files, text in [
        (data.training_files, data.training_text),
        (data.validation_files, data.validation_text),
    ]:
        expected = b"".join((folder / name).read_bytes() + b"\0" for name in files)
        assert bytes(text.tolist()) == expected
    assert data.unigram_bits == pytest.approx(data.unigram_nats / math.log(2))
    assert any(f"{data.unigram_bits:.4f} bits" in line for line in data.summary_lines())


def test_each_rank_gets_its_share(folder):
    data = StdlibText(context=16, root=str(folder), validation_fraction=0.2)
    data.setup("fit")
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 4, "rank": 3})
    training, validation = data.train_dataloader(), data.val_dataloader()
    assert (training.rank, training.world_size) == (3, 4)
    alone = StdlibText(context=16, root=str(folder), validation_fraction=0.2)
    alone.setup("fit")
    every = rows(alone.val_dataloader())
    assert rows(validation) == every[: len(every) // 4 * 4][3::4]


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"at least two files.*found 0.*--data\.root"):
        StdlibText(root=str(tmp_path)).setup("fit")


def test_windows_longer_than_the_text_are_refused(folder):
    data = StdlibText(context=10**6, root=str(folder))
    data.setup("fit")
    with pytest.raises(ValueError, match="`context` must be positive and below the length"):
        data.train_dataloader()


def test_the_model_is_asked_for_the_window_length(folder):
    data = StdlibText(root=str(folder))
    data.setup("fit")
    with pytest.raises(ValueError, match="`context` must be given without a Trainer"):
        data.train_dataloader()
    model = SimpleNamespace(context=24)
    data.trainer = SimpleNamespace(distributed_sampler_kwargs=None, lightning_module=model)
    assert next(iter(data.train_dataloader())).shape == (16, 25)


def test_fraction_must_leave_training_text():
    with pytest.raises(ValueError, match=r"`validation_fraction` must be in \[0, 1\), got 1.0"):
        StdlibText(validation_fraction=1.0)


class AdamWGPT(GPT):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class SaveAtStepFour(L.Callback):
    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def train(folder: Path, callbacks: list[L.Callback], checkpoint: Path | None = None) -> GPT:
    torch.manual_seed(0)
    model = AdamWGPT(depth=1, width=16, heads=1, context=32)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=8,
        limit_train_batches=6,  # so that step 4 is in the middle of a pass and step 8 in the next
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = StdlibText(root=str(folder), batch_size=2, validation_fraction=0.2)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return model


def test_resume_is_bitwise(folder, tmp_path):
    checkpoint = tmp_path / "step4.ckpt"
    uninterrupted = train(folder, [SaveAtStepFour(checkpoint)])
    halfway = torch.load(checkpoint, weights_only=True)["state_dict"]
    resumed = train(folder, [], checkpoint)
    for name, expected in uninterrupted.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=0)
        assert not torch.equal(halfway[name], expected)  # there was something left to train
