"""Where a parameter holds several matrices: what the module tells, and what stays in doubt."""

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_root.partition import MatrixView, Route, partition_named, partition_parameters
from tests.partition.reading import Children, linear


class Told(Children):
    """A module that tells integers and holds children, as an attention or an MLP does."""

    def __init__(self, tells: dict[str, object] | None = None, **children: nn.Module):
        super().__init__(**children)
        for name, value in (tells or {}).items():
            setattr(self, name, value)


class Config:
    """What transformers attaches to modules."""

    def __init__(self, **values: object):
        self.__dict__.update(values)


class Raw(Told):
    """Parameters of the given shapes."""

    def __init__(self, tells: dict[str, object] | None = None, **shapes: tuple[int, ...]):
        super().__init__(tells)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Conv1D(nn.Module):
    """As in transformers: y = x W + b with W of shape (in, out)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.zeros(nx, nf))


def called(name: str, base: type[nn.Module]) -> type[nn.Module]:
    """The same class under the name that another library gives it."""
    return type(name, (base,), {})


def lin(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


def routes(module: nn.Module, **options: object) -> dict[str, Route]:
    """The routes of a module's own parameters, in front of a head."""
    model = Children(part=module, head=linear())
    found = partition_parameters(model, **options).routes
    return {r.name.removeprefix("part."): r for r in found if r.name.startswith("part.")}


def rows(*sizes: int) -> MatrixView:
    return MatrixView(rows=sizes)


def columns(*sizes: int) -> MatrixView:
    return MatrixView(columns=sizes, transposed=True)


TRANSPOSED = MatrixView(transposed=True)
HEADS = {"num_heads": 4, "num_kv_heads": 2}

