"""The user's rules, and what the partition refuses."""

import pytest
import torch

from lightning_root.partition import partition_named, partition_parameters
from tests.models import GPT, mlp
from tests.partition.reading import names


def test_the_first_match_wins_and_is_the_reason():
    rules = [("blocks.0.qkv.*", "adamw"), ("blocks.*.qkv.*", "root"), ("lm_head.*", "root")]
    partition = partition_parameters(GPT(tied=False), rules=rules)
    found = {route.name: (route.role, route.reason) for route in partition.routes}
    assert found["blocks.0.qkv.weight"] == ("adamw", "rule 'blocks.0.qkv.*'")
    blocks = "3 blocks of (16, 16)"  # a role alone leaves the cut to the module
    assert found["blocks.1.qkv.weight"] == ("root", f"rule 'blocks.*.qkv.*', {blocks}")
    assert found["lm_head.weight"] == ("root", "rule 'lm_head.*'")
    assert found["wte.weight"] == ("adamw", "embedding")


def test_mappings_lists_and_names_only_are_the_same():
    model = mlp(4, 8, 8, 2)
    as_mapping = partition_parameters(model, rules={"2.*": "adamw"})
    as_lists = partition_parameters(model, rules=[["2.*", "adamw"]])  # type: ignore[list-item]
    named = partition_named(model.named_parameters(), rules={"2.*": "adamw"})
    assert names(as_mapping, "root") == {"0.weight"}
    assert as_lists == as_mapping
    assert names(named, "root") == {"0.weight"}


def test_a_tied_parameter_answers_to_all_its_names():
    partition = partition_parameters(GPT(tied=True), rules={"lm_head.weight": "root"})
    assert "wte.weight" in names(partition, "root")


def test_a_rule_without_a_match_names_itself_and_the_nearest():
    with pytest.raises(ValueError, match=r"'lm_haed\.\*' matches none.* 'lm_head\.weight'"):
        partition_parameters(GPT(tied=False), rules={"wte.*": "root", "lm_haed.*": "adamw"})


def test_patterns_are_compared_with_the_whole_name_and_its_case():
    for pattern in ("lm_head", "LM_HEAD.weight"):
        with pytest.raises(ValueError, match="matches none"):
            partition_parameters(GPT(tied=False), rules={pattern: "adamw"})


def test_a_rule_is_alive_while_its_parameters_are_frozen_or_taken():
    model = GPT(tied=False)
    model.blocks.requires_grad_(False)
    partition_parameters(model, rules=[("blocks.*.weight", "root"), ("blocks.*", "adamw")])


def test_a_vector_cannot_go_to_root():
    message = r"'2\.\*' matches '2\.bias' of shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        partition_parameters(mlp(4, 4, 2), rules={"2.*": "root"})


def test_unknown_roles_and_malformed_rules_are_refused():
    with pytest.raises(ValueError, match=r"'root' or 'adamw'.*, got 'muon' for '0.weight'"):
        partition_parameters(mlp(2, 2), rules={"0.weight": "muon"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"the name of a preset .*, got '0.weight'"):
        partition_parameters(mlp(2, 2), rules="0.weight")
    for malformed in (("0.weight", "root"), [("0.weight", "root", 1)], [3], 3):
        with pytest.raises(TypeError, match="`rules` must be a mapping or a list of pairs"):
            partition_parameters(mlp(2, 2), rules=malformed)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused():
    model = mlp(4, 8, 2)
    with pytest.raises(TypeError, match=r"`module` must be a torch.nn.Module, got generator"):
        partition_parameters(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`named` must hold .* got Parameter"):
        partition_named(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a name of its own, got 'a' twice"):
        partition_named([("a", torch.zeros(2)), ("a", torch.zeros(2))])
