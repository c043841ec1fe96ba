"""Which parameter gets which rule, and how to say otherwise.

    python -m examples.guides.partition_rules

The split is read from the module: types first (an Embedding, a norm, a convolution), then use (the
last Linear, ties), and names last. Everything that is left and has two dimensions or more is a
matrix for ROOT. The table says what was decided and why; look at it before the first long run, also
for a run's configuration: `python -m lightning_root partition --config FILE`.

Three things no module tells, so that rules do:

- a parameter made by hand that stands for something else than a matrix: `scores` below, which only
  looks like one, goes to "adamw";
- several matrices stored in one, in unequal parts: `wqkv` has 32 rows of queries and 8 each of keys
  and values. Orthogonalized as one they would share a scale and a threshold, so: {"rows": [32, 8,
  8]}. Equal parts are {"rows": 3};
- a stack of matrices: `experts` is (expert, out, in), {"stack": 1}.

Globs are compared with the whole name, the first match wins, and a rule that matches nothing is an
error that names the nearest parameter: a typo does not train silently.
"""

import torch
from torch import Tensor, nn

from lightning_root import ROOT, Partition, partition_parameters

RULES = {
    "*.scores": "adamw",
    "*.wqkv": {"rows": [32, 8, 8]},
    "*.experts": {"stack": 1},
}


class Block(nn.Module):
    """Grouped-query attention and a mixture of four experts, in parameters made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Parameter(torch.randn(48, 32))
        self.output = nn.Linear(32, 32, bias=False)
        self.scores = nn.Parameter(torch.randn(4, 32))
        self.experts = nn.Parameter(torch.randn(4, 32, 32))

    def forward(self, x: Tensor) -> Tensor:  # (tokens, 32)
        """Each token's queries go through the output, then through its mixture of experts."""
        query, _, _ = (x @ self.wqkv.T).split((32, 8, 8), dim=-1)
        mixed = self.output(query)
        share = (mixed @ self.scores.T).softmax(-1)
        return torch.einsum("te,eoi,ti->to", share, self.experts, mixed)


def model() -> nn.Module:
    """An embedding, two blocks and a head."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(2)]
    return nn.Sequential(nn.Embedding(50, 32), *blocks, nn.Linear(32, 50))


def main() -> tuple[Partition, Partition]:
    """Show the split without rules and with them, take a step, and show what a typo does."""
    network = model()
    without = partition_parameters(network)
    print(f"without rules\n\n{without}\n")
    optimizer = ROOT(network.parameters(), lr=1e-2, rules=RULES)
    assert optimizer.partition is not None
    print(f"with rules\n\n{optimizer.partition}\n")

    network(torch.arange(50)).logsumexp(-1).mean().backward()
    optimizer.step()  # each of the three matrices in `wqkv` has its own threshold and scale now

    try:
        partition_parameters(network, rules={"*.score": "adamw"})
    except ValueError as error:
        print(f"a typo: {error}")
    return without, optimizer.partition


if __name__ == "__main__":
    main()
