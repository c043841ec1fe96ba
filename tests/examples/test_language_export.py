"""Exported models are the trained ones, and what the harness says of them can be computed."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from examples.language import export, zero_shot
from examples.language.model import Llama
from examples.language.tasks import python_cloze
from examples.language.tokens import HuggingFaceTokenizer
from tests.examples.test_language_data import make_tokenizer_folder

pytest.importorskip("transformers", reason="the export needs transformers")

SIZES = dict(dimension=24, layers=2, heads=6, key_value_heads=2, head_dimension=8, mlp_dimension=40)
LIGHTNING = {"pytorch-lightning_version": "2.6.6"}


def trained(**changes) -> Llama:
    """A model in which all that is one or small at the start is not."""
    torch.manual_seed(0)
    model = Llama(**(SIZES | dict(context=128) | changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 if parameter.ndim == 1 else 0.3)
    return model.eval()


def saved(model: Llama, path: Path) -> Path:
    """What a Trainer saves of a model without its optimizer, as LightningCLI makes it."""
    sizes = dict(model.hparams) | {"_class_path": "examples.language.model.Llama"}
    torch.save(LIGHTNING | {"hyper_parameters": sizes, "state_dict": model.state_dict()}, path)
    return path


def exported_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(tokens).logits


@pytest.fixture(scope="module")
def model() -> Llama:
    return trained()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """That model of bytes, exported."""
    place = tmp_path_factory.mktemp("exported")
    export.export(saved(model, place / "last.ckpt"), place / "folder")
    return place / "folder"


@pytest.mark.parametrize("changes", [dict(tied=False, rope_theta=700.0, norm_eps=1e-2), dict()])
def test_the_exported_model_has_the_logits_of_the_trained_one(tmp_path, changes):
    model, tokens = trained(**changes), torch.randint(256, (3, 100))
    export.export(saved(model, tmp_path / "a.ckpt"), tmp_path / "out")
    with torch.no_grad():
        expected = model(tokens)
    # float32 products of 24 to 48 terms in another order
    torch.testing.assert_close(
        exported_logits(tmp_path / "out", tokens), expected, rtol=1e-4, atol=1e-4
    )
    assert expected.std() > 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "out"}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable:UserWarning")
def test_the_folder_of_a_distributed_checkpoint_is_exported_alike(tmp_path, model, folder):
    path = tmp_path / "checkpoint"
    dcp.save({"state_dict": model.state_dict()}, checkpoint_id=path, no_dist=True)
    torch.save(LIGHTNING | {"hyper_parameters": dict(model.hparams)}, path / "meta.pt")
    export.export(path, tmp_path / "out")
    weights = [(place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "out")]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def byte_tokenizer(folder) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(folder))


@pytest.mark.parametrize(
    "text",
    [
        "Hi, é, 漢, 🙂\r\n\t  two  spaces ",
        "<0x48><unk></s>Ā<|endoftext|>",
        "a\0b\0",
        " don't , he 's ? .",
        "",
        # surrogates are no text
        "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 97), *range(0xE000, 0x110000, 97)])),
    ],
)
def test_the_exported_tokens_of_a_text_are_its_bytes(byte_tokenizer, text):
    (tokens,) = byte_tokenizer.encode([text])
    assert tokens.tolist() == [*text.encode(), 0]
    assert byte_tokenizer.tokenizer.encode(text) == [*text.encode()]
    assert byte_tokenizer.tokenizer.decode(tokens[:-1]) == text
    assert byte_tokenizer.vocabulary == 256


def test_any_other_tokenizer_is_copied(tmp_path):
    name = make_tokenizer_folder(tmp_path / "tokenizer", ["some text", "some more text"])
    checkpoint = saved(trained(vocabulary=320), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="`--tokenizer` must be given for a model of 320 tokens"):
        export.export(checkpoint, tmp_path / "out")
    export.export(checkpoint, tmp_path / "out", name)
    copied, original = HuggingFaceTokenizer(str(tmp_path / "out")), HuggingFaceTokenizer(name)
    texts = ["some text", "more", ""]
    pairs = zip(copied.encode(texts), original.encode(texts), strict=True)
    assert all(ours.tolist() == theirs.tolist() for ours, theirs in pairs)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, original.end.item())
    with pytest.raises(ValueError, match=r"has 2\d\d tokens, more than the model's 256"):
        export.export(saved(trained(), tmp_path / "b.ckpt"), tmp_path / "small", name)
    assert not (tmp_path / "small").exists()


def test_a_folder_is_replaced_as_a_whole_and_only_if_asked(tmp_path, capsys):
    model = trained()
    checkpoint, out = str(saved(model, tmp_path / "a.ckpt")), str(tmp_path / "new" / "out")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert export.main([checkpoint, out]) == 0
    assert f"{out}: {count:,} parameters, torch.float32" in capsys.readouterr().out
    Path(out, "note.txt").touch()
    with pytest.raises(ValueError, match="holds a model; give `--overwrite` to replace it"):
        export.export(Path(checkpoint), Path(out))
    with pytest.raises(ValueError, match="there is no file"):
        export.export(tmp_path / "none.ckpt", Path(out), overwrite=True)
    assert Path(out, "note.txt").exists()
    assert export.main([checkpoint, out, "--overwrite"]) == 0
    assert not Path(out, "note.txt").exists() and Path(out, "config.json").exists()
    assert [path.name for path in Path(out).parent.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="holds something else"):
        export.export(Path(checkpoint), tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "holds no model with its sizes"),
        (
            {"hyper_parameters": {"_class_path": "examples.gpt.GPT", "depth": 2}},
            "holds `examples.gpt.GPT`",
        ),
        ({"hyper_parameters": {"depth": 2}, "state_dict": {}}, "unexpected keyword .* 'depth'"),
        ({"hyper_parameters": SIZES, "state_dict": {}}, r"(?s)Missing key.*network.norm.weight"),
    ],
)
def test_what_is_no_such_model_is_refused(tmp_path, content, message):
    torch.save(LIGHTNING | content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        export.export(tmp_path / "a.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def log_likelihoods(model: Llama, question: dict) -> list[float]:
    """Of each choice after the context, by the trained model itself, byte by byte."""
    found, start = [], len(question["context"].encode())
    for choice in question["choices"]:
        tokens = torch.tensor([*(question["context"] + choice).encode()])
        with torch.no_grad():
            logs = model(tokens[None, :-1])[0].double().log_softmax(-1)
        targets = range(start, len(tokens))
        found.append(sum(logs[place - 1, tokens[place]].item() for place in targets))
    return found


def test_the_harness_says_of_the_exported_model_what_the_trained_one_says(model, folder):
    pytest.importorskip("lm_eval", reason="the evaluation needs the harness")
    found = zero_shot.evaluate(folder, ["python_cloze"], limit=30, log_samples=True)
    questions = [json.loads(line) for line in python_cloze.FILE.read_text().splitlines()[:30]]
    samples = sorted(found["samples"]["python_cloze"], key=lambda sample: sample["doc_id"])
    right = {"acc": 0, "acc_norm": 0}
    for question, sample in zip(questions, samples, strict=True):
        ours = torch.tensor(log_likelihoods(model, question))
        theirs = torch.tensor([float(answer[0]) for answer in sample["filtered_resps"]])
        # sums of up to 30 logarithms of float32 softmaxes
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-3)
        sizes = torch.tensor([len(choice) for choice in question["choices"]])
        right["acc"] += int(ours.argmax() == question["answer"])
        right["acc_norm"] += int((ours / sizes).argmax() == question["answer"])
    results = zero_shot.summary(found)
    task = results["tasks"]["python_cloze"]
    assert right["acc"] != right["acc_norm"]  # else the test could not tell them apart
    assert task["acc"] == pytest.approx(right["acc"] / 30, abs=1e-12)
    assert results["average"] == pytest.approx(right["acc_norm"] / 30, abs=1e-12)
    assert (task["questions"], task["metric"]) == (30, "acc_norm")


def test_the_harness_puts_nothing_before_a_text_that_the_model_has_not_seen(tmp_path):
    pytest.importorskip("lm_eval", reason="the evaluation needs the harness")
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    name = make_tokenizer_folder(tmp_path / "tokenizer", ["some text", "some more text"])
    tokenizer = HuggingFaceTokenizer(name).tokenizer
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    begin = tokenizer.bos_token_id
    template = dict(single="<begin> $A", special_tokens=[("<begin>", begin)])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template)
    tokenizer.save_pretrained(name)
    export.export(saved(trained(vocabulary=320), tmp_path / "a.ckpt"), tmp_path / "out", name)
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").encode("some")[0] == begin
    special = zero_shot.special_tokens(tmp_path / "out")
    harness = HFLM(pretrained=str(tmp_path / "out"), device="cpu", batch_size=1, **special)
    assert begin not in harness.tok_encode("some text")
    assert harness.prefix_token_id == tokenizer.eos_token_id != begin


def test_the_command_prints_scores_and_writes_them(folder, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="the evaluation needs the harness")
    output = str(tmp_path / "results.json")
    command = [str(folder), "--tasks", "local", "--limit", "1", "--output", output]
    assert zero_shot.main([*command, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "python_cloze  1 " in printed and "average" in printed
    results = json.loads(Path(output).read_text())
    assert results["tasks"]["python_cloze"]["version"] == 1.0
    assert results["limit"] == 1 and {"lm_eval", "transformers", "torch"} <= results.keys()


def test_scores_are_the_plain_mean_of_acc_norm_or_acc():
    rows = {
        "boolq": {"acc,none": 0.6, "acc_stderr,none": 0.01},
        "sciq": dict.fromkeys(("acc,none", "acc_stderr,none"), 0.9)
        | {"acc_norm,none": 0.8, "acc_norm_stderr,none": 0.02},
    }
    counts = {"boolq": {"effective": 3000}, "sciq": {"effective": 10}}
    results = zero_shot.summary({"results": rows, "n-samples": counts, "versions": {}})
    assert results["average"] == pytest.approx(0.7, abs=1e-12)
    assert [row[2:] for row in zero_shot.table(results)[1]] == [
        ["60.00%", "-", "60.00% ± 1.00%"],
        ["90.00%", "80.00%", "80.00% ± 2.00%"],
        ["75.00%", "", "70.00%"],
    ]


def test_the_nine_tasks_of_the_paper_are_the_harnesss():
    tasks = pytest.importorskip("lm_eval.tasks", reason="the evaluation needs the harness")
    folders = ["arc", "hellaswag", "openbookqa", "piqa", "sciq", "super_glue", "winogrande"]
    paths = [Path(tasks.__file__).parent / folder for folder in [*folders, "wsc273"]]
    manager = tasks.TaskManager(include_path=paths, include_defaults=False)
    assert len(set(zero_shot.PAPER)) == 9
    assert set(zero_shot.PAPER) <= set(manager.all_subtasks)


def test_the_shipped_questions_are_those_that_are_made():
    lines = python_cloze.FILE.read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    assert questions == python_cloze.make_questions()
    assert len({question["context"] for question in questions}) == python_cloze.QUESTIONS
    for question in questions:
        assert len(set(question["choices"])) == 4
        assert question["context"] == question["context"].rstrip()  # the harness would move it


def test_no_choice_that_is_wrong_is_python_where_only_one_can_be():
    checked = 0
    for question in python_cloze.make_questions():
        if question["kind"] not in ("bracket", "keyword", "indentation"):
            continue
        parsed = []
        for number, choice in enumerate(question["choices"]):
            text = "if True:\n" + question["context"] + choice
            text += "        pass\n" if question["kind"] == "keyword" else ""
            try:
                compile(text, "question", "exec")
                parsed.append(number)
            except SyntaxError:
                continue
        assert question["answer"] in parsed
        checked += parsed == [question["answer"]]
    assert checked >= 40  # a body of six spaces is Python too, though nobody writes it


class Unreachable:
    """A list of tasks without a network."""

    all_tasks = ("sciq",)

    def load(self, names):
        raise ConnectionError("Couldn't reach 'allenai/sciq' on the Hub")


def test_what_cannot_be_evaluated_is_said_before_the_work(folder, tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match=r"'sciq' is not in the cache .*\n.*`HF_HOME`"):
        zero_shot.load_task(Unreachable(), "sciq")
    with pytest.raises(ValueError, match="no task 'sciqq'; did you mean sciq"):
        zero_shot.load_task(Unreachable(), "sciqq")
    with pytest.raises(ValueError, match="holds no exported model"):
        zero_shot.evaluate(tmp_path, ["python_cloze"])
    with pytest.raises(ValueError, match="`--limit` must be at least 1, got 0"):
        zero_shot.evaluate(folder, ["python_cloze"], limit=0)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-root\[eval\]'"):
        zero_shot.evaluate(folder, ["python_cloze"])
