"""Every code block of the README and of the guides: Python runs, command lines are parsed."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from examples.guides.digits import make_trainer
from lightning_root import ROOT
from lightning_root.cli import main
from lightning_root.cli.lightning import MainCLI
from lightning_root.cli.parser import CommandParser
from tests.test_configs import command

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    *sorted(str(p.relative_to(PROJECT)) for p in PROJECT.glob("examples/guides/*.md")),
]
GUIDES = sorted(PROJECT.glob("examples/guides/*.py"))
TRAINED = [
    command(str(path.relative_to(PROJECT)))
    for path in PROJECT.glob("configs/**/*.yaml")
    if "\naxes:" not in path.read_text("utf-8")
]
"""Options that the files in `configs` show, with which other tests train."""

OTHERS = ("make", "pip", "tensorboard", "source")
"""Programs whose command lines are not parsed here; make's targets are looked up."""


def blocks(document, language):
    text = (PROJECT / document).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def command_lines(text):
    """Words of each command; a backslash joins lines, comments go."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def documented():
    for document in DOCUMENTS:
        for block in blocks(document, "bash"):
            yield from ((document, words) for words in command_lines(block))
    for guide in GUIDES:  # what a docstring tells the reader to type
        for line in re.findall(r"^    (python -m .*)$", guide.read_text("utf-8"), re.MULTILINE):
            yield str(guide.relative_to(PROJECT)), shlex.split(line, comments=True)


COMMANDS = {tuple(words): document for document, words in documented()}


@pytest.fixture
def namespaces(tmp_path, monkeypatch):
    """What the Python blocks of each document define, in order and in one namespace."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for document in DOCUMENTS:
        module = ModuleType("my")
        for number, block in enumerate(blocks(document, "python")):
            exec(compile(block, f"{document}, block {number}", "exec"), module.__dict__)
        found[document] = module
    return found


@pytest.mark.filterwarnings("ignore:ROOTMixin trains with ROOT:UserWarning")
def test_python_blocks_run_and_command_lines_are_right(namespaces, monkeypatch):
    """The blocks are long in the page and short in time: one test, so that they run once."""
    readme = namespaces["README.md"]
    assert {"Net", "WithFactory", "optimizer"} <= set(vars(readme))
    assert "rule 'layers.0.weight', blocks of (96, 64), 2 x (16, 64)" in str(
        readme.optimizer.partition
    )

    readme.WithFactory.training_step = readme.Net.training_step  # "the rest as above"
    module = readme.WithFactory()
    module.layers = readme.Net().layers
    trainer = make_trainer(2)
    trainer.fit(module, readme.DataLoader(readme.data, batch_size=64))
    assert isinstance(trainer.optimizers[0], ROOT)

    monkeypatch.chdir(PROJECT)
    monkeypatch.setitem(sys.modules, "my", readme)
    parse = Parse(monkeypatch)
    wrong = [
        f"{where}: {shlex.join(words)}: {e}"
        for words, where in COMMANDS.items()
        if (e := parse([*words]))
    ]
    assert not wrong, "\n".join(wrong)
    assert parse.counts["fit"] > 20 and parse.counts["plan"] > 2 and parse.counts["examples"] > 10


class Parse:
    """Reads command lines with the real parsers and carries none of them out."""

    def __init__(self, monkeypatch):
        self.counts = {"fit": 0, "plan": 0, "examples": 0}
        self.rest = []
        self.made = {}  # LightningCLI's parser, which takes longer to make than to use
        setup_parser = MainCLI.setup_parser

        def setup_once(cli, *arguments):
            if not self.made:
                before = set(vars(cli))
                setup_parser(cli, *arguments)
                self.made = {key: vars(cli)[key] for key in set(vars(cli)) - before}
            vars(cli).update(self.made)

        monkeypatch.setattr(MainCLI, "setup_parser", setup_once)
        monkeypatch.setattr(MainCLI, "_set_seed", lambda cli: None)
        monkeypatch.setattr(MainCLI, "instantiate_classes", lambda cli: None)
        monkeypatch.setattr(MainCLI, "_run_subcommand", lambda cli, name: None)
        parse_args = CommandParser.parse_args

        def parse_only(parser, *arguments):
            options = parse_args(parser, *arguments)
            self.rest = getattr(options, "model", None) or []
            options.run = lambda _: 0
            return options

        monkeypatch.setattr(CommandParser, "parse_args", parse_only)

    def __call__(self, words):
        """What is wrong with a command; nothing if all is right."""
        if missing := [
            w for w in words if w.startswith("configs/") and not (PROJECT / w).is_file()
        ]:
            return f"there is no {missing}"
        if words[0] in ("torchrun", "srun"):
            words = ["python", *words[words.index("-m" if words[0] == "torchrun" else "python") :]]
            words = words if words[1] == "-m" else words[1:]
        if words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
            return "" if words[1] in targets else f"make has no {words[1]}"
        if words[:2] == ["python", "script.py"]:  # any LightningCLI with a model of its own
            words = ["python", "-m", "lightning_root", *words[2:], "--model", "my.Net"]
        if words[:2] != ["python", "-m"]:
            return "" if words[0] in OTHERS or words[1] == "-c" else "an unknown program"
        return self.module(words[2], words[3:])

    def module(self, name, arguments):
        self.rest = []
        try:
            if name == "lightning_root":
                self.counts[arguments[0]] = self.counts.get(arguments[0], 0) + 1
                if arguments[1:] not in TRAINED and main(arguments):
                    return "it prints its help"
                if self.rest:  # the model that `plan` and `convert-checkpoint` are given
                    main(["fit", *self.rest])
                return ""
            self.counts["examples"] += 1
            self.example(import_module(name), arguments)
        except SystemExit as stop:
            return "" if stop.code in (0, None) else f"status {stop.code}"
        return ""

    def example(self, module, arguments):
        if hasattr(module, "parser"):
            module.parser().parse_args(arguments)
        elif arguments:
            assert set(re.findall(r"--[a-z-]+", " ".join(arguments))) <= set(
                re.findall(r"--[a-z-]+", Path(module.__file__).read_text("utf-8"))
            )


def test_the_readme_names_every_guide():
    text = (PROJECT / "README.md").read_text("utf-8")
    guides = {p.name for p in GUIDES} - {"__init__.py", "digits.py"}
    guides |= {Path(document).name for document in DOCUMENTS[1:]}
    assert guides == set(re.findall(r"examples/guides/(\w+\.\w+)", text))
