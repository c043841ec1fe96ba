"""`convert-checkpoint`: optimizer states that load into ROOT, wherever they were saved."""

from lightning_root.cli.convert.command import run

__all__ = ["run"]
