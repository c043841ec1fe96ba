"""Where parameters come from: modules, generators, pairs, tensors, groups; early and late."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn

from lightning_root import ROOT
from tests.models import GPT

NAMELESS = "ROOT got tensors without names"


def names(optimizer):
    return {group["name"]: group["param_names"] for group in optimizer.param_groups}


def split_of(module):
    return names(ROOT(module.named_parameters()))


@pytest.mark.parametrize("source", ["parameters", "named_parameters"])
def test_a_modules_generator_is_recognised(source):
    model = GPT(tied=False)
    optimizer = ROOT(getattr(model, source)())
    assert optimizer.module is model
    assert "embedding" in {r.name: r.reason for r in optimizer.partition.routes}["wte.weight"]
    assert "wte.weight" in names(optimizer)["adamw"]
    bound = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in bound} == {id(p) for p in model.parameters()}


def test_only_untouched_generators_of_torchs_own_methods_are_recognised():
    """Nothing is guessed: one in use, a subclass's own, or a shallow one is taken as tensors."""

    class Own(nn.Linear):
        def parameters(self, recurse=True):
            yield from super().parameters(recurse)

    used = GPT(tied=False).parameters()
    next(used)
    shallow = nn.Sequential(nn.Linear(3, 3)).parameters(recurse=False)
    for params in (used, Own(3, 3).parameters()):
        with pytest.warns(UserWarning, match=NAMELESS):
            assert ROOT(params).module is None
    assert ROOT(shallow).module is None


def test_nameless_tensors_are_split_by_shape_with_a_warning_that_names_the_fix():
    model = GPT(tied=False)
    with pytest.warns(UserWarning, match=f"{NAMELESS}.*named_parameters.*ROOTBinder"):
        optimizer = ROOT(list(model.parameters()))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in matrices]


def test_binding_repairs_a_split_by_shape():
    model = GPT(tied=False)
    with pytest.warns(UserWarning, match=NAMELESS):
        optimizer = ROOT(list(model.parameters()))
    optimizer.bind(model)
    assert names(optimizer) == names(ROOT(model.parameters()))


def test_binding_keeps_to_a_selection_of_tensors():
    """As in training one of two networks."""
    model = nn.ModuleDict({"a": GPT(tied=False), "b": GPT(tied=False)})
    with pytest.warns(UserWarning, match=NAMELESS):
        optimizer = ROOT(list(model["a"].parameters()))
    optimizer.bind(model)
    bound = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert len(bound) == len(list(model["a"].parameters()))
    assert all(name.startswith("a.") for name in bound)


def test_binding_twice_still_keeps_to_the_selection():
    model = nn.ModuleDict({"a": GPT(tied=False), "b": GPT(tied=False)})
    optimizer = ROOT(list(model["a"].named_parameters(prefix="a")))
    for _ in range(2):
        optimizer.bind(model)
        bound = [name for group in optimizer.param_groups for name in group["param_names"]]
        assert len(bound) == len(list(model["a"].parameters()))
    assert optimizer.unbound() == []


def test_binding_again_leaves_added_groups_as_they_are():
    model = GPT(tied=False)
    model.blocks[1].requires_grad_(False)
    model.wte.requires_grad_(False)
    optimizer = ROOT(model.parameters(), lr=1.0)
    model.blocks[1].requires_grad_(True)
    optimizer.add_param_group({"params": list(model.blocks[1].parameters()), "lr": 0.1})
    model.wte.requires_grad_(True)
    assert optimizer.unbound() == ["wte.weight"]
    optimizer.bind(model)
    assert optimizer.unbound() == []
    assert "wte.weight" in names(optimizer)["adamw"]
    everything = sorted(name for group in names(optimizer).values() for name in group)
    assert everything == sorted(name for name, _ in model.named_parameters())
    assert {n.split(".")[1] for n in names(optimizer)["root.1"]} == {"1"}


