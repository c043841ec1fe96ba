"""Frozen and unusual parameters, and the kind that every parameter has."""

import pytest
import torch
from torch import nn

from lightning_root.partition import partition_all, partition_named, partition_parameters
from tests.models import CNN, GPT, TransformerEncoderViT, ViT, mlp
from tests.partition.reading import Children, Wrapper, linear


class Raw(nn.Module):
    """One raw parameter."""

    def __init__(self, name: str, value: torch.Tensor):
        super().__init__()
        grad = value.is_floating_point() or value.is_complex()
        self.register_parameter(name, nn.Parameter(value, requires_grad=grad))


def spectral(*shape: int) -> Raw:
    """The weight of a Fourier layer."""
    return Raw("weight", torch.zeros(shape, dtype=torch.complex64))


MODELS = {"gpt": lambda: GPT(tied=True), "cnn": CNN, "vit": ViT, "torch": TransformerEncoderViT}


@pytest.mark.parametrize("model", MODELS)
def test_a_frozen_parameter_has_the_rule_that_it_gets_when_unfrozen(model: str):
    module = MODELS[model]()
    trained = partition_parameters(module)
    assert partition_all(module) == trained
    assert not any(route.frozen for route in trained.routes)
    for frozen in [*module.children(), module]:
        frozen.requires_grad_(False)
        routes = partition_all(module).routes
        assert [(r.name, r.role, r.kind, r.view, r.reason) for r in routes] == [
            (r.name, r.role, r.kind, r.view, r.reason) for r in trained.routes
        ]
        live = dict(module.named_parameters())
        assert all(route.frozen is not live[route.name].requires_grad for route in routes)
        module.requires_grad_(True)


def test_the_frozen_head_below_an_adapter_is_a_head():
    adapted = Children(base_layer=nn.Linear(4, 9), lora_A=nn.Linear(4, 2), lora_B=nn.Linear(2, 9))
    adapted.base_layer.requires_grad_(False)
    routes = partition_all(Children(up=linear(), lm_head=adapted)).routes
    kinds = {route.name: route.kind for route in routes if len(route.shape) > 1}
    assert kinds == {
        "up.weight": "hidden",
        "lm_head.base_layer.weight": "head",
        "lm_head.lora_A.weight": "hidden",
        "lm_head.lora_B.weight": "head",
    }


def test_trainable_parameters_are_decided_alike_beside_frozen_ones():
    module = Wrapper(mlp(4, 8, 2), distilled=GPT(tied=False).requires_grad_(False))
    everything = partition_all(module)
    kept = [route for route in everything.routes if not route.frozen]
    assert kept == list(partition_parameters(module).routes)
    assert len(everything.routes) == len(everything.parameters) == len([*module.parameters()])


def test_only_a_module_without_parameters_is_refused_as_a_whole():
    assert len(partition_all(mlp(4, 2).requires_grad_(False)).routes) == 2
    with pytest.raises(ValueError, match="`module` must have parameters, but ReLU has no"):
        partition_all(nn.ReLU())


def test_a_rule_that_does_not_fit_a_frozen_parameter_waits():
    model = mlp(4, 8, 2)
    model[0].bias.requires_grad_(False)
    routes = partition_all(model, rules={"0.*": "root"}).routes
    assert [(route.role, route.frozen) for route in routes[:2]] == [
        ("root", False),
        ("adamw", True),
    ]
    model[0].bias.requires_grad_(True)
    with pytest.raises(ValueError, match="may send only matrices to 'root'"):
        partition_all(model, rules={"0.*": "root"})


def test_the_table_counts_frozen_parameters_in_one_line():
    model = mlp(4, 8, 8, 2)
    before = str(partition_all(model))
    assert "frozen" not in before
    model[0].requires_grad_(False)
    *table, line = str(partition_all(model)).splitlines()
    assert table == str(partition_parameters(model)).splitlines()
    assert line == "2 frozen parameters, 40 entries, are trained once unfrozen"
    model.requires_grad_(False)
    assert str(partition_all(model)).endswith(
        "6 frozen parameters, 130 entries, are trained once unfrozen"
    )


KINDS = {
    "token embedding": (nn.Embedding(9, 4), "embedding"),
    "position embedding": (Children(wpe=nn.Embedding(9, 4)), "table"),
    "patches": (nn.Conv2d(3, 8, 4, 4, bias=False), "embedding"),
    "token": (Raw("cls_token", torch.zeros(1, 4)), "table"),
    "positions": (Raw("pos_embed", torch.zeros(9, 4)), "table"),
    "codebook": (Raw("codebook", torch.zeros(9, 4)), "table"),
    "raw embedding": (Raw("emb", torch.zeros(9, 4)), "embedding"),
    "biases of experts": (Raw("down_proj_bias", torch.zeros(9, 4)), "vector"),
    "scalar": (Raw("temperature", torch.tensor(1.0)), "vector"),
    "column": (Raw("scale", torch.zeros(4, 1)), "vector"),
    "gain": (nn.LayerNorm((3, 4), bias=False), "vector"),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4, bias=False), "table"),
    "bilinear form": (nn.Bilinear(3, 4, 5, bias=False), "table"),
    "linear": (nn.Linear(4, 8, bias=False), "hidden"),
    "convolution": (nn.Conv2d(8, 8, 3, bias=False), "hidden"),
    "complex": (spectral(4, 8), "table"),
    "quantized": (Raw("weight", torch.zeros(4, 8, dtype=torch.int8)), "table"),
}


@pytest.mark.parametrize("case", KINDS)
def test_the_role_follows_from_the_kind(case: str):
    module, kind = KINDS[case]
    first, *_, head, bias = partition_all(Children(part=module, head=linear())).routes
    assert (first.kind, first.role) == (kind, "root" if kind == "hidden" else "adamw")
    assert (head.kind, bias.kind) == ("head", "vector")


def test_a_rule_changes_the_role_and_not_the_kind():
    model = Children(up=linear(), table=nn.Embedding(9, 4), head=linear())
    rules = {"up.weight": "adamw", "table.weight": "root", "head.weight": "root"}
    routes = partition_parameters(model, rules=rules).routes
    found = {route.name: (route.role, route.kind) for route in routes if len(route.shape) > 1}
    assert found == {
        "up.weight": ("adamw", "hidden"),
        "table.weight": ("root", "embedding"),
        "head.weight": ("root", "head"),
    }


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 3), (4, 8, 3, 3), (1, 4, 8)])
def test_complex_parameters_go_to_adamw(shape: tuple[int, ...]):
    model = Children(fourier=spectral(*shape), up=linear(), head=linear())
    for rules in (None, {"fourier.weight": "adamw"}):
        route = partition_parameters(model, rules=rules).routes[0]
        assert (route.role, route.kind, route.view) == ("adamw", "table", None)
    assert "complex" in partition_parameters(model).routes[0].reason
    assert partition_named(model.named_parameters()).routes[0].role == "adamw"
    for rule in ("root", {"rows": 2}, {"stack": 1}):
        match = r"`rules` may send only real matrices to 'root', but 'fourier.*complex64"
        with pytest.raises(ValueError, match=match):
            partition_parameters(model, rules={"fourier.*": rule})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_go_to_adamw_whatever_a_rule_says(dtype: torch.dtype):
    model = Children(packed=Raw("weight", torch.zeros(4, 8, dtype=dtype)), head=linear())
    for rules in (None, {"packed.*": "root"}):
        route = partition_all(model, rules=rules).routes[0]
        assert (route.role, route.reason) == ("adamw", "not floating point: never trained")
        assert route.frozen
