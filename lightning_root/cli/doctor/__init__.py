"""`doctor`: whether what a run needs is there, and what to do where it is not."""

from lightning_root.cli.doctor.command import run

__all__ = ["run"]
