"""The split into ROOT's matrices and AdamW's rest: golden lists written by hand, and its laws."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard

from lightning_root.partition import Partition, partition_named, partition_parameters
from tests.models import CNN, GPT, Block, TransformerEncoderViT, ViT, mlp
from tests.partition.reading import Wrapper, names, reasons, split

BLOCK_MATRICES = ("qkv.weight", "proj.weight", "mlp.0.weight", "mlp.2.weight")
BLOCK_VECTORS = (
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
    *("mlp.0.bias", "mlp.2.bias"),
)
ENCODER_MATRICES = (
    *("self_attn.in_proj_weight", "self_attn.out_proj.weight"),
    *("linear1.weight", "linear2.weight"),
)
ENCODER_VECTORS = (
    *("self_attn.in_proj_bias", "self_attn.out_proj.bias", "linear1.bias", "linear2.bias"),
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
)


def both(path: str, leaves: tuple[str, ...]) -> set[str]:
    """The same leaves in the two blocks 0 and 1 under `path`."""
    return {f"{path}.{block}.{leaf}" for block in (0, 1) for leaf in leaves}


GOLDEN = {
    "tied gpt": (
        lambda: GPT(tied=True),
        both("blocks", BLOCK_MATRICES),
        both("blocks", BLOCK_VECTORS) | {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"},
    ),
    "untied gpt": (
        lambda: GPT(tied=False),
        both("blocks", BLOCK_MATRICES),
        both("blocks", BLOCK_VECTORS)
        | {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", "lm_head.weight"},
    ),
    "mlp": (
        lambda: mlp(8, 16, 32, 4),
        {"0.weight", "2.weight"},
        {"0.bias", "2.bias", "4.weight", "4.bias"},
    ),
    "vit on torch's encoder": (
        TransformerEncoderViT,
        both("encoder.layers", ENCODER_MATRICES) | {"heads.0.weight"},
        both("encoder.layers", ENCODER_VECTORS)
        | {"conv_proj.weight", "conv_proj.bias", "class_token", "pos_embedding"}
        | {"heads.0.bias", "heads.2.weight", "heads.2.bias"},
    ),
    "vit by hand": (
        ViT,
        both("blocks", BLOCK_MATRICES),
        both("blocks", BLOCK_VECTORS)
        | {"patch_embed.2.weight", "patch_embed.2.bias", "pos_embed", "register_tokens"}
        | {"norm.weight", "norm.bias", "head.weight", "head.bias"},
    ),
    "cnn": (
        CNN,
        {"stem.weight", "pointwise.weight", "grouped.weight"},
        {"depthwise.weight", "grouped.bias", "fc.weight", "fc.bias"}
        | {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"},
    ),
}


def test_encoder_block_is_the_one_in_the_golden_lists():
    """The golden lists cover every parameter of the blocks that they abbreviate."""
    assert {n for n, _ in Block().named_parameters()} == {*BLOCK_MATRICES, *BLOCK_VECTORS}


@pytest.mark.parametrize("model", GOLDEN)
def test_matches_the_split_made_by_hand(model: str):
    build, root, adamw = GOLDEN[model]
    partition = partition_parameters(build())
    assert names(partition, "root") == root
    assert names(partition, "adamw") == adamw


@pytest.mark.parametrize("model", GOLDEN)
def test_names_and_shapes_alone_give_the_same_split(model: str):
    build, root, adamw = GOLDEN[model]
    partition = partition_named(build().named_parameters())
    assert names(partition, "root") == root
    assert names(partition, "adamw") == adamw


@pytest.mark.parametrize("model", GOLDEN)
def test_every_parameter_is_in_exactly_one_group(model: str):
    module = GOLDEN[model][0]()
    groups = partition_parameters(module).groups()
    assert [(group["name"], group["role"]) for group in groups] == [
        ("root", "root"),
        ("adamw", "adamw"),
    ]
    grouped = [parameter for group in groups for _, parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert {id(parameter) for parameter in grouped} == {id(p) for p in module.parameters()}
    torch.optim.SGD(groups, lr=0.1)  # what any optimizer accepts


@settings(deadline=None, max_examples=200)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    frozen=st.sets(st.integers(0, 9), max_size=3),
)
def test_groups_are_the_trainable_parameters_of_any_mlp(widths: list[int], frozen: set[int]):
    module = mlp(*widths)
    for number, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(number not in frozen)
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        return
    partition = partition_parameters(module)
    grouped = [name for group in partition.groups() for name, _ in group["params"]]
    assert sorted(grouped) == sorted(trainable)
    live = dict(module.named_parameters())
    for route, parameter in zip(partition.routes, partition.parameters, strict=True):
        assert parameter is live[route.name]
        assert route.shape == tuple(parameter.shape)
        hidden = parameter.ndim == 2 and min(parameter.shape) > 1
        last = route.name == f"{2 * (len(widths) - 2)}.weight"
        assert route.role == ("root" if hidden and not last else "adamw")


def test_reasons_say_what_decided():
    tied, untied = (reasons(partition_parameters(GPT(tied=tied))) for tied in (True, False))
    assert tied["wte.weight"] == "embedding, tied to lm_head.weight"
    assert tied["wpe.weight"] == untied["wte.weight"] == "embedding"
    assert untied["lm_head.weight"] == "output head: named 'lm_head'"
    assert untied["blocks.0.proj.weight"] == "Linear weight"
    assert untied["blocks.0.qkv.weight"] == "Linear weight, 3 blocks of (16, 16)"
    assert untied["ln_f.bias"] == "bias or gain: 1 dimension"
    cnn = reasons(partition_parameters(CNN()))
    assert cnn["stem.weight"] == "Conv2d weight, flattened to (16, 9)"
    assert cnn["depthwise.weight"] == "depthwise convolution: 16 groups"
    assert cnn["grouped.weight"] == "Conv2d weight, 4 groups, 4 blocks of (8, 72)"
    vit = reasons(partition_parameters(TransformerEncoderViT()))
    assert vit["conv_proj.weight"] == "input embedding: named 'conv_proj'"
    assert vit["pos_embedding"] == "position table: named 'pos_embedding'"
    assert vit["class_token"] == "learned token: named 'class_token'"
    assert vit["heads.2.weight"] == "output head: last layer of 'heads'"
    assert reasons(partition_parameters(mlp(4, 8, 2)))["2.weight"] == "output head: last Linear"


@pytest.mark.parametrize("model", GOLDEN)
def test_a_wrapping_module_only_adds_its_prefix(model: str):
    module = GOLDEN[model][0]()
    alone, wrapped = partition_parameters(module), partition_parameters(Wrapper(module))
    assert split(wrapped) == [
        (f"model.{name}", role, reason.replace("tied to ", "tied to model."))
        for name, role, reason in split(alone)
    ]


@pytest.mark.parametrize("model", GOLDEN)
def test_compiling_changes_nothing(model: str):
    module = GOLDEN[model][0]()
    compiled = torch.compile(module, backend="eager")
    assert next(compiled.named_parameters())[0].startswith("_orig_mod.")
    assert partition_parameters(compiled) == partition_parameters(module)


@pytest.mark.parametrize("model", GOLDEN)
def test_checkpointing_the_children_changes_nothing(model: str):
    module = GOLDEN[model][0]()
    before = partition_parameters(copy.deepcopy(module))
    for parent in [m for m in module.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]:
        for name, child in list(parent.named_children()):
            parent.register_module(name, checkpoint_wrapper(child))
    inner = [name for name, _ in module.named_modules() if "_checkpoint_wrapped_module" in name]
    assert inner or model == "cnn"
    assert partition_parameters(module) == before


def sharded_split(rank: int, world_size: int) -> tuple[Partition, Partition, int]:
    """Partition a model before and after `fully_shard`; runs on every rank of the pool."""
    model = GPT(tied=True)
    before = partition_parameters(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    local = next(model.parameters()).to_local().shape[0]
    after = partition_parameters(model)
    return Partition(before.routes, ()), Partition(after.routes, ()), local


def test_sharding_changes_nothing(gloo_pool):
    for before, after, local in gloo_pool.run(sharded_split):
        assert after == before
        assert local == 128  # so the 256 rows in the routes are the whole parameter's


@pytest.mark.parametrize("model", GOLDEN)
def test_a_module_that_is_registered_twice_counts_once(model: str):
    once = Wrapper(GOLDEN[model][0]())
    twice = Wrapper(once.model, compiled=torch.compile(once.model, backend="eager"))
    assert partition_parameters(twice) == partition_parameters(once)


def test_repr_is_short_and_equality_is_about_routes():
    one, other = (partition_parameters(GPT(tied=True)) for _ in range(2))
    assert repr(one) == "Partition(root=8, adamw=16)"
    assert one == other
    assert one != partition_parameters(GPT(tied=False))
