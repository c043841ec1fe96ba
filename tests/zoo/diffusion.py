"""Tiny diffusion models with the names and the order of the originals, written for the zoo."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


class Attention(nn.Module):
    """Attention to `context`, or to itself, with diffusers' names."""

    def __init__(self, width: int, context_width: int | None = None):
        super().__init__()
        context_width = context_width or width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        attended = F.scaled_dot_product_attention(
            self.to_q(x), self.to_k(context), self.to_v(context)
        )
        return self.to_out[0](attended)


class GEGLU(nn.Module):
    """A gated linear unit; one matrix gives gate and value."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The MLP of a transformer block."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 24), nn.Dropout(0.0), nn.Linear(24, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Attention within the image, attention to the text, an MLP."""

    def __init__(self, width: int, context_width: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, context_width)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer blocks on the pixels of a feature map."""

    def __init__(self, width: int, context_width: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, context_width)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        pixels = self.proj_in(self.norm(x)).flatten(2).mT
        for block in self.transformer_blocks:
            pixels = block(pixels, context)
        return x + self.proj_out(pixels.mT.unflatten(2, x.shape[2:]))


class ResnetBlock2D(nn.Module):
    """Two convolutions, with the time added between them."""

    def __init__(self, width_in: int, width_out: int, time_width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(4, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, width_out)
        self.norm2 = nn.GroupNorm(4, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.conv_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[..., None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Resample(nn.Module):
    """A convolution that halves the image, or one after doubling it."""

    def __init__(self, width: int, *, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else x)


class Stage(nn.Module):
    """Residual blocks with attention, and at the end a change of size."""

    def __init__(self, width_in: int, width_out: int, context_width: int, resample: str | None):
        super().__init__()
        self.attentions = nn.ModuleList([Transformer2DModel(width_out, context_width)])
        self.resnets = nn.ModuleList([ResnetBlock2D(width_in, width_out, 24)])
        if resample is None:  # the middle: one more residual block after the attention
            self.resnets.append(ResnetBlock2D(width_out, width_out, 24))
        else:
            self.add_module(
                resample, nn.ModuleList([Resample(width_out, up=resample == "upsamplers")])
            )

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), context)
        for block in list(self.resnets)[1:]:
            x = block(x, time)
        for name in ("downsamplers", "upsamplers"):
            for block in getattr(self, name, ()):
                x = block(x)
        return x


class TimestepEmbedding(nn.Module):
    """The MLP behind the sines of the time: no table."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sines: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sines)))


class UNet2DConditionModel(nn.Module):
    """A U-Net with attention to a text, as latent diffusion has it."""

    def __init__(self, channels: int = 4, context_width: int = 12):
        super().__init__()
        narrow, wide = 8, WIDTH
        self.conv_in = nn.Conv2d(channels, narrow, 3, padding=1)
        self.time_embedding = TimestepEmbedding(narrow, 24)
        self.class_embedding = nn.Embedding(10, 24)
        down = [
            Stage(narrow, narrow, context_width, "downsamplers"),
            Stage(narrow, wide, context_width, "downsamplers"),
        ]
        up = [
            Stage(2 * wide, wide, context_width, "upsamplers"),
            Stage(wide + narrow, narrow, context_width, "upsamplers"),
        ]
        self.down_blocks = nn.ModuleList(down)
        self.up_blocks = nn.ModuleList(up)
        self.mid_block = Stage(wide, wide, context_width, None)
        self.conv_norm_out = nn.GroupNorm(4, narrow)
        self.conv_out = nn.Conv2d(narrow, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor, context: Tensor) -> Tensor:
        embedded = self.time_embedding(sines(time, 8)) + self.class_embedding(label)
        x, kept = self.conv_in(x), []
        for block in self.down_blocks:
            x = block(x, embedded, context)
            kept.append(x)
        x = self.mid_block(x, embedded, context)
        for block in self.up_blocks:
            x = block(torch.cat([x, kept.pop()], 1), embedded, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class PatchEmbed(nn.Module):
    """Patches of the latents, each a token."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class TimestepEmbedder(nn.Module):
    """The same MLP as a Sequential."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(sines(time, 8))


class LabelEmbedder(nn.Module):
    """A vector for each class, and one for none."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class SelfAttention(nn.Module):
    """Attention with query, key and value in one matrix, and timm's names."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Mlp(nn.Module):
    """Two Linears, with timm's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DiTBlock(nn.Module):
    """A transformer block whose norms are steered by the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = SelfAttention(width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = Mlp(width, 24)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaLN_modulation(condition).unsqueeze(1).chunk(6, -1)
        )
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """The head, followed in the order of registration by what steers its norm."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """A diffusion transformer; its position table is fixed."""

    def __init__(self, channels: int = 4, patch: int = 2):
        super().__init__()
        self.x_embedder = PatchEmbed(channels, WIDTH, patch)
        self.t_embedder = TimestepEmbedder(WIDTH)
        self.y_embedder = LabelEmbedder(10, WIDTH)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(WIDTH) for _ in range(2))
        self.final_layer = FinalLayer(WIDTH, 2 * channels * patch**2)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        condition = self.t_embedder(time) + self.y_embedder(label)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


def sines(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of the time at growing periods."""
    angles = time[:, None] / 10.0 ** torch.arange(width // 2)
    return torch.cat([angles.sin(), angles.cos()], 1)
