"""`python -m lightning_root partition`: which parameter gets which rule and why."""

import argparse

from lightning_root.cli.lightning import read_model
from lightning_root.partition import partition_parameters


def run(options: argparse.Namespace) -> int:
    """Print the partition of the model."""
    model, chosen = read_model(options.model, allocate=options.allocate)
    print(partition_parameters(model, rules=chosen.get("rules")))
    return 0
