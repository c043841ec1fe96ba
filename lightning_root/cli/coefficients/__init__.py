"""`python -m lightning_root coefficients`: show, fit, certify and compare."""

from lightning_root.cli.coefficients.arguments import make_parser

__all__ = ["make_parser"]
