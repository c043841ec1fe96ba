"""Models with more than one output, or with something that only looks like one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.specimen import VOCABULARY, WIDTH, Specimen, images, logits_loss, tokens


def conv_bn(reads: int, writes: int, size: int = 3) -> nn.Sequential:
    """A convolution, its norm, an activation."""
    convolution = nn.Conv2d(reads, writes, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(writes), nn.ReLU())


class SelecSLS(nn.Module):
    """timm's: the convolutions called head are hidden, `fc` gives the classes."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.features = nn.Sequential(conv_bn(8, 16), conv_bn(16, 16))
        self.head = nn.Sequential(conv_bn(16, 20), conv_bn(20, 24, 1))
        self.fc = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.head(self.features(self.stem(images))).mean((2, 3)))


class InceptionAux(nn.Module):
    """A classifier half way."""

    def __init__(self, reads: int):
        super().__init__()
        self.conv = conv_bn(reads, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.conv(x).mean((2, 3)))))


class GoogLeNet(nn.Module):
    """torchvision's, with its two auxiliary classifiers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.inception3, self.inception4 = (
            conv_bn(3, 8),
            conv_bn(8, 12),
            conv_bn(12, 16),
        )
        self.aux1, self.aux2 = InceptionAux(8), InceptionAux(12)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv1(images)
        second = self.inception3(first)
        return self.fc(self.inception4(second).mean((2, 3))) + self.aux1(first) + self.aux2(second)


class ActorCritic(nn.Module):
    """A policy and a value on one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.actor = nn.Linear(WIDTH, 4)
        self.critic = nn.Linear(WIDTH, 1)

    def forward(self, states: Tensor) -> Tensor:
        x = torch.tanh(self.trunk(states))
        return torch.cat([self.actor(x), self.critic(x)], -1)


class MultiTask(nn.Module):
    """Tasks whose names say nothing, each a Linear or a small network."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, WIDTH))
        self.price, self.volume = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 3)
        self.brand = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(x))
        return torch.cat([self.price(x), self.volume(x), self.brand(x)], -1)


class Encoder(nn.Module):
    """Mean and variance of a latent code."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, WIDTH)
        self.fc_mean, self.fc_logvar = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        return self.fc_mean(x) + self.fc_logvar(x).exp()


class VAE(nn.Module):
    """The decoder's last layer is the output; the encoder's two feed the decoder."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class AdaptiveSoftmaxModel(nn.Module):
    """A language model for a large vocabulary."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, VOCABULARY, [8, 24], div_value=2.0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.softmax.log_prob(self.rnn(self.embedding(tokens))[0].flatten(0, 1))


class DetectionHead(nn.Module):
    """Boxes, classes and centers from one feature map, after convolutions of their own."""

    def __init__(self, width: int):
        super().__init__()
        self.cls_convs = nn.ModuleList([conv_bn(width, width)])
        self.reg_convs = nn.ModuleList([conv_bn(width, width)])
        self.conv_cls = nn.Conv2d(width, 6, 3, padding=1)
        self.conv_reg = nn.Conv2d(width, 4, 3, padding=1)
        self.center_ness = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        classes, boxes = x, x
        for layer in self.cls_convs:
            classes = layer(classes)
        for layer in self.reg_convs:
            boxes = layer(boxes)
        found = [self.conv_cls(classes), self.conv_reg(boxes), self.center_ness(boxes)]
        return torch.cat(found, 1).flatten(1)


class FeaturePyramid(nn.Module):
    """Levels of one width."""

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(size, width, 1) for size in sizes)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in sizes)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        inner = [block(x) for block, x in zip(self.inner_blocks, levels, strict=True)]
        inner[0] = inner[0] + F.interpolate(inner[1], scale_factor=2)
        return [block(x) for block, x in zip(self.layer_blocks, inner, strict=True)]


class Detector(nn.Module):
    """A backbone, a pyramid, a dense head."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"layer1": conv_bn(3, 8), "layer2": conv_bn(8, 16)})
        self.fpn = FeaturePyramid((8, 16), 12)
        self.bbox_head = DetectionHead(12)

    def forward(self, images: Tensor) -> Tensor:
        first = self.body["layer1"](images)
        second = self.body["layer2"](F.max_pool2d(first, 2))
        return torch.cat([self.bbox_head(x) for x in self.fpn([first, second])], 1)


class SAGEConv(nn.Module):
    """PyG's: neighbours and the node itself."""

    def __init__(self, reads: int, writes: int):
        super().__init__()
        self.lin_l = nn.Linear(reads, writes)
        self.lin_r = nn.Linear(reads, writes, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.lin_l(adjacency @ x) + self.lin_r(x)


class GraphSAGE(nn.Module):
    """Layers in a list; the last one gives the classes."""

    def __init__(self):
        super().__init__()
        sizes = [(6, WIDTH), (WIDTH, WIDTH), (WIDTH, 3)]
        self.convs = nn.ModuleList(SAGEConv(*pair) for pair in sizes)

    def forward(self, x: Tensor) -> Tensor:
        adjacency = torch.ones(len(x), len(x)).tril() / len(x)
        for layer in self.convs[:-1]:
            x = F.relu(layer(x, adjacency))
        return self.convs[-1](x, adjacency)


picture_loss, state_loss = logits_loss(images), logits_loss(lambda: torch.randn(4, 8))
HEAD = {"fc.weight": "output head"}

MANY_HEADS = {
    "selecsls": Specimen(build=SelecSLS, loss=picture_loss, aside=HEAD),
    "googlenet": Specimen(
        build=GoogLeNet,
        loss=picture_loss,
        aside={**HEAD, "aux?.fc2.weight": "output head of an auxiliary classifier"},
    ),
    "actor_critic": Specimen(
        build=ActorCritic,
        loss=state_loss,
        aside={"actor.weight": "output head", "critic.weight": "output head"},
    ),
    "multi_task": Specimen(
        build=MultiTask,
        loss=state_loss,
        aside=dict.fromkeys(("price.weight", "volume.weight", "brand.weight"), "output head"),
    ),
    "vae": Specimen(
        build=VAE,
        loss=logits_loss(lambda: torch.randn(4, 12)),
        aside={"decoder.2.weight": "output head; mean and variance of the code are hidden"},
    ),
    "adaptive_softmax": Specimen(
        build=AdaptiveSoftmaxModel,
        loss=logits_loss(tokens),
        aside={
            "embedding.weight": "token embedding",
            "softmax.head.weight": "output head: frequent tokens and clusters",
            "softmax.tail.*.1.weight": "output head of a cluster, after a hidden projection",
        },
    ),
    "detector": Specimen(
        build=Detector,
        loss=picture_loss,
        aside={
            "bbox_head.conv_*.weight": "output head",
            "bbox_head.center_ness.weight": "output head of one channel",
        },
    ),
    "graphsage": Specimen(
        build=GraphSAGE,
        loss=logits_loss(lambda: torch.randn(5, 6)),
        aside={"convs.2.lin_?.weight": "output head: both maps of the last layer"},
    ),
}
