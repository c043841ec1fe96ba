import json
from itertools import islice
from pathlib import Path

import lightning as L
import pytest
import torch

from examples.language.data import TextStream
from examples.language.documents import digest, in_random_order, list_files
from examples.language.loader import PackedBatches
from examples.language.model import Llama
from examples.language.tokens import ByteTokenizer, make_tokenizer
from tests.examples.test_stdlib_text import SaveAtStepFour

FILES, ROWS = 4, 23  # 92 documents of 1 to 30 bytes


def document(number: int) -> str:
    return f"{number:03d}" + "abcdefghij"[number % 10] * (number * 7 % 28)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Documents are read five at a time: groups end in the middle of files and across them."""
    monkeypatch.setattr("examples.language.documents.GROUP", 5)


@pytest.fixture
def texts() -> list[str]:
    return [document(number) for number in range(FILES * ROWS)]


@pytest.fixture
def jsonl(tmp_path: Path, texts) -> list[str]:
    """The documents in four files, as JSON lines."""
    files = [tmp_path / f"part{number}.jsonl" for number in range(FILES)]
    for number, file in enumerate(files):
        rows = [{"id": i, "text": texts[i]} for i in range(number * ROWS, (number + 1) * ROWS)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(file) for file in files]


def stream(files, rank: int = 0, world_size: int = 1, **changes) -> PackedBatches:
    """One rank's training batches, as TextStream makes them for a Trainer of so many ranks."""
    options = dict(dataset="json", data_files=files, context=8, batch_size=3, held_out_documents=2)
    options |= dict(shuffle_windows=9, batches_per_epoch=100, validation_windows=2)
    data = TextStream(**(options | changes))
    data.setup("fit")
    data.trainer = FakeTrainer(rank, world_size)
    return data.train_dataloader()


class FakeTrainer:
    """What the data asks a Trainer."""

    accumulate_grad_batches, max_steps, lightning_module = 4, 10, None

    def __init__(self, rank: int, world_size: int):
        self.distributed_sampler_kwargs = {"rank": rank, "num_replicas": world_size}


def packed_texts(batches: list[torch.Tensor]) -> list[str]:
    """The documents in unshuffled windows; the first and the last may be cut."""
    rows = torch.cat(batches)
    tokens = torch.cat((rows[:, :-1].flatten(), rows[-1, -1:]))
    return bytes(tokens.tolist()).decode().split("\0")


def test_a_pass_holds_every_training_document_once_in_full(jsonl, texts):
    loader = stream(jsonl, shuffle_windows=0)
    held_out = loader.packer.documents.held_out
    kept = [text for text in texts if digest(text) not in held_out]
    assert len(held_out) == 2 and len(kept) == len(texts) - 2
    size = sum(len(text) + 1 for text in kept)
    seen = packed_texts(list(islice(loader, size // 24)))
    assert len(seen) > 80
    assert set(seen[:-1]) <= set(kept)
    assert len(set(seen)) == len(seen)


def test_each_window_begins_with_the_last_token_of_the_one_before(jsonl):
    rows = torch.cat(list(islice(stream(jsonl, shuffle_windows=0), 10)))
    assert torch.equal(rows[1:, 0], rows[:-1, -1])
    assert rows.shape == (30, 9) and rows.dtype == torch.int64


def test_shuffling_reorders_windows_within_their_block_alone(jsonl):
    plain = torch.cat(list(islice(stream(jsonl, shuffle_windows=0), 6))).tolist()
    shuffled = torch.cat(list(islice(stream(jsonl), 6))).tolist()
    for block in (slice(0, 9), slice(9, 18)):
        assert sorted(shuffled[block]) == sorted(plain[block])
        assert shuffled[block] != plain[block]


def test_another_seed_brings_other_batches_and_the_same_validation(jsonl):
    first, second = stream(jsonl), stream(jsonl, seed=1)
    assert not torch.equal(next(iter(first)), next(iter(second)))
    assert first.packer.documents.held_out == second.packer.documents.held_out


@pytest.mark.parametrize("world_size", [2, 3])  # four files: two each, or every third document
def test_ranks_share_out_the_documents_of_a_pass(jsonl, texts, world_size):
    seen = []
    for rank in range(world_size):
        documents = stream(jsonl, rank, world_size).packer.documents
        for group in documents:
            if documents.number_of_pass > 0:
                break
            seen += group
    kept = [text for text in texts if digest(text) not in documents.held_out]
    assert sorted(seen) == sorted(kept)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("consumed", [1, 2, 3, 7, 80])  # 80: in a later pass over the documents
def test_a_resumed_stream_goes_on_with_the_very_batch(jsonl, tmp_path, rank, world_size, consumed):
    uninterrupted = stream(jsonl, rank, world_size)
    iterator = iter(uninterrupted)
    for _ in range(consumed):
        next(iterator)
    torch.save(uninterrupted.state_dict(), tmp_path / "state.pt")
    resumed = stream(jsonl, rank, world_size)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for expected, batch in zip(islice(iterator, 12), resumed, strict=False):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)
    if consumed == 80:
        assert uninterrupted.packer.documents.number_of_pass > 0


def test_a_position_taken_before_the_first_batch_is_the_start(jsonl):
    first, second = stream(jsonl), stream(jsonl)
    state = first.state_dict()
    list(islice(second, 5))
    second.load_state_dict(state)  # while its thread is reading ahead
    assert torch.equal(next(iter(second)), next(iter(first)))


def test_another_number_of_ranks_or_other_windows_are_refused(jsonl):
    state = stream(jsonl, 0, 2).state_dict()
    with pytest.raises(ValueError, match=r"saved with: 2 devices.*got 1 and 9 of 8"):
        stream(jsonl).load_state_dict(state)
    with pytest.raises(ValueError, match=r"blocks of 9 windows of 8 tokens; got 2 and 9 of 16"):
        stream(jsonl, 0, 2, context=16).load_state_dict(state)


def on_ranks(rank, ranks, files):
    """Save on all ranks, resume from what rank 0 would write; both go on alike."""
    loader = stream(files, rank, ranks)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    state = loader.state_dict()
    resumed = stream(files, rank, ranks)
    states = [None] * ranks
    torch.distributed.all_gather_object(states, state)
    resumed.load_state_dict(states[0])
    return [torch.equal(a, b) for a, b in zip(islice(iterator, 5), resumed, strict=False)]


def test_the_checkpoint_of_one_rank_holds_the_position_of_all(gloo_pool, jsonl):
    assert gloo_pool.run(on_ranks, jsonl) == [[True] * 5] * 2


@pytest.fixture
def formats(tmp_path: Path, texts) -> dict[str, dict]:
    """The same documents as files of each format that can be read."""
    from datasets import Dataset

    rows = Dataset.from_dict({"text": texts})
    rows.to_parquet(tmp_path / "all.parquet")
    (tmp_path / "all.txt").write_text("\n".join(texts))
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    files = {"parquet": "all.parquet", "text": "all.txt", "json": "all.jsonl"}
    return {name: {"dataset": name, "data_files": str(tmp_path / files[name])} for name in files}


def test_parquet_text_and_json_lines_give_the_same_batches(formats):
    batches = [torch.cat(list(islice(stream(None, **options), 8))) for options in formats.values()]
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])


