"""`convert-checkpoint`: optimizer states that load into ROOT, wherever they were saved."""

from lightning_root.cli.convert.command import make_parser

__all__ = ["make_parser"]
