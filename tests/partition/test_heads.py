"""The output head, where it is easy to miss or to take something else for it."""

import pytest
from torch import nn

from lightning_root.partition import partition_parameters
from tests.models import GPT, mlp
from tests.partition.reading import (
    Children,
    Residual,
    Wrapper,
    attention,
    heads,
    linear,
    names,
    residual,
    two_layers,
)

HEADS = {
    "a single Linear": (linear, {"weight"}),
    "last layer of a head that is an MLP": (
        lambda: Children(trunk=two_layers(), head=two_layers(), late=linear()),
        {"head.2.weight"},
    ),
    "head that is registered first": (
        lambda: Children(lm_head=linear(), trunk=two_layers()),
        {"lm_head.weight"},
    ),
    "several heads": (
        lambda: Children(trunk=linear(), policy_head=linear(), value_head=nn.Linear(4, 1)),
        {"policy_head.weight", "value_head.weight"},
    ),
    "parallel heads": (
        lambda: Children(heads=nn.ModuleDict({"a": linear(), "b": two_layers()})),
        {"heads.a.weight", "heads.b.2.weight"},
    ),
    "convolution called head": (
        lambda: Children(conv=nn.Conv2d(3, 8, 3), classifier=nn.Conv2d(8, 4, 1)),
        {"classifier.weight"},
    ),
    "generic name at the top, then a convolution": (
        lambda: Children(model=Children(fc=linear(), conv=nn.Conv2d(4, 4, 3))),
        {"model.fc.weight"},
    ),
    "no generic name below the top": (
        lambda: Children(gate=Children(fc=linear()), conv=nn.Conv2d(4, 4, 3)),
        set(),
    ),
    "autoencoder of two Sequentials": (
        lambda: Children(encoder=two_layers(), decoder=two_layers()),
        {"decoder.2.weight"},
    ),
    "autoencoder in one Sequential": (
        lambda: nn.Sequential(mlp(8, 4, 2), mlp(2, 4, 8)),
        {"1.2.weight"},
    ),
    "Linear before a convolutional decoder": (
        lambda: Children(fc_in=linear(), deconv=nn.ConvTranspose2d(4, 3, 2)),
        set(),
    ),
    "last Linear in a stack": (
        lambda: Children(emb=nn.Embedding(9, 4), stack=nn.Sequential(residual(), residual())),
        set(),
    ),
    "stack of one": (
        lambda: Children(emb=nn.Embedding(9, 4), layers=nn.ModuleList([residual()])),
        set(),
    ),
    "stack in a numbered ModuleDict": (
        lambda: Children(layers=nn.ModuleDict({"0": residual(), "1": residual()})),
        set(),
    ),
    "one layer that is used twice": (
        lambda: Children(stack=nn.ModuleList([residual()] * 2)),
        set(),
    ),
    "Linear after a stack": (
        lambda: Children(stack=nn.ModuleList([residual(), residual()]), to_bytes=linear()),
        {"to_bytes.weight"},
    ),
    "equal Sequentials, then the last": (
        lambda: nn.Sequential(mlp(4, 4), mlp(4, 4), mlp(4, 2)),
        {"2.0.weight"},
    ),
    "head-like names in attention": (
        lambda: Children(
            stack=nn.ModuleList(Residual(multi_head=linear(), head=linear()) for _ in range(2)),
            one_head=attention(),
            attend=Children(head_projection=linear()),
            end=linear(),
        ),
        {"end.weight"},
    ),
    "torch attention called head": (
        lambda: Children(pool_head=nn.MultiheadAttention(4, 1), end=linear()),
        {"end.weight"},
    ),
    "output projection of the last attention": (
        lambda: Children(emb=nn.Embedding(9, 4), attn=nn.MultiheadAttention(4, 1)),
        set(),
    ),
    "recurrent model": (
        lambda: Children(emb=nn.Embedding(9, 4), rnn=nn.LSTM(4, 4), decoder=linear()),
        {"decoder.weight"},
    ),
    "what steers the norm of the head": (
        lambda: Children(
            trunk=linear(),
            final_layer=Children(linear=linear(), adaLN_modulation=nn.Sequential(linear())),
        ),
        {"final_layer.linear.weight"},
    ),
    "what steers the last norm": (
        lambda: Children(trunk=linear(), end=linear(), adaLN_modulation=two_layers()),
        {"end.weight"},
    ),
    "head in a head": (
        lambda: Children(
            decode_head=Children(classifier=nn.Conv2d(4, 2, 1), bottleneck=nn.Conv2d(4, 4, 3))
        ),
        {"decode_head.classifier.weight"},
    ),
    "head with its last layer registered before others": (
        lambda: Children(
            score_head=Children(proj_out=linear(), layers=nn.ModuleList([linear(), linear()]))
        ),
        {"score_head.proj_out.weight"},
    ),
    "hidden layer of a head whose output is tied": (
        lambda: Children(lm_head=Children(dense=linear()), end=linear()),
        {"end.weight"},
    ),
    "nothing but a hidden layer in a head": (
        lambda: Children(trunk=linear(), classifier=Children(dense=linear())),
        {"classifier.dense.weight"},
    ),
    "parallel heads of several layers": (
        lambda: Children(bbox_embed=nn.ModuleList([residual(), residual()])),
        {"bbox_embed.0.down.weight", "bbox_embed.1.down.weight"},
    ),
    "two towers": (
        lambda: Children(text_projection=linear(), image_projection=two_layers(), late=linear()),
        {"text_projection.weight", "image_projection.2.weight"},
    ),
    "images projected into a language model": (
        lambda: Children(visual_projection=linear(), output=linear(), conv=nn.Conv2d(4, 4, 3)),
        {"output.weight"},
    ),
    "convolution that ends a U-Net": (
        lambda: Children(conv_in=nn.Conv2d(3, 8, 3), conv_out=nn.Conv2d(8, 3, 3), mid=linear()),
        {"conv_out.weight"},
    ),
    "Linear that ends a convolutional stem": (
        lambda: Children(conv_out=linear(), lm_head=linear()),
        {"lm_head.weight"},
    ),
    "norm and convolution called out": (
        lambda: Children(
            time=linear(), out=nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3)), mid=linear()
        ),
        {"out.1.weight"},
    ),
    "loss with a layer, after the model": (
        lambda: Wrapper(mlp(4, 8, 2), loss=two_layers(), val_metric=linear()),
        {"model.2.weight"},
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_finds_the_output_head(case: str):
    build, expected = HEADS[case]
    assert heads(build()) == expected


def test_functional_tie_leaves_the_last_block_to_root():
    model = GPT(tied=False, depth=1)
    del model.lm_head  # the logits are x @ wte.weight.T
    assert "blocks.0.mlp.2.weight" in names(partition_parameters(model), "root")


def test_a_frozen_head_is_still_the_head():
    model = mlp(4, 8, 8, 2)
    model[-1].requires_grad_(False)
    assert names(partition_parameters(model), "root") == {"0.weight", "2.weight"}


def test_a_frozen_teacher_hides_no_head():
    module = Wrapper(mlp(4, 8, 2), distilled=GPT(tied=False).requires_grad_(False))
    assert heads(module) == {"model.2.weight"}


def test_a_frozen_head_of_several_layers_is_still_the_head():
    model = Children(trunk=two_layers(), head=two_layers())
    model.head.requires_grad_(False)
    assert names(partition_parameters(model), "root") == {"trunk.0.weight", "trunk.2.weight"}


def test_no_other_head_is_sought_beside_a_tied_one():
    model = Children(emb=nn.Embedding(9, 4), unembedding_layer=nn.Linear(4, 9), mix=linear())
    assert heads(model) == {"unembedding_layer.weight"}
    model.unembedding_layer.weight = model.emb.weight
    assert heads(model) == set()
