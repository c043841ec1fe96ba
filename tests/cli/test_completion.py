"""`completion`: a real bash completes commands, options, choices and files by the script."""

import argparse
import shutil
import subprocess

import pytest

from lightning_root.cli import main
from lightning_root.cli.lightning import MainCLI
from lightning_root.cli.parser import COMMANDS, parser_of

CASES = {
    "do": ["doctor"],
    "coefficients c": ["certify", "compare"],
    "coefficients show --st": ["--steps"],
    "plan --form s": ["standard"],
    "convert-checkpoint a --over": ["--overwrite"],
    "completion z": ["zsh"],
    "fit --trainer.max_st": ["--trainer.max_steps"],
    "fit --optimizer lightning_root.R": ["lightning_root.ROOT"],
    "fit --config pypro": ["pyproject.toml"],
}

ASK = """
source {script}
function=$(complete -p lightning-root | sed 's/.*-F \\([^ ]*\\).*/\\1/')
while read -r line; do
    COMP_WORDS=(lightning-root $line) COMPREPLY=() COMP_TYPE=9
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
    $function lightning-root "${{COMP_WORDS[-1]}}"
    echo "${{COMPREPLY[*]}}"
done
"""


def test_all_commands_are_completed():
    found = {name: parser_of(name) for name in COMMANDS}
    assert all(isinstance(parser, argparse.ArgumentParser) for parser in found.values())
    assert {"report", "plan", "doctor", "completion"} < set(found)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path, capsys, monkeypatch):
    pytest.importorskip("shtab")
    fit = {"fit": MainCLI.subcommands()["fit"]}  # the others take the same, and each takes time
    monkeypatch.setattr(MainCLI, "subcommands", staticmethod(lambda: fit))
    with pytest.raises(SystemExit) as stop:
        main(["completion", "bash"])
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    script = tmp_path / "lightning-root"
    script.write_text(out)
    (tmp_path / "pyproject.toml").touch()
    asked = subprocess.run(
        ["bash", "-c", ASK.format(script=script)],
        input="\n".join(CASES) + "\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert asked.stderr == ""
    replies = [line.split() for line in asked.stdout.splitlines()]
    assert dict(zip(CASES, replies, strict=True)) == CASES


def test_without_shtab_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("lightning_root.cli.completion.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["completion", "bash"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: shtab and a jsonargparse that knows it are needed: "
        "pip install 'lightning-root[completion]'\n"
    )


def test_other_shells_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "fish"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument shell: invalid choice: 'fish'")
