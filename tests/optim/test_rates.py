"""A learning rate and a decay for each kind of parameter, and for what a rule matches."""

import copy
import io
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from lightning_root import ROOT
from tests.helpers import names_by_role


class Net(nn.Module):
    """One parameter of each kind at least: hidden, embedding, table, vector, head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.randn(4, 8))
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.gate = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens):
        x = self.norm(self.embedding(tokens) + self.positions)
        return self.head(x + self.down(torch.sigmoid(self.gate(x)) * self.up(x)))


KINDS = {
    "embedding.weight": "embedding",
    "positions": "table",
    "norm.weight": "vector",
    "norm.bias": "vector",
    "up.weight": "hidden",
    "up.bias": "vector",
    "gate.weight": "hidden",
    "gate.bias": "vector",
    "down.weight": "hidden",
    "down.bias": "vector",
    "head.weight": "head",
    "head.bias": "vector",
}
SCALES = {"embedding": 3.0, "head": 0.25, "table": 0.5, "hidden": 2.0}
DECAYS = {"vector": 0.0, "embedding": 0.0, "hidden": 0.3}
RULES = {"gate.*": {"lr_scale": 0.5}, "up.weight": {"weight_decay": 0.7}}


def train_(model, optimizers, steps, start=0, scheduler=None):
    for seed in range(start, start + steps):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(11, (6, 4), generator=generator)
        model.zero_grad()
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()


def by_hand(model, scales, decays, rules=(), lr=0.01, **options):
    """A group for each parameter, with the rates that it should have."""
    split = names_by_role(ROOT(model.parameters()))
    roles = {name: role for role, names in split.items() for name in names}
    groups = []
    for name, parameter in model.named_parameters():
        kind = KINDS[name]
        rule = next((r for glob, r in dict(rules).items() if fnmatchcase(name, glob)), {})
        groups.append(
            {
                "params": [(name, parameter)],
                "role": roles[name],
                "lr": lr * rule.get("lr_scale", scales.get(kind, 1.0)),
                "weight_decay": rule.get("weight_decay", decays.get(kind, 0.1)),
            }
        )
    return ROOT(groups, lr=lr, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("rules", [{}, RULES])
@pytest.mark.parametrize(
    "options", [{}, {"momentum_dtype": "float8"}, {"normalize": "neuron"}, {"fused": True}]
)
def test_rates_by_kind_are_those_of_groups_made_by_hand(rules, options):
    """Bit for bit, but for the rounding of a product: the factors here are powers of two or 3."""
    model, twin = Net(), Net()
    optimizer = ROOT(
        model.parameters(), lr=0.01, lr_scales=SCALES, weight_decays=DECAYS, rules=rules, **options
    )
    other = by_hand(twin, SCALES, DECAYS, rules, **options)
    assert len(optimizer.param_groups) == 1
    train_(model, [optimizer], 4)
    train_(twin, [other], 4)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6, msg=name)


def test_a_schedule_moves_all_rates():
    model, twin = Net(), Net()
    optimizer = ROOT(model.parameters(), lr=0.01, lr_scales=SCALES)
    other = by_hand(twin, SCALES, {})
    pairs = []
    for net, each in ((model, optimizer), (twin, other)):
        schedule = torch.optim.lr_scheduler.StepLR(each, 1, gamma=0.5)
        pairs.append((net, each, schedule))
        train_(net, [each], 4, scheduler=schedule)
    assert optimizer.rates()["embedding"][0] == pytest.approx(0.01 * 3.0 / 16)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_a_tensor_as_learning_rate_is_scaled_too():
    model, twin = Net(), Net()
    tensor = ROOT(model.parameters(), lr=torch.tensor(0.01, dtype=torch.float64), lr_scales=SCALES)
    number = ROOT(twin.parameters(), lr=0.01, lr_scales=SCALES)
    train_(model, [tensor], 3)
    train_(twin, [number], 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert tensor.param_groups[0]["lr"].item() == 0.01


def test_factors_of_one_change_no_bit():
    model, twin = Net(), Net()
    kinds = set(KINDS.values())
    scaled = ROOT(model.parameters(), lr=0.01, lr_scales=dict.fromkeys(kinds, 1.0))
    train_(model, [scaled], 3)
    train_(twin, [ROOT(twin.parameters(), lr=0.01)], 3)
    assert same(model, twin)
    assert scaled.rates() == {}


def test_a_scale_of_zero_holds_a_kind():
    model, before = Net(), Net()
    optimizer = ROOT(model.parameters(), lr=0.01, lr_scales={"embedding": 0.0})
    train_(model, [optimizer], 2)
    assert torch.equal(model.embedding.weight, before.embedding.weight)
    assert not torch.equal(model.up.weight, before.up.weight)


def test_a_rule_with_rates_alone_leaves_the_split_as_it_is():
    plain = ROOT(Net().parameters()).partition.routes
    ruled = ROOT(Net().parameters(), rules=RULES).partition.routes
    assert [(r.name, r.role, r.view, r.reason) for r in plain] == [
        (r.name, r.role, r.view, r.reason) for r in ruled
    ]


def test_a_rule_may_cut_and_give_rates():
    rules = {
        "up.weight": {"rows": 2, "lr_scale": 0.5},
        "gate.weight": {"role": "adamw", "weight_decay": 0},
    }
    routes = {r.name: r for r in ROOT(Net().parameters(), rules=rules).partition.routes}
    assert routes["up.weight"].view.rows == (8, 8)
    assert routes["up.weight"].lr_scale == 0.5
    assert (routes["gate.weight"].role, routes["gate.weight"].weight_decay) == ("adamw", 0.0)


@pytest.mark.parametrize("rate", [{"lr_scale": -1}, {"weight_decay": "0"}, {"lr_scale": True}])
def test_a_wrong_rate_in_a_rule_is_named(rate):
    (key,) = rate
    with pytest.raises(ValueError, match=f"`{key}`.*'up.weight'"):
        ROOT(Net().parameters(), rules={"up.weight": rate})


def test_the_table_shows_the_rates_in_effect():
    optimizer = ROOT(
        Net().parameters(), lr=0.01, lr_scales={"embedding": 3.0}, weight_decays={"vector": 0.0},
        rules={"gate.weight": {"lr_scale": 0.5}},
    )  # fmt: skip
    lines = optimizer.table().splitlines()
    assert "embedding: learning rate 0.03, weight decay 0.1" in lines
    assert "vector: learning rate 0.01, weight decay 0" in lines
    assert "gate.weight: learning rate 0.005, weight decay 0.1" in lines


def test_equal_rates_of_many_parameters_are_one_line():
    rules = {"*.bias": {"lr_scale": 0.5}}
    optimizer = ROOT(Net().parameters(), lr=0.01, rules=rules)
    lines = [line for line in optimizer.table().splitlines() if "learning rate" in line]
    assert lines == ["norm.bias and 4 more: learning rate 0.005, weight decay 0.1"]


def test_groups_have_rates_of_their_own():
    model = Net()
    slow = {"params": list(model.embedding.parameters()), "lr": 0.001}
    rest = [p for n, p in model.named_parameters() if n != "embedding.weight"]
    optimizer = ROOT([slow, {"params": rest}], lr=0.01, lr_scales={"embedding": 2.0, "head": 0.5})
    optimizer.bind(model)
    assert optimizer.rates() == {"embedding/0": (0.002, 0.1), "head/1": (0.005, 0.1)}


@pytest.mark.parametrize(
    "options", [{"lr_scales": SCALES, "weight_decays": DECAYS, "rules": RULES}]
)
def test_a_state_takes_the_rates_along(options):
    model = Net()
    optimizer = ROOT(model.parameters(), lr=0.01, **options)
    train_(model, [optimizer], 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    loaded = ROOT(twin.parameters(), lr=1.0, rules=options["rules"])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded.rates() == optimizer.rates()
    train_(model, [optimizer], 2, start=2)
    train_(twin, [loaded], 2, start=2)
    assert same(model, twin)


# ---- cautious decay


def textbook_cautious(value, moved, lr, decay):
    """W after a step whose update alone would have brought it to `moved`."""
    update = value - moved
    return torch.where(update * value > 0, moved - lr * decay * value, moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)])
def test_cautious_decay_is_the_textbooks(dtype, lr):
    """Both rules: only entries that the update moves towards zero decay."""
    model, plain = Net().to(dtype), Net().to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    cautious = ROOT(model.parameters(), lr=lr, weight_decay=0.5, weight_decay_mode="cautious")
    without = ROOT(plain.parameters(), lr=lr, weight_decay=0.0)
    train_(model, [cautious], 1)
    train_(plain, [without], 1)
    decayed = 0
    tolerance = {torch.bfloat16: 0.02, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    for value, found, moved in zip(before, model.parameters(), plain.parameters(), strict=True):
        expected = textbook_cautious(value, moved, 0.01, 0.5)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        decayed += int((found != moved).sum())
    total = sum(p.numel() for p in model.parameters())
    assert 0.2 * total < decayed < 0.8 * total


def test_cautious_decay_without_decay_changes_no_bit():
    model, twin = Net(), Net()
    options = {"lr": 0.01, "weight_decay": 0.0}
    train_(model, [ROOT(model.parameters(), weight_decay_mode="cautious", **options)], 3)
    train_(twin, [ROOT(twin.parameters(), **options)], 3)
    assert same(model, twin)