def test_an_empty_optimizer_is_bound_later_and_schedulers_stay_valid():
    optimizer = ROOT([], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    groups = list(optimizer.param_groups)
    model = GPT(tied=False)
    optimizer.bind(model)
    assert all(new is old for new, old in zip(optimizer.param_groups, groups, strict=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_lazy_module_behind_the_generator_is_bound_later():
    class Lazy(nn.Module):
        def build(self):
            self.layer = nn.Linear(4, 4)

    module = Lazy()
    optimizer = ROOT(module.parameters())
    module.build()
    assert optimizer.module is module
    optimizer.bind(module)
    assert names(optimizer)["adamw"] == ["layer.weight", "layer.bias"]


def test_an_unbound_optimizer_refuses_to_step_and_names_the_ways_out():
    with pytest.raises(RuntimeError, match=r"no parameters.*bind\(model\).*ROOTMixin.*ROOTBinder"):
        ROOT([]).step()


def test_replaced_parameters_are_noticed_before_anything_moves():
    """FSDP2 and friends exchange Parameters; a step on the old ones would train nothing."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters())
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"1 of ROOT's parameters .*\['lm_head.weight'\].*bind"):
        optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    optimizer.bind(model)
    optimizer.step()
    assert not torch.equal(before["lm_head.weight"], model.lm_head.weight)


def test_a_first_step_without_any_gradient_warns_where_the_module_is_unknown():
    optimizer = ROOT([("fc.weight", nn.Parameter(torch.zeros(3, 3)))])
    with pytest.warns(UserWarning, match="no parameter of ROOT has a gradient"):
        optimizer.step()
    model = GPT(tied=False)
    ROOT(model.parameters()).step()  # a skipped batch is nothing unusual there


def test_binding_again_keeps_the_state_of_parameters_that_stay():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {
        name: optimizer.state[p] for name, p in model.named_parameters() if name != "lm_head.weight"
    }
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    optimizer.bind(model)
    for name, parameter in model.named_parameters():
        assert (parameter in optimizer.state) == (name in kept)
    assert all(optimizer.state[p] is kept[n] for n, p in model.named_parameters() if n in kept)


def test_frozen_parameters_are_left_out_and_taken_in_when_bound_again():
    model = GPT(tied=False)
    model.wte.weight.requires_grad_(False)
    optimizer = ROOT(model.parameters())
    assert "wte.weight" not in names(optimizer)["adamw"]
    model.wte.weight.requires_grad_(True)
    optimizer.bind(model)
    assert "wte.weight" in names(optimizer)["adamw"]


def test_rules_reach_the_partition():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), rules={"lm_head.weight": "root"})
    assert "lm_head.weight" in names(optimizer)["root"]
    optimizer.bind(model, rules={"*": "adamw"})
    assert names(optimizer)["root"] == []
    with pytest.raises(ValueError, match=r"'lm_haed.weight'.* matches none"):
        ROOT(model.parameters(), rules={"lm_haed.weight": "root"})


def test_groups_of_the_users_own_keep_their_split():
    model = GPT(tied=False)
    named = dict(model.named_parameters())
    head = named.pop("lm_head.weight")
    optimizer = ROOT(
        [
            {
                "role": "root",
                "name": "everything",
                "params": [(n, p) for n, p in named.items() if p.ndim > 1],
            },
            {"name": "adamw", "params": [("lm_head.weight", head)]},
        ]
    )
    before = names(optimizer)
    table = str(optimizer.bind(model))
    assert names(optimizer) == before
    assert "parameter group" in table


def test_groups_of_the_users_own_follow_replaced_parameters_by_name():
    model = GPT(tied=False)
    optimizer = ROOT([{"role": "adamw", "params": list(model.named_parameters())}])
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    optimizer.bind(model)
    assert any(p is model.lm_head.weight for p in optimizer.param_groups[0]["params"])
    nameless = ROOT([{"role": "adamw", "params": list(model.parameters())}])
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with pytest.raises(ValueError, match="no longer the model's and cannot be found by name"):
        nameless.bind(model)


def test_a_group_without_a_role_is_split():
    """As Lightning's BackboneFinetuning adds parameters: tensors and a learning rate, no more."""
    model = GPT(tied=False)
    model.blocks[1].requires_grad_(False)
    optimizer = ROOT(model.parameters(), lr=1.0)
    model.blocks[1].requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": list(model.blocks[1].parameters()), "lr": 0.1})
    found = {group["name"]: group for group in optimizer.param_groups}
    assert list(found) == ["root", "adamw", "root.1", "adamw.1"]
    assert all(name.startswith("blocks.1.") for name in found["root.1"]["param_names"])
    assert all(parameter.ndim == 2 for parameter in found["root.1"]["params"])
    assert found["adamw.1"]["lr"] == 0.1


def test_a_group_without_a_role_keeps_its_name_in_both_parts():
    optimizer = ROOT([("blocks.0.fc.weight", torch.zeros(3, 3))])
    late = [("blocks.1.fc.weight", torch.zeros(3, 3)), ("blocks.1.fc.bias", torch.zeros(3))]
    optimizer.add_param_group({"params": late, "name": "late"})
    assert [group["name"] for group in optimizer.param_groups][-2:] == ["late.root", "late.adamw"]


@pytest.mark.filterwarnings("ignore:ROOT got tensors without names")
def test_nameless_parameters_that_come_later_are_counted_on():
    optimizer = ROOT([torch.zeros(3, 3), torch.zeros(3)])
    optimizer.add_param_group({"params": [torch.zeros(4, 4)]})
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert names == ["parameter.0", "parameter.1", "parameter.2"]


def test_groups_of_the_users_own_are_described_with_their_matrices():
    """Two matrices of 3 x 3 in one parameter, as the rule says, which the groups do not know."""
    named = [("blocks.0.fc.weight", torch.zeros(6, 3)), ("blocks.0.fc.bias", torch.zeros(3))]
    optimizer = ROOT(named, rules={"blocks.0.fc.weight": {"rows": [3, 3]}})
    optimizer.add_param_group({"role": "adamw", "params": [("late", torch.zeros(3))]})
    assert optimizer.partition.routes[0].view.matrices((6, 3)) == [(3, 3), (3, 3)]


def test_the_module_is_not_kept_alive():
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters())
    del model
    gc.collect()
    assert optimizer.module is None
