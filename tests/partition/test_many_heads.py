"""Several output heads: what reads one input beside a head, and what only looks like one."""

import pytest
from torch import nn

from lightning_root.partition import partition_all, partition_parameters
from tests.partition.reading import Children, Wrapper, heads


class Layer(nn.Module):
    """One Linear in a block of its own."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.lin = nn.Linear(fan_in, fan_out)


class SAGEConv(nn.Module):
    """A layer of a graph network: neighbours and the node itself."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.lin_l, self.lin_r = (
            nn.Linear(fan_in, fan_out),
            nn.Linear(fan_in, fan_out, bias=False),
        )


class Network(nn.Module):
    """A custom MLP."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])


class ConvBlock(nn.Sequential):
    """A convolution, a norm, an activation."""

    def __init__(self, fan_in: int, fan_out: int, size: int = 3):
        super().__init__(nn.Conv2d(fan_in, fan_out, size), nn.BatchNorm2d(fan_out), nn.ReLU())


def two(fan_in: int, hidden: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, hidden), nn.Tanh(), nn.Linear(hidden, fan_out))


def trunk_and(**others: nn.Module) -> Children:
    return Children(trunk=two(8, 32, 32), **others)


L, C = nn.Linear, nn.Conv2d
HEADS = {
    "a named head and one without a name": (
        lambda: Children(body=L(16, 32), aux_head=L(32, 10), out=L(32, 10)),
        "aux_head out",
    ),
    "a named head and the last Linear": (
        lambda: Children(body=L(16, 32), aux_head=L(32, 5), final_map=L(32, 10)),
        "aux_head final_map",
    ),
    "a hidden convolution called head": (
        lambda: Children(
            stem=ConvBlock(3, 8),
            features=nn.Sequential(ConvBlock(8, 16), ConvBlock(16, 16)),
            head=nn.Sequential(ConvBlock(16, 24), ConvBlock(24, 32, 1)),
            fc=L(32, 5),
        ),
        "fc",
    ),
    "a hidden Linear called head": (
        lambda: Children(body=L(8, 16), proj_head=L(16, 24), classifier=L(24, 5)),
        "classifier",
    ),
    "a top-level fc before the classifier": (
        lambda: Children(body=L(8, 16), fc=L(16, 24), classifier=L(24, 5)),
        "classifier",
    ),
    "actor and critic on a trunk": (
        lambda: trunk_and(actor=L(32, 4), critic=L(32, 1)),
        "actor critic",
    ),
    "actor and critic, small": (
        lambda: Wrapper(Children(body=L(4, 64), actor=L(64, 2), critic=L(64, 1))),
        "model.actor model.critic",
    ),
    "actor and critic of two layers": (
        lambda: trunk_and(actor=two(32, 16, 4), critic=two(32, 16, 1)),
        "actor.2 critic.2",
    ),
    "actor and critic without a trunk": (
        lambda: Children(critic=two(4, 64, 1), actor=two(4, 64, 4)),
        "critic.2 actor.2",
    ),
    "actor and critic of a custom class": (
        lambda: Children(actor=Network(8, 64, 2), critic=Network(8, 64, 1)),
        "actor.fc2 critic.fc2",
    ),
    "twin critics": (
        lambda: Children(q1=Network(8, 64, 1), q2=Network(8, 64, 1)),
        "q1.fc2 q2.fc2",
    ),
    "critics in a list": (
        lambda: Children(critics=nn.ModuleList([Network(8, 64, 1) for _ in range(3)])),
        "critics.0.fc2 critics.1.fc2 critics.2.fc2",
    ),
    "an actor of another class than its critics": (
        lambda: Children(
            actor=Children(net=two(8, 32, 32), mu=L(32, 2), log_std=L(32, 2)),
            q1=Network(10, 64, 1),
            q2=Network(10, 64, 1),
        ),
        "actor.mu actor.log_std q1.fc2 q2.fc2",
    ),
    "mean and variance of a policy": (
        lambda: trunk_and(mu=L(32, 4), logvar=L(32, 4)),
        "mu logvar",
    ),
    "tasks": (
        lambda: trunk_and(depth=L(32, 1), age=L(32, 3), sex=L(32, 2)),
        "depth age sex",
    ),
    "mean and variance of a latent code": (
        lambda: Children(
            encoder=Children(fc=L(16, 32), fc_mean=L(32, 4), fc_logvar=L(32, 4)),
            decoder=two(4, 32, 16),
        ),
        "decoder.2",
    ),
    "a flat variational autoencoder": (
        lambda: Children(fc1=L(64, 32), fc21=L(32, 4), fc22=L(32, 4), fc3=L(4, 32), fc4=L(32, 64)),
        "fc4",
    ),
    "what a count model's decoder gives": (
        lambda: Children(
            z_encoder=two(16, 32, 4),
            decoder=Children(
                px=nn.Sequential(L(4, 32), nn.ReLU()),
                px_scale=nn.Sequential(L(32, 16), nn.Softmax(-1)),
                px_r=L(32, 16),
                px_dropout=L(32, 16),
            ),
        ),
        "decoder.px_scale.0 decoder.px_r decoder.px_dropout",
    ),
    "two towers that one layer joins": (
        lambda: Children(body=L(8, 32), left=L(32, 16), right=L(32, 16), out=L(32, 1)),
        "out",
    ),
    "fused attention beside a head": (
        lambda: Children(body=L(8, 32), mixer=L(32, 96), back=L(32, 32), out=L(32, 5)),
        "out",
    ),
    "branches of a residual block": (
        lambda: Children(body=L(8, 32), skip=L(32, 16), main=L(32, 16), out=L(16, 5)),
        "out",
    ),
    "a layer that a reshape follows": (
        lambda: Children(body=L(8, 32), widen=L(32, 784), head=L(32, 5)),
        "head",
    ),
    "queries beside a head": (
        lambda: Children(
            body=L(8, 32), query=L(32, 8), key=L(32, 8), value=L(32, 24), out=L(24, 5)
        ),
        "out",
    ),
    "a last block of another size": (
        lambda: nn.ModuleList([Layer(8, 16), Layer(16, 16), Layer(16, 4)]),
        "2.lin",
    ),
    "two layers of a graph network": (
        lambda: Children(convs=nn.ModuleList([SAGEConv(8, 16), SAGEConv(16, 16), SAGEConv(16, 3)])),
        "convs.2.lin_l convs.2.lin_r",
    ),
    "graph layers as attributes": (
        lambda: Children(conv1=SAGEConv(8, 16), conv2=SAGEConv(16, 3)),
        "conv2.lin_l conv2.lin_r",
    ),
    "graph layers, then a Linear": (
        lambda: Children(convs=nn.ModuleList([SAGEConv(8, 16), SAGEConv(16, 16)]), lin=L(16, 3)),
        "lin",
    ),
    "an adaptive softmax": (
        lambda: Children(
            emb=nn.Embedding(90, 16),
            body=L(16, 16),
            criterion=nn.AdaptiveLogSoftmaxWithLoss(16, 90, [10, 40], div_value=2.0),
        ),
        "criterion.head criterion.tail.0.1 criterion.tail.1.1",
    ),
    "boxes, classes and centers": (
        lambda: Children(
            backbone=ConvBlock(3, 8),
            bbox_head=Children(
                cls_convs=nn.ModuleList([ConvBlock(8, 8)]),
                reg_convs=nn.ModuleList([ConvBlock(8, 8)]),
                conv_cls=C(8, 20, 3),
                conv_reg=C(8, 4, 3),
                center_ness=C(8, 1, 3),
            ),
        ),
        "bbox_head.conv_cls bbox_head.conv_reg bbox_head.center_ness",
    ),
    "heads for each level": (
        lambda: Children(
            body=nn.ModuleList([ConvBlock(3, 8), ConvBlock(8, 16)]),
            cls_preds=nn.ModuleList([C(8, 6, 3), C(16, 9, 3)]),
            head=Children(module_list=nn.ModuleList([C(8, 12, 3), C(16, 18, 3)])),
        ),
        "cls_preds.0 cls_preds.1 head.module_list.0 head.module_list.1",
    ),
    "two stages of a detector": (
        lambda: Children(
            box_head=Children(fc6=L(64, 16), fc7=L(16, 16)),
            box_predictor=Children(cls_score=L(16, 5), bbox_pred=L(16, 20)),
        ),
        "box_predictor.cls_score box_predictor.bbox_pred",
    ),
    "auxiliary classifiers": (
        lambda: Children(
            conv=ConvBlock(3, 8),
            aux1=Children(conv=ConvBlock(8, 8), fc1=L(8, 16), fc2=L(16, 5)),
            aux2=Children(conv=ConvBlock(8, 8), fc1=L(8, 16), fc2=L(16, 5)),
            fc=L(8, 5),
        ),
        "aux1.fc2 aux2.fc2 fc",
    ),
    "boxes and classes of every level": (
        lambda: Children(
            backbone=nn.Sequential(ConvBlock(3, 8), ConvBlock(8, 32)),
            loc=nn.ModuleList([C(8, 16, 3), C(32, 24, 3)]),
            conf=nn.ModuleList([C(8, 84, 3), C(32, 126, 3)]),
        ),
        "loc.0 loc.1 conf.0 conf.1",
    ),
    "forecast and backcast of every block": (
        lambda: Children(
            blocks=nn.ModuleList(
                Children(stack=two(12, 16, 16), backcast_fc=L(16, 12), forecast_fc=L(16, 4))
                for _ in range(2)
            )
        ),
        "blocks.0.backcast_fc blocks.0.forecast_fc blocks.1.backcast_fc blocks.1.forecast_fc",
    ),
    "blocks abreast": (
        lambda: Children(blocks=nn.ModuleList([Children(layers=two(12, 16, 16)) for _ in "ab"])),
        "blocks.0.layers.2 blocks.1.layers.2",
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_finds_every_head(case: str):
    build, expected = HEADS[case]
    assert heads(build()) == {f"{path}.weight" for path in expected.split()}


WITHOUT = {
    "blocks of one size": (
        lambda: Children(emb=nn.Embedding(9, 4), layers=nn.ModuleList([Layer(4, 4), Layer(4, 4)])),
        'if `layers.1.lin` is one: rules={"layers.1.lin.weight": "adamw"}',
    ),
    "a convolutional decoder": (
        lambda: Children(up=ConvBlock(3, 8), back=nn.ConvTranspose2d(8, 3, 2)),
        'if `back` is one: rules={"back.weight": "adamw"}',
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_the_table_says_that_no_head_was_found_until_a_rule_settles_it(case: str):
    build, words = WITHOUT[case]
    model = build()
    assert heads(model) == set()
    *_, line = str(partition_parameters(model)).splitlines()
    assert line == f"no output head found; {words}"
    rules = {words.split('"')[1]: "adamw"}
    for ruled in (partition_parameters(model, rules=rules), partition_all(model, rules=rules)):
        assert "no output head" not in str(ruled)


def test_a_model_with_a_head_or_a_tied_one_has_no_such_line():
    tied = Children(emb=nn.Embedding(9, 4), layers=nn.ModuleList([Layer(4, 4)]), lm_head=L(4, 9))
    assert "no output head" not in str(partition_parameters(tied))
    tied.lm_head.weight = tied.emb.weight
    assert "no output head" not in str(partition_parameters(tied))
    frozen = Children(layers=nn.ModuleList([Layer(4, 4)]), head=L(4, 9).requires_grad_(False))
    assert "no output head" not in str(partition_parameters(frozen))
