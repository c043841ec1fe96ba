"""A byte-level GPT: the model of the quick start.

Bytes go in (there is no tokenizer), the probabilities of the next byte come out. The hidden
matrices, four per block, are what ROOT orthogonalizes:

    embedding -> [ norm -> attention -> + -> norm -> mlp -> + ] x depth -> norm -> head

The module brings no optimizer: `optimizer:` in the YAML file does. To look at its options:

    python -m lightning_root fit --model.help examples.gpt.GPT
"""

import math

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

VOCABULARY = 256  # one symbol per byte value


def rotary_angles(
    time: int, head_width: int, device: torch.device, theta: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which position `t` turns the `i`-th pair of channels.

    Rotary embedding, arXiv:2104.09864: query and key are turned by `t * theta^(-2 i / head_width)`,
    so that their product depends on the distance alone. Computed anew in each forward pass: it is
    cheap, and the module stays free of buffers that a sharded or meta-device start could lose.

    Returns:
        Two tensors of shape (time, head_width / 2), float32.
    """
    channel = torch.arange(0, head_width, 2, device=device, dtype=torch.float32)
    frequency = theta ** (-channel / head_width)  # (head_width / 2,)
    angle = torch.outer(torch.arange(time, device=device, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(
    x: Tensor,  # (..., time, head_width)
    cos: Tensor,  # (time, head_width / 2)
    sin: Tensor,  # (time, head_width / 2)
) -> Tensor:
    """Turn each pair (channel i, channel i + head_width / 2) by its angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with one fused matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,  # (batch, time, width)
        cos: Tensor,  # (time, head_width / 2)
        sin: Tensor,  # (time, head_width / 2)
    ) -> Tensor:
        """Mix information from earlier positions into each position."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (batch, time, 3, heads, head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, head_width)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class MLP(nn.Module):
    """Two matrices with a GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width)
        """Transform each position on its own."""
        down: Tensor = self.down(F.gelu(self.up(x)))
        return down


class Block(nn.Module):
    """Attention and MLP, each normalized at its entry and added to the residual stream."""

    def __init__(self, width: int, heads: int, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, *angles: Tensor) -> Tensor:  # x: (batch, time, width)
        """Return the residual stream after this block; `angles` are the attention's."""
        x = x + self.attention(self.attention_norm(x), *angles)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class GPT(L.LightningModule):
    """A byte-level, decoder-only transformer (pre-norm, rotary positions, no biases).

    Args:
        depth: Number of blocks.
        width: Size of the residual stream; `heads` must divide it into even parts.
        heads: Attention heads per block.
        context: Longest sequence the model is trained on and accepts, in bytes.

    Raises:
        ValueError: If `width` does not split into `heads` parts of even size.
    """

    def __init__(
        self, depth: int = 4, width: int = 192, heads: int = 6, context: int = 256
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(
                f"`width` must be a multiple of 2 * `heads`, got width={width} and heads={heads}; "
                f"rotary positions turn pairs of channels, try width={2 * heads * 16}"
            )
        self.save_hyperparameters()
        self.context, self.head_width = context, width // heads
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.initialize()

    def initialize(self) -> None:
        """Draw the weights so that signals keep their size from layer to layer.

        A hidden matrix gets the standard deviation 1 / sqrt(columns); what writes to the residual
        stream is divided by sqrt(2 * depth), as in GPT-2, so that the sum over all blocks stays of
        order one. The small head makes the first prediction nearly uniform over the bytes.
        """
        nn.init.normal_(self.embedding.weight, std=0.3)
        nn.init.normal_(self.head.weight, std=0.02)
        for name, matrix in self.blocks.named_parameters():
            if matrix.ndim == 2:
                writes = name.endswith(("attention.output.weight", "mlp.down.weight"))
                scale = math.sqrt(2 * len(self.blocks)) if writes else 1.0
                nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5 / scale)

    def configure_model(self) -> None:
        """Shard the parts of the model, one by one, where the strategy is FSDP2."""
        if self.device_mesh is None:
            return
        for part in (self.embedding, *self.blocks, self.norm, self.head):
            if not isinstance(part, FSDPModule):  # Lightning may call this hook again
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, time) integers in [0, 256)
        """Return the logits of the next byte after each position: (batch, time, 256)."""
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"`tokens` must hold at most {self.context} bytes a row, got {tokens.shape[1]}; "
                "shorten the windows or raise the model's `context`"
            )
        cos, sin = rotary_angles(tokens.shape[1], self.head_width, tokens.device)
        x = self.embedding(tokens)  # (batch, time, width)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def loss(self, batch: Tensor) -> Tensor:  # (batch, time + 1) integers in [0, 256)
        """Mean cross-entropy of each byte given those before it, in nats per byte."""
        logits = self(batch[:, :-1])  # (batch, time, 256)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        loss, size = self.loss(batch), len(batch)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=size)
        self.log("val/bits_per_byte", loss / math.log(2), sync_dist=True, batch_size=size)
