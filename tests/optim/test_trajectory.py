"""The authors' own optimizer is followed, step by step.

`tests/data/authors_optimizer_trajectory.npz` holds what the authors' published script computes in
float32 on a CPU: 20 heavy-tailed gradients, the parameters before and after.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_root import ROOT

DATA = np.load(Path(__file__).parents[1] / "data" / "authors_optimizer_trajectory.npz")
MATRICES = ("square", "wide", "tall")
VECTORS = ("embed", "norm")


@pytest.mark.parametrize("mode", ["nesterov", "plain"])
def test_follows_the_authors_optimizer(mode):
    """Relative difference below 1e-4 after 20 steps is asked for; about 2e-6 is reached."""
    parameters = {
        name: torch.nn.Parameter(torch.tensor(DATA[f"init/{name}"])) for name in MATRICES + VECTORS
    }
    optimizer = ROOT(
        [
            {"name": "root", "params": [(name, parameters[name]) for name in MATRICES]},
            {"name": "adamw", "params": [(name, parameters[name]) for name in VECTORS]},
        ],
        lr=0.01,
        coefficients="published",
        nesterov=mode == "nesterov",
    )
    for t in range(20):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(DATA[f"grad/{t}/{name}"])
        optimizer.step()
        if f"{mode}/{t}/square" not in DATA:
            continue
        for name, parameter in parameters.items():
            expected = torch.tensor(DATA[f"{mode}/{t}/{name}"])
            difference = (parameter.detach() - expected).norm() / expected.norm()
            assert difference < 1e-5, (t, name)
