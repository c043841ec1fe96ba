"""Tiny models of the usual kinds, all for 256 bytes or 8 x 8 grey images and 10 classes."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm attention and MLP, written by hand; causal for text."""

    def __init__(self, width: int = 16, heads: int = 2, causal: bool = True):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A byte-level GPT; its head is tied to the embedding, or a Linear of its own."""

    def __init__(self, *, tied: bool, depth: int = 2, width: int = 16, context: int = 32):
        super().__init__()
        self.wte = nn.Embedding(256, width)
        self.wpe = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 256, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class TransformerEncoderViT(nn.Module):
    """A vision transformer around torch's own encoder."""

    def __init__(self, width: int = 16, depth: int = 2):
        super().__init__()
        self.conv_proj = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.heads = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.pos_embedding
        return self.heads(self.encoder(x)[:, 0])


class ViT(nn.Module):
    """A vision transformer written by hand, with register tokens and no class token."""

    def __init__(self, width: int = 16, depth: int = 2):
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Unfold(2, stride=2))
        self.patch_embed.append(Transpose()).append(nn.Linear(4, width))
        self.pos_embed = nn.Parameter(torch.zeros(16, width))
        self.register_tokens = nn.Parameter(torch.zeros(4, width))
        self.blocks = nn.Sequential(*(Block(width, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        x = torch.cat([self.register_tokens.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x)).mean(1))


class Transpose(nn.Module):
    """Swap the last two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class CNN(nn.Module):
    """Convolutions of all kinds: a stem, a depthwise one, a pointwise one, a grouped one."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(images)))
        x = torch.relu(self.bn2(self.grouped(self.pointwise(self.depthwise(x)))))
        return self.fc(x.mean((2, 3)))


def mlp(*widths: int) -> nn.Sequential:
    """Return Linears with ReLUs between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
