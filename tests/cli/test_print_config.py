"""`--print_config`: what it prints of a shipped run is that run, whole."""

import pytest
import yaml

from lightning_root.cli.lightning import MainCLI, MainParser
from tests.test_configs import CONFIGS, ROOT_FOLDER, command


class ParserOnly(MainCLI):
    """The parser of the command line; nothing is parsed, made or run."""

    def __init__(self) -> None:
        super().__init__(parser_class=MainParser, args=[])

    def parse_arguments(self, parser, args):
        self.config = {"subcommand": None}

    def _set_seed(self):
        """Of no run."""

    def _add_instantiators(self):
        """For no run."""

    instantiate_classes = _add_instantiators

    def _run_subcommand(self, subcommand):
        """No run."""


@pytest.fixture(scope="module")
def parser():
    return ParserOnly().parser


@pytest.fixture
def print_config(parser, capsys, monkeypatch):
    """What `fit ... --print_config` prints, in this process."""
    monkeypatch.chdir(ROOT_FOLDER)

    def call(*options):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["fit", *options, "--print_config"])
        out, err = capsys.readouterr()
        assert (stop.value.code, err) == (0, "")
        return out

    return call


def leaves(values, path=()):
    """Every plain value of nested mappings, by its keys; classes have short and long names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif key != "class_path" and not isinstance(value, list):
            yield (*path, key), value


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_printed_is_the_same_run(config, print_config, tmp_path):
    """It has all values of the file, the last one named, and printed again it is the same."""
    options = command(config)
    printed = print_config(*options)
    values = dict(leaves(yaml.safe_load(printed)))
    if options[-1] == config:
        for path, value in leaves(yaml.safe_load((ROOT_FOLDER / config).read_text())):
            assert values[path] == value, path
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert print_config("--config", str(file)) == printed
