"""Presets give the matrices of families whose modules do not tell, and change nothing else."""

import pytest
from torch import nn

from lightning_root import ROOT, partition_parameters

SMALL = {"vocab_size": 20, "d_model": 16, "n_head": 4, "d_inner": 24}


def build(name):
    transformers = pytest.importorskip("transformers")
    if name == "xlnet":
        return transformers.XLNetLMHeadModel(transformers.XLNetConfig(n_layer=2, **SMALL))
    config = transformers.FunnelConfig(block_sizes=[1, 1], num_decoder_layers=1, d_head=4, **SMALL)
    return transformers.FunnelForMaskedLM(config)


@pytest.mark.parametrize(
    ("name", "leaves"), [("xlnet", {"q", "k", "v", "o", "r"}), ("funnel", {"r_kernel"})]
)
def test_a_preset_moves_the_raw_attention_matrices_alone(name, leaves):
    model = build(name)
    before = {route.name: route for route in partition_parameters(model).routes}
    after = {route.name: route for route in partition_parameters(model, rules=name).routes}
    changed = {n for n in before if before[n].role != after[n].role}
    assert {n.rpartition(".")[2] for n in changed} == leaves
    for n in changed:
        assert after[n].role == "root"
        width, heads, size = after[n].shape
        assert after[n].matrices == [(width, heads * size)]
        assert (after[n].view is not None and after[n].view.transposed) == (n[-2:] != ".o")


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"preset \['funnel', 'xlnet'\], got 'gpt2'; most .* none"):
        ROOT(nn.Linear(3, 3).parameters(), rules="gpt2")
