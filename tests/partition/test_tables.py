"""Tables that look like matrices: only their name gives biases, embeddings and positions away."""

import pytest
import torch
from torch import nn

from lightning_root.partition import partition_named, partition_parameters
from tests.partition.reading import Children, linear


class Raw(nn.Module):
    """One raw parameter, or more."""

    def __init__(self, name: str, *shape: int, **others: tuple[int, ...]):
        super().__init__()
        for own, size in {name: shape, **others}.items():
            self.register_parameter(own, nn.Parameter(torch.zeros(size)))


class Embed(Raw):
    """TransformerLens' tokens."""


class PosEmbed(Raw):
    """TransformerLens' positions."""


class Unembed(Raw):
    """TransformerLens' output."""


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
    "owner that names a token embedding": (
        Children(embed=Raw("W_E", 9, 4)),
        "embedding: 'W_E' of Raw",
    ),
    "class that names a token embedding": (Embed("W", 9, 4), "embedding: 'W' of Embed"),
    "class that names positions": (PosEmbed("W", 9, 4), "position table: 'W' of PosEmbed"),
    "positions by their own name": (Raw("W_pos", 9, 4), "position table: named 'W_pos'"),
    "owner that names an output": (
        Children(unembed=Raw("W_U", 4, 9)),
        "output head: named 'unembed'",
    ),
    "class that names an output": (Unembed("W", 4, 9), "output head: named 'unembed'"),
    "rows that PEFT trains": (
        Children(
            embed_tokens=Children(
                token_adapter=Children(
                    trainable_tokens_delta=nn.ParameterDict({"default": torch.zeros(3, 4)})
                )
            )
        ),
        "embedding: named 'trainable_tokens_delta'",
    ),
    "biases of TransformerLens": (Raw("b_Q", 4, 8), "biases: named 'b_Q'"),
    "decay rates": (Raw("log_A_real", 4, 8), "decay rates: named 'log_A_real'"),
    "rates of Mamba": (Raw("A_log", 4, 8), "decay rates: named 'A_log'"),
    "complex pairs": (
        Raw("C", 4, 8, 2),
        "pairs, such as of complex numbers: shape (4, 8, 2)",
    ),
    "scales and shifts": (Raw("scale_shift_table", 6, 8), "table: named 'scale_shift_table'"),
    "gains of layers": (Raw("layer_scale", 6, 8), "gains: named 'layer_scale'"),
    "gains by a Greek letter": (Children(ls1=Raw("gamma", 2, 8)), "gains: named 'gamma'"),
    "codes of a hypernetwork": (Raw("layer_codes", 5, 8), "table: named 'layer_codes'"),
    "patches by torch's Linear": (
        Children(W_P=nn.Linear(8, 4, bias=False)),
        "input embedding: named 'W_P'",
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
    "Linear behind a thin table": Children(embedding_hidden_mapping_in=nn.Linear(4, 8, bias=False)),
    "matrix in a module called embedding": Children(time_embed=Raw("in_proj", 4, 8)),
    "input matrix of a state-space model": Raw("B", 4, 8, Lambda_re=(4,)),
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


def test_what_a_state_space_model_multiplies_entry_by_entry_goes_to_adamw():
    kernel = Raw("log_A_real", 4, 8, A_imag=(4, 8), B=(4, 8), C=(4, 8), D=(2, 4), mix=(4, 8))
    partition = partition_parameters(Children(kernel=kernel, head=linear()))
    assert [route.name for route in partition.routes if route.role == "root"] == ["kernel.mix"]


def test_attention_with_a_matrix_for_each_head_is_cut_into_them():
    attention = Raw("W_Q", 2, 16, 8, W_O=(2, 8, 16))
    partition = partition_parameters(Children(attn=attention, head=linear()))
    assert [route.matrices for route in partition.routes[:2]] == [[(16, 8)] * 2, [(8, 16)] * 2]
    assert all(route.view.transposed for route in partition.routes[:2])


@pytest.mark.parametrize(
    "name", ["blocks.0.mlp.gate_up_proj_bias", "position_embeddings.weights.0"]
)
def test_names_are_enough(name: str):
    pairs = [(name, torch.zeros(4, 8)), ("head.weight", torch.zeros(2, 8))]
    assert partition_named(pairs).routes[0].role == "adamw"
