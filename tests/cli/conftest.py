"""Commands as a person types them, in the process of the tests."""

import pytest

from lightning_root.cli import main


@pytest.fixture
def call(capsys):
    """Run a command: exit status, stdout, stderr."""

    def called(*arguments):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return called
