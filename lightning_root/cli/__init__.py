"""The command line: LightningCLI that knows ROOT, and commands that do not train."""

from lightning_root.cli.entry import main
from lightning_root.cli.lightning import ROOTCLI

__all__ = ["ROOTCLI", "main"]
