"""What a run says about itself."""

from lightning_root.diagnostics.summary import RunSummary as RunSummary

__all__ = ["RunSummary"]
