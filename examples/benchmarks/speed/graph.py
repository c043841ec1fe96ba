"""ROOT's step as a CUDA graph, which is replayed: what a step takes without the host's part."""

from typing import Any

import torch

from lightning_root import ROOT


class GraphedROOT(ROOT):
    """ROOT with `capturable=True`, captured in the second step and replayed from then on.

    Gradients must lie in the same place in every step.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _warm = False

    def step(self, closure: Any = None) -> None:
        """One step; the first makes the state."""
        if not self._warm:
            super().step()
            self._warm = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                super().step()
        self._graph.replay()
