"""The network: from tokens to logits, or with targets to the loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from examples.gpt import rotary_angles
from examples.language.layers import Block, Embedding, Matrix
from examples.language.loss import chunked_cross_entropy


class Network(nn.Module):
    """Embedding, blocks, norm, head: the mathematics of Hugging Face's `LlamaForCausalLM`.

    All that reads a parameter happens inside `forward`, the loss too: FSDP2 shards the embedding,
    the last norm and the head with this module, and gathers them around its call. There are no
    buffers that a sharded or meta-device start could lose. The arguments are those of
    `examples.language.model.Llama`.
    """

    def __init__(
        self,
        vocabulary: int,
        dimension: int,
        layers: int,
        heads: int,
        key_value_heads: int,
        head_dimension: int,
        mlp_dimension: int,
        rope_theta: float,
        norm_eps: float,
        tied: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.head_dimension, self.rope_theta = head_dimension, rope_theta
        self.embedding = Embedding(vocabulary, dimension)
        self.blocks = nn.ModuleList(
            Block(
                dimension,
                heads,
                key_value_heads,
                head_dimension,
                mlp_dimension,
                norm_eps,
                gain=(2 * layers) ** -0.5,  # as in GPT-2: the sum over all blocks is of order one
                activation_checkpointing=activation_checkpointing,
            )
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dimension, eps=norm_eps)
        self.head = None if tied else Matrix(dimension, vocabulary)

    def forward(
        self,
        tokens: Tensor,  # (batch, time) integers in [0, vocabulary)
        targets: Tensor | None = None,  # (batch, time) the same, one token later
    ) -> Tensor:
        """Return logits, (batch, time, vocabulary); with `targets` the loss, 0-dim, in nats."""
        time = tokens.shape[1]
        cos, sin = rotary_angles(time, self.head_dimension, tokens.device, self.rope_theta)
        x = self.embedding(tokens)  # (batch, time, dimension)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.norm(x)
        weight = self.embedding.weight if self.head is None else self.head.weight
        if targets is None:
            return F.linear(x, weight)
        return chunked_cross_entropy(x.flatten(0, 1), weight, targets.flatten())