@pytest.fixture
def tokenizer_folder(tmp_path: Path, texts) -> str:
    """A small byte-pair tokenizer, saved as Hugging Face's are."""
    return make_tokenizer_folder(tmp_path / "tokenizer", texts)


def make_tokenizer_folder(folder: Path, texts: list[str]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return str(folder)


def test_any_hugging_face_tokenizer_ends_each_document_once(tokenizer_folder, texts):
    tokenizer = make_tokenizer(tokenizer_folder)
    encoded = tokenizer.encode(["", *texts])
    assert 257 <= tokenizer.vocabulary <= 300
    assert encoded[0].tolist() == [0]
    for tokens, text in zip(encoded[1:], texts, strict=True):
        assert tokenizer.tokenizer.decode(tokens[:-1]) == text
        assert tokens[-1] == 0 and 0 not in tokens[:-1]
    assert sum(map(len, encoded)) < sum(map(len, ByteTokenizer().encode(["", *texts])))


def test_held_out_documents_are_in_no_training_batch_however_often_they_occur(tmp_path):
    file = tmp_path / "twice.txt"
    file.write_text("same\nsame\nother\nsame\nmore\n" * 3)
    options = dict(dataset="text", data_files=str(file), held_out_documents=1, shuffle_windows=0)
    data = TextStream(**options, context=4, batch_size=2, batches_per_epoch=9, validation_windows=1)
    data.setup("fit")
    seen = packed_texts(list(data.train_dataloader()))
    assert set(seen[:-1]) == {"other", "more"}
    assert bytes(data.validation_tokens.tolist()) == b"same\0"


def test_without_files_the_text_is_pythons_own():
    files = list_files("text", None)
    assert any(Path(file).name == "os.py" for file in files) and len(files) > 500
    assert sorted(in_random_order(files, 3)) == sorted(files)
    assert in_random_order(files, 3) == in_random_order(files, 3) != in_random_order(files, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(data_files="nowhere/*.jsonl"), FileNotFoundError, "nothing matches 'nowhere"),
        (dict(column="body"), ValueError, r"`column` must be one of \['id', 'text'\], got 'body'"),
        (dict(data_files=None), ValueError, "`data_files` must name the json files"),
        (dict(batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
        (dict(held_out_documents=1000), ValueError, "hold out fewer"),
    ],
)
def test_what_cannot_be_read_is_said(jsonl, changes, error, message):
    with pytest.raises(error, match=message):
        next(iter(stream(**({"files": jsonl} | changes))))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(jsonl):
    data = TextStream(dataset="json", data_files=jsonl)
    data.trainer = FakeTrainer(0, 1)
    data.trainer.lightning_module = Llama(vocabulary=200, dimension=12, layers=1)
    with pytest.raises(
        ValueError, match=r"256 tokens, more than .* 200; set `--model.vocab.* 256`"
    ):
        data.setup("fit")


def test_the_whole_run_is_one_pass_unless_told_otherwise(jsonl):
    assert len(stream(jsonl, batches_per_epoch=None)) == 10 * 4  # steps, batches a step
    assert len(stream(jsonl, batches_per_epoch=7)) == 7


class AdamWLlama(Llama):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(files, callbacks: list[L.Callback], checkpoint: Path | None = None) -> Llama:
    torch.manual_seed(0)
    sizes = dict(dimension=12, layers=1, heads=2, key_value_heads=1, head_dimension=6)
    model = AdamWLlama(**sizes, mlp_dimension=16, context=8)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=7,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TextStream(
        "json", data_files=files, batch_size=2, validation_windows=2, shuffle_windows=6
    )
    data.held_out_documents = 3
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    assert any("waiting for text: " in line for line in data.summary_lines())
    return model


def test_a_resumed_run_ends_with_the_same_weights(jsonl, tmp_path):
    checkpoint = tmp_path / "step4.ckpt"
    uninterrupted = train(jsonl, [SaveAtStepFour(checkpoint)])
    resumed = train(jsonl, [], checkpoint)
    halfway = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, expected in uninterrupted.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=0)
        assert not torch.equal(halfway[name], expected)  # there was something left to train