# Module, and the view of each of its weights by hand; what is not named is whole.
CERTAIN = {
    "torch attention": (nn.MultiheadAttention(8, 2), {"in_proj_weight": rows(8, 8, 8)}),
    "torch attention of unequal widths": (nn.MultiheadAttention(8, 2, kdim=4, vdim=4), {}),
    "lstm": (
        nn.LSTM(6, 8),
        {"weight_ih_l0": rows(8, 8, 8, 8), "weight_hh_l0": rows(8, 8, 8, 8)},
    ),
    "projected lstm": (
        nn.LSTM(6, 8, proj_size=4),
        {"weight_ih_l0": rows(8, 8, 8, 8), "weight_hh_l0": rows(8, 8, 8, 8)},
    ),
    "gru cell": (nn.GRUCell(6, 8), {"weight_ih": rows(8, 8, 8), "weight_hh": rows(8, 8, 8)}),
    "rnn": (nn.RNN(6, 8), {}),
    "lstm of one unit": (nn.LSTM(6, 1), {}),  # its gates would be vectors
    "qkv": (Children(qkv=lin(8, 24)), {"qkv.weight": rows(8, 8, 8)}),
    "q, k, v of another name": (Children(Wqkv=lin(8, 24)), {"Wqkv.weight": rows(8, 8, 8)}),
    "in_proj": (Children(in_proj=lin(8, 24)), {"in_proj.weight": rows(8, 8, 8)}),
    "wider in_proj": (Children(in_proj=lin(8, 32)), {}),  # an MLP's
    "equal heads": (
        Told({"num_heads": 4, "head_dim": 3}, qkv=lin(8, 36)),
        {"qkv.weight": rows(12, 12, 12)},
    ),
    "grouped queries": (Told(HEADS, qkv=lin(16, 32)), {"qkv.weight": rows(16, 8, 8)}),
    "grouped queries by configuration": (
        Told(
            {"config": Config(num_attention_heads=4, num_key_value_heads=1), "head_dim": 8},
            qkv_proj=lin(16, 48),
        ),
        {"qkv_proj.weight": rows(32, 8, 8)},
    ),
    "grouped queries that look like thirds": (
        Told({**HEADS, "head_dim": 6}, qkv=lin(16, 48)),
        {"qkv.weight": rows(24, 12, 12)},
    ),
    "k and v beside q": (Children(to_q=lin(8, 8), to_kv=lin(6, 16)), {"to_kv.weight": rows(8, 8)}),
    "heads of k and v": (
        Told({**HEADS, "head_dim": 3}, kv_proj=lin(8, 12)),
        {"kv_proj.weight": rows(6, 6)},
    ),
    "neox": (
        called("GPTNeoXAttention", Told)(
            {"num_heads": 2, "head_size": 4}, query_key_value=lin(8, 24)
        ),
        {"query_key_value.weight": rows(4, 4, 4, 4, 4, 4)},
    ),
    "bloom by configuration": (
        Told({"config": Config(model_type="bloom", n_head=2)}, query_key_value=lin(8, 24)),
        {"query_key_value.weight": rows(4, 4, 4, 4, 4, 4)},
    ),
    "heads first": (
        Told({"head_first": True, "num_heads": 2, "dim_head": 4}, qkv=lin(8, 24)),
        {"qkv.weight": rows(4, 4, 4, 4, 4, 4)},
    ),
    "gpt-2": (
        Children(c_attn=Conv1D(24, 8), c_proj=Conv1D(8, 8)),
        {"c_attn.weight": columns(8, 8, 8), "c_proj.weight": TRANSPOSED},
    ),
    "cross attention of gpt-2": (
        Children(c_attn=Conv1D(16, 8), q_attn=Conv1D(8, 8)),
        {"c_attn.weight": columns(8, 8), "q_attn.weight": TRANSPOSED},
    ),
    "gate and up": (
        Children(gate_up_proj=lin(8, 24), down_proj=lin(12, 8)),
        {"gate_up_proj.weight": rows(12, 12)},
    ),
    "gate and up of dinov2": (
        Children(w12=lin(8, 24), w3=lin(12, 8)),
        {"w12.weight": rows(12, 12)},
    ),
    "gated fc1": (Children(fc1=lin(8, 24), fc2=lin(12, 8)), {"fc1.weight": rows(12, 12)}),
    "plain fc1": (Children(fc1=lin(8, 24), fc2=lin(24, 8)), {}),
    "torch's gate": (
        nn.Sequential(lin(8, 24), nn.GLU(), lin(12, 24), nn.GLU(0)),
        {"0.weight": rows(12, 12)},
    ),
    "mamba": (
        Children(in_proj=lin(8, 32), conv1d=nn.Conv1d(16, 16, 4, groups=16), out_proj=lin(16, 8)),
        {"in_proj.weight": rows(16, 16)},
    ),
    "groups": (nn.Conv2d(8, 12, 3, groups=4), {"weight": rows(3, 3, 3, 3)}),
    "transposed groups": (
        nn.ConvTranspose1d(8, 12, 3, groups=2),
        {"weight": MatrixView(rows=(4, 4), transposed=True)},
    ),
    "transposed convolution": (nn.ConvTranspose2d(8, 12, 3), {"weight": TRANSPOSED}),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_cuts_what_the_module_tells(case: str):
    module, views = CERTAIN[case]
    found = routes(module)
    assert {name: r.view for name, r in found.items() if r.view is not None} == views
    assert all(found[name].role == "root" for name in views)
    assert all(route.suggestion is None for route in found.values())


# The order of the outputs as the models' own code reshapes them: a label for each matrix.
HEAD, GROUPS, SIZE = 4, 2, 3
LAYOUTS = {
    "three below each other": ("qkv", Told, torch.arange(3).repeat_interleave(HEAD * SIZE)),
    "grouped below each other": (
        "qkv",
        Told,
        torch.arange(3).repeat_interleave(torch.tensor([HEAD, GROUPS, GROUPS]) * SIZE),
    ),
    "[q, k, v] for each head": (
        "query_key_value",
        called("BloomAttention", Told),
        torch.arange(3)[None, :, None].expand(HEAD, 3, SIZE).flatten(),
    ),
    "[queries, k, v] for each group": (
        "query_key_value",
        called("FalconAttention", Told),
        torch.tensor([0, 0, 1, 2])[None, :, None]
        .expand(GROUPS, HEAD // GROUPS + 2, SIZE)
        .flatten(),
    ),
    "queries, then one k, v": (
        "c_attn",
        called("GPTBigCodeAttention", Told),
        torch.tensor([0] * HEAD + [1, 2]).repeat_interleave(SIZE),
    ),
    "four groups of [q, v, k]": (
        "qkv_proj",
        called("CodeGenAttention", Told),
        torch.tensor([0, 2, 1])[None, :, None].expand(4, 3, HEAD * SIZE // 4).flatten(),
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_no_block_mixes_queries_keys_and_values(case: str):
    component, attention, labels = LAYOUTS[case]
    groups = HEAD if case == "three below each other" else GROUPS
    module = attention(
        {"num_heads": HEAD, "num_kv_heads": groups, "head_dim": SIZE},
        **{component: lin(HEAD * SIZE, len(labels))},
    )
    view = routes(module)[f"{component}.weight"].view
    assert view is not None
    blocks = view.cut(labels[:, None].expand(-1, 2))
    assert len(blocks) > 2
    assert all(len(block.unique()) == 1 for block in blocks)


class Experts(Raw):
    """A stack of experts."""


UP, DOWN = (4, 12, 8), (4, 8, 6)  # gate and up, and down: (experts, out, in)
STACK, STACK_T = MatrixView(stack=1), MatrixView(stack=1, transposed=True)
STACKS = {
    "class": (Experts(w1=(4, 6, 8)), {"w1": STACK}),
    "path": (nn.ModuleDict({"moe_layer": Raw(w1=(4, 6, 8))}), {"moe_layer.w1": STACK}),
    "count": (Raw({"num_experts": 4}, w1=(4, 6, 8)), {"w1": STACK}),
    "count by configuration": (
        Raw({"config": Config(num_local_experts=4)}, w1=(4, 6, 8)),
        {"w1": STACK},
    ),
    "gate and up": (
        Experts(gate_up_proj=UP, down_proj=DOWN),
        {"gate_up_proj": MatrixView(stack=1, rows=(6, 6)), "down_proj": STACK},
    ),
    "gate and up as (in, out)": (
        Experts(gate_up_proj=(4, 8, 12), down_proj=(4, 6, 8)),
        {
            "gate_up_proj": MatrixView(stack=1, columns=(6, 6), transposed=True),
            "down_proj": STACK_T,
        },
    ),
    "interleaved": (
        called("GptOssExperts", Experts)(gate_up_proj=(4, 8, 12), down_proj=(4, 6, 8)),
        {"gate_up_proj": STACK_T, "down_proj": STACK_T},
    ),
    "interleaved, as transformers tells": (
        Experts({"is_concatenated": False}, gate_up_proj=UP, down_proj=DOWN),
        {"gate_up_proj": STACK, "down_proj": STACK},
    ),
    "(in, out), as transformers tells": (
        Experts({"is_transposed": True}, w1=(4, 8, 8)),
        {"w1": STACK_T},
    ),
    "(in, out) by sizes": (
        Experts({"in_features": 8, "out_features": 6}, weight=(4, 8, 6)),
        {"weight": STACK_T},
    ),
    "(out, in) by sizes": (
        Experts({"input_size": 8, "output_size": 6}, weight=(4, 6, 8)),
        {"weight": STACK},
    ),
    "(in, out) by width": (
        Experts({"hidden_size": 8}, up_proj=(4, 8, 6), down_proj=(4, 6, 8)),
        {"up_proj": STACK_T, "down_proj": STACK_T},
    ),
    "(out, in) by width": (
        Experts({"hidden_size": 8}, up_proj=(4, 6, 8), down_proj=(4, 8, 6)),
        {"up_proj": STACK, "down_proj": STACK},
    ),
    "experts below each other": (
        Experts({"moe_num_experts": 4, "ffn_hidden_size": 6}, w1=(24, 8)),
        {"w1": rows(6, 6, 6, 6)},
    ),
}


@pytest.mark.parametrize("case", STACKS)
def test_experts_are_a_matrix_each(case: str):
    module, views = STACKS[case]
    found = routes(module)
    assert {name: (r.role, r.view) for name, r in found.items()} == {
        name: ("root", view) for name, view in views.items()
    }


NO_STACKS = {
    "biases": (Experts(gate_up_proj_bias=(4, 12)), "biases: named 'gate_up_proj_bias'"),
    "other count": (
        Experts({"num_experts": 8}, w1=(4, 6, 8)),
        '3 dimensions of Experts: {"stack": 1} would make it 4 blocks of (6, 8)',
    ),
    "vectors": (
        Experts(w1=(4, 6, 1)),
        '3 dimensions of Experts: {"stack": 1} would make it 4 blocks of (6, 1)',
    ),
    "two counts": (
        Raw(bank=(2, 3, 4, 5)),
        '4 dimensions of Raw: {"stack": 2} would make it 6 blocks of (4, 5)',
    ),
    "a word that contains another": (
        called("Moebius", Raw)(w1=(4, 6, 8)),
        '3 dimensions of Moebius: {"stack": 1} would make it 4 blocks of (6, 8)',
    ),
    "filters of a single row": (
        nn.Conv2d(8, 4, 3, groups=4, bias=False),
        "grouped convolution: 4 vectors of shape (1, 18)",
    ),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8, bias=False), "depthwise convolution: 8 groups"),
}


@pytest.mark.parametrize("case", NO_STACKS)
def test_what_is_no_certain_stack_goes_to_adamw(case: str):
    module, reason = NO_STACKS[case]
    (route,) = routes(module).values()
    assert (route.role, route.reason, route.view) == ("adamw", reason, None)


# Module, the end of the reason, and the rule to paste; the view is none, or only transposed.
DOUBTS = {
    "order": (
        Children(attn=Children(query_key_value=lin(8, 24))),
        'q, k, v in one of unknown order, whole: {"rows": 3} would cut it',
        '"*.query_key_value.weight": {"rows": 3}',
    ),
    "sizes": (
        Children(wqkv=lin(8, 16)),
        'q, k, v in one of unknown sizes, whole: {"rows": [8, 4, 4]} would cut it',
        '"*.wqkv.weight": {"rows": [8, 4, 4]}',
    ),
    "heads that do not add up": (
        Told({**HEADS, "head_dim": 2}, qkv=lin(8, 24)),
        'q, k, v in one of unknown sizes, whole: {"rows": 3} would cut it',
        '"*.qkv.weight": {"rows": 3}',
    ),
    "order of known heads": (
        Told({"num_heads": 2}, query_key_value=lin(8, 24)),
        'q, k, v in one of unknown order, whole: {"rows": 6} would cut it',
        '"*.query_key_value.weight": {"rows": 6}',
    ),
    "values sized apart": (
        Told({"num_heads": 2, "key_dim": 4, "val_dim": 4}, qkv=lin(8, 24)),
        'q, k, v in one of unknown order, whole: a rule with "rows" would cut it',
        None,
    ),
    "something beside q, k, v": (
        Children(in_proj_qkvz=lin(8, 24)),
        'q, k, v in one of unknown order, whole: a rule with "rows" would cut it',
        None,
    ),
    "k and v alone": (
        Children(kv=lin(8, 12)),
        'k, v in one of unknown sizes, whole: {"rows": 2} would cut it',
        '"*.kv.weight": {"rows": 2}',
    ),
    "k and v by heads": (
        Children(kv_b_proj=lin(8, 12)),
        'k and v of each head in turn, whole: a rule with "rows" would cut it',
        None,
    ),
    "gate without down": (
        Children(gate_up_proj=lin(8, 24)),
        'gate and up in one, whole: {"rows": 2} would cut it',
        '"*.gate_up_proj.weight": {"rows": 2}',
    ),
    "geglu": (
        called("GEGLU", Children)(proj=lin(8, 24)),
        'gate and up in one, whole: {"rows": 2} would cut it',
        '"*.proj.weight": {"rows": 2}',
    ),
    "mamba-2": (
        Children(in_proj=lin(8, 24), conv1d=nn.Conv1d(8, 8, 4, groups=8)),
        'several projections in one, whole: a rule with "rows" would cut it',
        None,
    ),
    "conv1d": (
        Children(c_attn=Conv1D(16, 8)),
        'stored as (in, out); q, k, v in one of unknown sizes, whole: {"columns": [8, 4, 4], '
        '"transposed": true} would cut it',
        '"*.c_attn.weight": {"columns": [8, 4, 4], "transposed": true}',
    ),
    "raw": (
        Raw(in_proj_weight=(24, 8)),
        'q, k, v in one by its name, whole: {"rows": 3} would cut it',
        '"part.in_proj_weight": {"rows": 3}',
    ),
    "experts without down": (
        Experts(gate_up_proj=UP),
        '4 blocks of (12, 8); gate and up in one, whole: {"stack": 1, "rows": 2} would cut it',
        '"part.gate_up_proj": {"stack": 1, "rows": 2}',
    ),
    "other stack": (
        Raw(bank=(3, 4, 5)),
        '{"stack": 1} would make it 3 blocks of (4, 5)',
        '"part.bank": {"stack": 1}',
    ),
    "adapter": (
        Children(q=Children(lora_A=nn.ModuleDict({"default": lin(8, 2)}))),
        "Linear weight, factor 'lora_A': by custom like any matrix",
        '"*.lora_A.default.weight": "adamw"',
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_doubt_is_named_with_the_rule_that_ends_it(case: str):
    module, reason, suggestion = DOUBTS[case]
    route = next(iter(routes(module).values()))
    assert route.reason.endswith(reason)
    assert route.suggestion == suggestion
    assert route.view is None or (route.view.rows, route.view.columns) == (None, None)
    table = str(partition_parameters(Children(part=module, head=linear())))
    if suggestion is None:
        assert "rules: {" not in table
        return
    pasted = yaml.safe_load(table[table.index("rules: {") :])
    (after,) = (r for r in routes(module, **pasted).values() if r.name == route.name)
    assert after.suggestion is None
    assert (after.view, after.role) != (route.view, route.role)


def test_a_suggested_pattern_covers_only_what_it_is_meant_for():
    geglu = called("GEGLU", Children)
    blocks = [Children(attn=Children(proj=lin(4, 4)), mlp=geglu(proj=lin(4, 8))) for _ in range(2)]
    partition = partition_parameters(Children(blocks=nn.ModuleList(blocks), head=linear()))
    assert {r.suggestion for r in partition.routes} == {
        None,
        '"blocks.*.mlp.proj.weight": {"rows": 2}',
    }


def test_names_alone_cut_nothing_and_propose():
    names = ("attn.in_proj_weight", "h.0.qkv.weight", "moe.experts.0.bank", "lm_head.weight")
    shapes = ((12, 4), (12, 4), (2, 3, 4), (4, 4))
    named = partition_named(zip(names, map(torch.zeros, shapes), strict=True))
    assert [route.view for route in named.routes] == [None] * 4
    assert [route.suggestion for route in named.routes] == [
        '"attn.in_proj_weight": {"rows": 3}',
        '"*.qkv.weight": {"rows": 3}',
        '"*.bank": {"stack": 1}',
        None,
    ]


def test_a_linear_of_another_library_is_cut_only_when_it_tells_its_storage():
    class PackedLinear(Raw):
        """Stored as (in, out)."""

    told, silent = Raw(weight=(24, 8)), PackedLinear({"out_features": 24}, weight=(8, 24))
    for module in (told, silent):
        assert routes(Children(qkv=module))["qkv.weight"].view is None


def test_wrappers_do_not_hide_what_the_module_tells():
    module = Told(HEADS, qkv=lin(16, 32))
    assert routes(torch.compile(module, backend="eager")) == routes(module)


def test_the_table_counts_blocks_and_work():
    model = Children(attn=Told(HEADS, qkv=lin(16, 32), proj=lin(16, 16)), head=linear())
    table = str(partition_parameters(model)).splitlines()
    assert table[2].endswith("Linear weight, blocks of (16, 16), 2 x (8, 16)")
    assert table[-2].startswith("ROOT:  4 matrices in 2 tensors, 768 parameters")


def iterations(matrix: Tensor) -> None:
    """Five steps of Newton-Schulz as they are written down."""
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = (gram + gram @ gram) @ matrix


def test_work_is_what_newton_schulz_multiplies():
    model = Children(a=lin(24, 8), b=lin(8, 24), qkv=lin(8, 24), head=lin(70, 8))
    partition = partition_parameters(model)
    with FlopCounterMode(display=False) as counter:
        for sides in [(8, 24), (8, 24), (8, 8), (8, 8), (8, 8)]:
            iterations(torch.empty(sides, device="meta"))
    adamw = 15 * 70 * 8
    percent = 100 * counter.get_total_flops() / (counter.get_total_flops() + adamw)
    assert f"work {percent:.1f} %" in str(partition).splitlines()[-2]
