"""Where parameters come from: modules, generators, pairs, tensors, groups; early and late."""

import copy
import gc
import logging
import warnings

import pytest
import torch
from torch import nn

from lightning_root import ROOT
from tests.helpers import names_by_role as names
from tests.helpers import params_by_role
from tests.models import GPT

NAMELESS = "ROOT got tensors without names"


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
    for params in (used, Own(3, 3).parameters(), shallow):
        assert ROOT(params).module is None


def one_step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_nameless_tensors_are_split_by_shape_with_a_warning_that_names_the_fix():
    """At the first step, so that nobody is warned who binds before it; and once."""
    model = GPT(tied=False)
    optimizer = ROOT(list(model.parameters()))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert [id(p) for p in params_by_role(optimizer)["root"]] == [id(p) for p in matrices]
    with pytest.warns(UserWarning, match=f"{NAMELESS}.*named_parameters.*ROOTBinder"):
        one_step(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_step(model, optimizer)


def test_binding_repairs_a_split_by_shape():
    model = GPT(tied=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ROOT(list(model.parameters()))
        optimizer.bind(model)
        one_step(model, optimizer)
    assert names(optimizer) == names(ROOT(model.parameters()))


@pytest.mark.parametrize(
    "draw",
    [
        lambda model: filter(lambda p: p.requires_grad, model.parameters()),
        lambda model: (p for p in model.parameters() if p.requires_grad),
        lambda model: (p for _, p in model.named_parameters() if p.requires_grad),
        lambda model: [{"params": filter(lambda p: p.requires_grad, model.parameters())}],
        lambda model: [{"params": model.parameters(), "lr": 0.1}],
    ],
    ids=["filter", "generator", "pairs", "filtered_group", "group"],
)
def test_the_module_is_seen_through_filters_and_generators(draw):
    model = GPT(tied=False)
    expected = names(ROOT(model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ROOT(draw(model))
        assert optimizer.module is model
        assert names(optimizer) == expected
        one_step(model, optimizer)


def test_parts_of_a_model_are_looked_at_together():
    """The last Linear of the first part is no head, and fused weights are cut."""
    model = GPT(tied=False)
    parts = [{"params": model.blocks.parameters(), "lr": 1e-4}]
    parts.append({"params": model.lm_head.parameters()})
    optimizer = ROOT(parts, lr=1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-3]
    by_role = params_by_role(optimizer)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    assert [id(p) for p in by_role["root"]] == [id(p) for p in matrices]
    assert by_role["adamw"][-1] is model.lm_head.weight
    assert len(optimizer.partition.routes[2].matrices) == 3


def test_binding_keeps_to_a_selection_of_tensors():
    """As in training one of two networks."""
    model = nn.ModuleDict({"a": GPT(tied=False), "b": GPT(tied=False)})
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
    optimizer = ROOT(model.parameters(), lr=1.0)
    model.blocks[1].requires_grad_(True)
    optimizer.add_param_group({"params": list(model.blocks[1].parameters()), "lr": 0.1})
    model.extra = nn.Linear(4, 4)
    assert optimizer.unbound() == ["extra.weight", "extra.bias"]
    optimizer.bind(model)
    assert optimizer.unbound() == []
    first, second = (group["param_names"] for group in optimizer.param_groups)
    assert {"wte.weight", "extra.weight", "extra.bias"} < set(first)
    assert second == [f"blocks.1.{name}" for name, _ in model.blocks[1].named_parameters()]
    everything = sorted(name for group in names(optimizer).values() for name in group)
    assert everything == sorted(name for name, _ in model.named_parameters())


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
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


def test_a_lazy_module_behind_the_generator_is_bound_later():
    class Lazy(nn.Module):
        def build(self):
            self.layer = nn.Linear(4, 4)

    module = Lazy()
    optimizer = ROOT(module.parameters())
    module.build()
    assert optimizer.module is module
    optimizer.bind(module)
    assert names(optimizer) == {"root": [], "adamw": ["layer.weight", "layer.bias"]}


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


def test_frozen_parameters_have_their_place_and_train_once_they_are_not():
    """As in torch's optimizers, which hold what they are given."""
    model = GPT(tied=False)
    model.wte.weight.requires_grad_(False)
    model.blocks[0].qkv.weight.requires_grad_(False)
    optimizer = ROOT(model.parameters(), weight_decay=0.1)
    assert names(optimizer) == names(ROOT(GPT(tied=False).parameters()))
    frozen = [model.wte.weight, model.blocks[0].qkv.weight]
    before = [parameter.detach().clone() for parameter in frozen]
    model(torch.ones(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert all(map(torch.equal, before, frozen))
    assert all(not optimizer.state.get(parameter) for parameter in frozen)
    model.requires_grad_(True)
    model(torch.ones(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, before, frozen))


def test_binding_may_leave_frozen_parameters_to_who_unfreezes_them():
    model = GPT(tied=False)
    model.blocks[0].requires_grad_(False)
    optimizer = ROOT([])
    optimizer.bind(model, frozen=False)
    held = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert held == [n for n, p in model.named_parameters() if p.requires_grad]


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
    assert [group["name"] for group in optimizer.param_groups] == ["everything", "adamw"]
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


def test_a_group_without_a_role_has_each_parameter_under_its_own_rule():
    """As Lightning's BackboneFinetuning adds parameters: tensors and a learning rate, no more."""
    model = GPT(tied=False)
    model.blocks[1].requires_grad_(False)
    optimizer = ROOT(model.parameters(), lr=1.0)
    model.blocks[1].requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": list(model.blocks[1].parameters()), "lr": 0.1})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]
    late = set(optimizer.param_groups[1]["param_names"])
    assert late == {f"blocks.1.{name}" for name, _ in model.blocks[1].named_parameters()}
    assert late & set(names(optimizer)["root"]) == {
        f"blocks.1.{name}" for name, p in model.blocks[1].named_parameters() if p.ndim == 2
    }
    assert names(optimizer).keys() == names(ROOT(GPT(tied=False).parameters())).keys()


def test_groups_keep_number_order_names_and_options():
    """Those of a user who decays matrices alone, and gives the head a rate of its own."""
    model = GPT(tied=False)
    head = [model.lm_head.weight]
    matrices = [p for p in model.parameters() if p.ndim > 1 and p is not head[0]]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    given = [
        {"params": matrices, "weight_decay": 0.2, "name": "decayed"},
        {"params": vectors, "weight_decay": 0.0},
        {"params": head, "lr": 0.5, "betas": (0.8, 0.9), "layer": 12},
    ]
    optimizer = ROOT([dict(group) for group in given], lr=0.1)
    for _ in range(2):
        optimizer.bind(model)
        for group, own in zip(optimizer.param_groups, given, strict=True):
            assert [id(p) for p in group["params"]] == [id(p) for p in own["params"]]
            assert all(group[key] == own[key] for key in own if key != "params")
            assert ("name" in group) == ("name" in own) and "role" not in group
    assert names(optimizer) == {
        role: sorted(found, key=[n for g in optimizer.param_groups for n in g["param_names"]].index)
        for role, found in names(ROOT(model.parameters())).items()
    }
    assert len(optimizer.partition.routes[2].matrices) == 3  # q, k and v


def test_names_follow_tensors_in_groups_that_are_edited():
    """Before and after a first step, in a saved state and in a copy; as torch's AdamW steps."""
    model = GPT(tied=False)
    optimizer = ROOT(model.parameters(), lr=1e-2)
    model.wpe.requires_grad_(False)
    for frozen in (model.ln_f, model.wte):
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        kept = [n for n, p in model.named_parameters() if p.requires_grad]
        one_step(model, optimizer)
        state = optimizer.state_dict()
        assert state["param_groups"][0]["param_names"] == kept
        assert len(state["state"]) == len(kept)
        frozen.requires_grad_(False)
    other = ROOT([(n, p) for n, p in model.named_parameters() if n in kept])
    other.load_state_dict(state)
    assert len(copy.deepcopy(optimizer).partition.routes) == len(kept)
    optimizer.param_groups[0]["params"].append(model.wpe.weight)
    model.wpe.requires_grad_(True)
    one_step(model, optimizer)
    assert "wpe.weight" in names(optimizer)["adamw"]


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


def test_the_first_step_tells_the_split_once_where_nobody_has_shown_it(caplog):
    model = GPT(tied=False)
    for shown in (False, True):
        optimizer = ROOT(model.parameters())
        if shown:
            optimizer.table()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning_root"):
            one_step(model, optimizer)
            one_step(model, optimizer)
        told = [record.message for record in caplog.records if "ROOT:" in record.message]
        assert told == ([] if shown else ["\n".join(str(optimizer.partition).splitlines()[-2:])])
