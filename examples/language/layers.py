"""The layers of a Llama-style transformer: attention with grouped queries, and a gated MLP."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from examples.gpt import rotate


class Matrix(nn.Linear):
    """A linear layer without bias whose weights are drawn from a normal distribution.

    They can be drawn again by `reset_parameters`, which is what Lightning calls where a model was
    made without memory. (torch's own linear layer would draw from another distribution.)

    Args:
        columns: Size of the input.
        rows: Size of the output.
        gain: The standard deviation is `gain / sqrt(columns)`: with 1, signals keep their size.
    """

    def __init__(self, columns: int, rows: int, gain: float = 1.0) -> None:
        self.std = gain * columns**-0.5  # before nn.Linear draws the weights
        super().__init__(columns, rows, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class Embedding(nn.Embedding):
    """One vector per token, small: tied to the head it must not start with strong opinions."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key and one value head.

    Grouped-query attention, arXiv:2305.13245. Query head `i` reads key and value head
    `i // (heads / key_value_heads)`. The arguments are as in `Block`.
    """

    def __init__(
        self, dimension: int, heads: int, key_value_heads: int, head_dimension: int, gain: float
    ) -> None:
        super().__init__()
        self.head_dimension, self.group = head_dimension, heads // key_value_heads
        self.query = Matrix(dimension, heads * head_dimension)
        self.key = Matrix(dimension, key_value_heads * head_dimension)
        self.value = Matrix(dimension, key_value_heads * head_dimension)
        self.output = Matrix(heads * head_dimension, dimension, gain)

    def forward(
        self,
        x: Tensor,  # (batch, time, dimension)
        cos: Tensor,  # (time, head_dimension / 2)
        sin: Tensor,  # (time, head_dimension / 2)
    ) -> Tensor:
        """Mix information from earlier positions into each position."""
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        # Repeated rather than `enable_gqa=True`, which not every backend has.
        key, value = (part.repeat_interleave(self.group, dim=1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def split(self, x: Tensor) -> Tensor:
        """(batch, time, heads * head_dimension) to (batch, heads, time, head_dimension)."""
        return x.unflatten(-1, (-1, self.head_dimension)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU, arXiv:2002.05202: one matrix up, one that gates it, one down.

    The arguments are as in `Block`.
    """

    def __init__(self, dimension: int, mlp_dimension: int, gain: float) -> None:
        super().__init__()
        self.gate = Matrix(dimension, mlp_dimension)
        self.up = Matrix(dimension, mlp_dimension)
        self.down = Matrix(mlp_dimension, dimension, gain)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, dimension)
        """Transform each position on its own."""
        down: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return down


class Block(nn.Module):
    """Attention and MLP, each normalized at its entry and added to the residual stream.

    Args:
        dimension: Size of the residual stream.
        heads: Query heads.
        key_value_heads: Key and value heads.
        head_dimension: Size of a head.
        mlp_dimension: Size inside the MLP.
        norm_eps: Added to the mean square in each normalization.
        gain: Of the two matrices that write to the residual stream.
        activation_checkpointing: Compute the inside of the block again in the backward pass instead
            of keeping it.
    """

    def __init__(
        self,
        dimension: int,
        heads: int,
        key_value_heads: int,
        head_dimension: int,
        mlp_dimension: int,
        norm_eps: float,
        gain: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dimension, eps=norm_eps)
        self.attention = Attention(dimension, heads, key_value_heads, head_dimension, gain)
        self.mlp_norm = nn.RMSNorm(dimension, eps=norm_eps)
        self.mlp = MLP(dimension, mlp_dimension, gain)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x: (batch, time, dimension)
        """Return the residual stream after this block."""
        if self.activation_checkpointing and self.training:
            # Inside `forward`, so that FSDP2, which hooks the call, gathers the weights around it.
            again: Tensor = checkpoint(self.compute, x, cos, sin, use_reentrant=False)
            return again
        return self.compute(x, cos, sin)

    def compute(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`forward` without checkpointing."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))
