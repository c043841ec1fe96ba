"""Tables that look like matrices: only their name gives biases, embeddings and positions away."""

import pytest
import torch
from torch import nn

from lightning_root.partition import partition_named, partition_parameters
from tests.partition.reading import Children, linear


class Raw(nn.Module):
    """One raw parameter."""

    def __init__(self, name: str, *shape: int):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


TABLES = {
    "biases of experts": (Raw("gate_up_proj_bias", 4, 8), "biases: named 'gate_up_proj_bias'"),
    "biases of heads": (Raw("r_w_bias", 4, 8), "biases: named 'r_w_bias'"),
    "biases of distances": (Raw("attention_biases", 4, 9), "biases: named 'attention_biases'"),
    "positions as one-hots": (
        Children(rel_pos_bias=nn.Linear(8, 4, bias=False)),
        "biases: named 'rel_pos_bias'",
    ),
    "numbered latents": (Raw("latents_2d", 8, 4), "table: named 'latents_2d'"),
    "adapter of an embedding": (
        Children(lora_embedding_A=nn.ParameterDict({"mine": torch.zeros(2, 9)})),
        "embedding: named 'lora_embedding_A'",
    ),
    "dict with a telling key": (
        nn.ParameterDict({"pos_embed": torch.zeros(8, 4)}),
        "position table: named 'pos_embed'",
    ),
    "list of tables": (
        Children(position_embeddings=nn.ParameterList([torch.zeros(8, 4)])),
        "position table: named 'position_embeddings'",
    ),
    "patches after another convolution": (
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(3, 8, 4, 4, bias=False)),
        "input embedding: patches of the raw input",
    ),
}
MATRICES = {
    "projection of patches": Children(patch_embedding_projection=nn.Linear(4, 8, bias=False)),
    "patches of hidden features": nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), Children(patch_embed=nn.Conv2d(8, 16, 2, 2, bias=False))
    ),
    "MLP that makes biases": Children(position_bias_mlp=nn.Sequential(linear())),
    "MLP of the time": Children(time_embedding=nn.Sequential(linear(), linear())),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_go_to_adamw(kind: str):
    module, reason = TABLES[kind]
    route = partition_parameters(Children(part=module, head=linear())).routes[-3]
    assert (route.role, route.reason) == ("adamw", reason)


@pytest.mark.parametrize("kind", MATRICES)
def test_matrices_with_such_a_name_go_to_root(kind: str):
    model = Children(part=MATRICES[kind], head=linear())
    weights = [r for r in partition_parameters(model).routes if len(r.shape) > 1][:-1]
    assert {route.role for route in weights} == {"root"}


@pytest.mark.parametrize(
    "name", ["blocks.0.mlp.gate_up_proj_bias", "position_embeddings.weights.0"]
)
def test_names_are_enough(name: str):
    pairs = [(name, torch.zeros(4, 8)), ("head.weight", torch.zeros(2, 8))]
    assert partition_named(pairs).routes[0].role == "adamw"
