"""Factors of adapters and other layers that hold more than their name says: how they are cut."""

import pytest
import torch
from torch import nn

from lightning_root.partition import partition_all, partition_parameters
from tests.partition.reading import Children
from tests.partition.test_cuts import HEADS, Conv1D, Raw, Told, called, lin, routes, rows

RANK = 2


class Adapted(nn.Module):
    """A layer with the factors of PEFT."""

    def __init__(self, base_layer: nn.Module, fan_in: int, fan_out: int):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": lin(fan_in, RANK)})
        self.lora_B = nn.ModuleDict({"default": lin(RANK, fan_out)})


class LoRAQKVLinear(nn.Module):
    """A fused projection with the factors of litgpt."""

    def __init__(self, sizes: list[int], width: int, told: bool, parts: int | None = None):
        super().__init__()
        self.linear = lin(width, sum(sizes)).requires_grad_(False)
        count = parts or len(sizes)
        self.lora_A = nn.Parameter(torch.zeros(RANK * count, width))
        self.lora_B = nn.Parameter(torch.zeros(sum(sizes), RANK))
        if told:
            self.qkv_shapes = sizes


def adapted(fan_in: int, fan_out: int) -> Adapted:
    return Adapted(lin(fan_in, fan_out), fan_in, fan_out)


B = "lora_B.default.weight"
CUT = {
    "qkv": (Children(qkv=adapted(8, 24)), f"qkv.{B}", rows(8, 8, 8)),
    "grouped queries": (Told(HEADS, qkv_proj=adapted(16, 32)), f"qkv_proj.{B}", rows(16, 8, 8)),
    "Conv1D": (Children(c_attn=Adapted(Conv1D(24, 8), 8, 24)), f"c_attn.{B}", rows(8, 8, 8)),
    "gate and up": (
        Children(gate_up_proj=adapted(8, 24), down_proj=adapted(12, 8)),
        f"gate_up_proj.{B}",
        rows(12, 12),
    ),
    "litgpt, told": (
        Children(attn=Children(qkv=LoRAQKVLinear([16, 8, 8], 16, told=True))),
        "attn.qkv.lora_B",
        rows(16, 8, 8),
    ),
    "litgpt, first factor": (
        Children(attn=Children(qkv=LoRAQKVLinear([16, 8, 8], 16, told=False))),
        "attn.qkv.lora_A",
        rows(RANK, RANK, RANK),
    ),
    "litgpt, equal sizes": (
        Children(attn=Children(qkv=LoRAQKVLinear([16, 16, 16], 16, told=False))),
        "attn.qkv.lora_B",
        rows(16, 16, 16),
    ),
    "GLU of a forecaster": (
        called("GatedLinearUnit", Children)(fc=lin(8, 24)),
        "fc.weight",
        rows(12, 12),
    ),
    "queries and gates, head by head": (
        called("Qwen3NextAttention", Told)({"num_heads": 2, "head_dim": 4}, q_proj=lin(8, 16)),
        "q_proj.weight",
        rows(4, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_a_factor_is_cut_like_the_layer_that_it_adapts(case: str):
    module, name, view = CUT[case]
    assert routes(module)[name].view == view


def test_the_frozen_layer_is_cut_as_it_is_without_an_adapter():
    model = Children(
        attn=Children(qkv=adapted(8, 24)),
        more=Children(qkv=LoRAQKVLinear([8, 8, 8], 8, told=True)),
        head=lin(8, 4),
    )
    found = {route.name: route.view for route in partition_all(model).routes}
    assert found["attn.qkv.base_layer.weight"] == rows(8, 8, 8)
    assert found["more.qkv.linear.weight"] == rows(8, 8, 8)


DOUBTS = {
    "adapter of q, k, v in unknown sizes": (
        Children(qkv=adapted(16, 32)),
        f"qkv.{B}",
        "; q, k, v in one of unknown sizes, whole: ",
        {"rows": [16, 8, 8]},
    ),
    "adapter of gate and up, alone": (
        Children(gate_up_proj=adapted(8, 24)),
        f"gate_up_proj.{B}",
        "; gate and up in one, whole: ",
        {"rows": 2},
    ),
    "queries and gates": (
        Told({"num_heads": 2, "head_dim": 4}, q_proj=lin(8, 16)),
        "q_proj.weight",
        "; query and gate in one of unknown order, whole: ",
        {"rows": 4},
    ),
    "queries and gates by the output": (
        Children(q_proj=lin(8, 16), o_proj=lin(8, 8)),
        "q_proj.weight",
        "; query and gate in one of unknown order, whole: ",
        {"rows": 2},
    ),
    "adapter of queries and gates": (
        Children(q_proj=adapted(8, 16), o_proj=lin(8, 8)),
        f"q_proj.{B}",
        "; query and gate in one of unknown order, whole: ",
        {"rows": 2},
    ),
    "router": (
        Told(gate=lin(8, 4), experts=nn.ModuleList([lin(8, 8) for _ in range(4)])),
        "gate.weight",
        "; chooses experts, often left to AdamW",
        "adamw",
    ),
    "router by a count": (
        Told({"n_expert": 4}, router=Raw(weight=(4, 8))),
        "router.weight",
        "; chooses experts, often left to AdamW",
        "adamw",
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_doubt_is_in_the_reason_and_its_rule_resolves_it(case: str):
    module, name, note, rule = DOUBTS[case]
    route = routes(module)[name]
    assert (route.role, route.view) == ("root", None)
    assert note in route.reason
    assert route.suggestion is not None
    after = partition_parameters(Children(part=module, head=lin(4, 4)), rules={f"*.{name}": rule})
    (ruled,) = (r for r in after.routes if r.name == f"part.{name}")
    assert (ruled.role, ruled.view) != (route.role, route.view)


def test_plain_queries_and_latent_ones_carry_no_note():
    plain = Told({"num_heads": 2, "head_dim": 4}, q_proj=lin(8, 8), o_proj=lin(8, 8))
    latent = Told({"num_heads": 2, "head_dim": 4, "kv_lora_rank": 4}, q_proj=lin(8, 16))
    for module in (plain, latent):
        assert routes(module)["q_proj.weight"].reason == "Linear weight"
