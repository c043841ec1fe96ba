"""Tiny image models with timm's names and order, written for the zoo."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.diffusion import Mlp, PatchEmbed, SelfAttention


class LayerScale(nn.Module):
    """A gain for each feature."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a scale."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = (
            nn.LayerNorm(width),
            SelfAttention(width),
            LayerScale(width),
        )
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width), Mlp(width, 24), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A vision transformer with a class token and registers."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, 4, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.patch_embed = PatchEmbed(3, width, 4)
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        tokens = torch.cat([self.cls_token, self.reg_token], 1).expand(len(x), -1, -1)
        return self.head(self.norm(self.blocks(torch.cat([tokens, x], 1)))[:, 0])


class ChannelNorm(nn.LayerNorm):
    """A norm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP over channels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, 24)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1)))
        return x + (inner * self.gamma).movedim(-1, 1)


class ConvNeXtStage(nn.Module):
    """A halving of the image, then blocks."""

    def __init__(self, width_in: int, width: int, depth: int):
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if width_in != width:
            self.downsample = nn.Sequential(ChannelNorm(width_in), nn.Conv2d(width_in, width, 2, 2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class NormedHead(nn.Module):
    """A mean over the image, a norm, a Linear."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3))))


class ConvNeXt(nn.Module):
    """Patches by a convolution called stem, stages, a head of several layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelNorm(8))
        self.stages = nn.Sequential(ConvNeXtStage(8, 8, 1), ConvNeXtStage(8, 16, 2))
        self.head = NormedHead(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)))


class SqueezeExcite(nn.Module):
    """Gates for channels, by convolutions on a single pixel."""

    def __init__(self, width: int, reduced: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.conv_expand(F.silu(self.conv_reduce(squeezed))).sigmoid()


class InvertedResidual(nn.Module):
    """Wide between two pointwise convolutions, with a depthwise one in the middle."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        wide = 2 * width_in
        self.conv_pw, self.bn1 = nn.Conv2d(width_in, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv_dw = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn2, self.se = nn.BatchNorm2d(wide), SqueezeExcite(wide, 4)
        self.conv_pwl, self.bn3 = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.conv_pw(x)))
        return self.bn3(self.conv_pwl(self.se(F.silu(self.bn2(self.conv_dw(x))))))


class EfficientNet(nn.Module):
    """A mobile network: the convolution called head is a hidden one."""

    def __init__(self):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        stages = [(8, 8), (8, 12)]
        self.blocks = nn.Sequential(*(nn.Sequential(InvertedResidual(*pair)) for pair in stages))
        self.conv_head = nn.Conv2d(12, 24, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.classifier = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.bn1(self.conv_stem(images))))
        return self.classifier(F.silu(self.bn2(self.conv_head(x))).mean((2, 3)))


class MixerBlock(nn.Module):
    """An MLP over tokens, an MLP over channels."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.norm1, self.mlp_tokens = nn.LayerNorm(width), Mlp(length, 12)
        self.norm2, self.mlp_channels = nn.LayerNorm(width), Mlp(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class MlpMixer(nn.Module):
    """A mixer; its patch embedding is called stem."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = PatchEmbed(3, width, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(images))).mean(1))
