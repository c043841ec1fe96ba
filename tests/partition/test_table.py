"""The printed table: what it shows, how it collapses blocks, that nothing is lost."""

import re

import pytest
import torch
from torch import nn

from lightning_root.partition import partition_parameters
from tests.models import GPT, TransformerEncoderViT, ViT, mlp
from tests.partition.reading import Children, linear, residual, two_layers
from tests.zoo.forecasting import TemporalFusionTransformer

MODELS = {
    "gpt": lambda: GPT(tied=True),
    "vit on torch's encoder": TransformerEncoderViT,
    "vit by hand": ViT,
    "mlp": lambda: mlp(8, 16, 4),
}


def test_golden():
    model = Children(emb=nn.Embedding(300, 4), blocks=nn.Sequential(residual(), residual()))
    assert str(partition_parameters(model)).splitlines() == [
        "parameter                      shape     rule   reason",
        "-----------------------------  --------  -----  -------------------------",
        "emb.weight                     (300, 4)  AdamW  embedding",
        "blocks.{0..1}.up.weight  x2    (8, 4)    ROOT   Linear weight",
        "blocks.{0..1}.up.bias  x2      (8,)      AdamW  bias or gain: 1 dimension",
        "blocks.{0..1}.down.weight  x2  (4, 8)    ROOT   Linear weight",
        "blocks.{0..1}.down.bias  x2    (4,)      AdamW  bias or gain: 1 dimension",
        "",
        "ROOT:  4 matrices, 128 parameters (9.5 %), work 41.1 %",
        "AdamW: 5 tensors, 1.2 k parameters (90.5 %), work 58.9 %",
        'no output head found; if `blocks.1.down` is one: rules={"blocks.1.down.weight": "adamw"}',
    ]


@pytest.mark.parametrize("model", MODELS)
def test_columns_align_within_110(model: str):
    deep = MODELS[model]()
    for name in ("a_rather_long_name_of_a_submodule", "and_another_one", "network"):
        deep = Children(**{name: deep})
    for module in (MODELS[model](), deep):
        header, rule, *rows, _blank, _root, _adamw = str(partition_parameters(module)).splitlines()
        starts = [match.start() for match in re.finditer(r"-+", rule)]
        assert [header[start:].split()[0] for start in starts] == [
            *("parameter", "shape", "rule", "reason")
        ]
        for row in rows:
            assert len(row) <= 110
            assert all(row[start - 2 : start].strip() == "" for start in starts[1:])


@pytest.mark.parametrize("model", MODELS)
def test_no_name_is_lost(model: str):
    """Expanding the rows' braces gives the names back, also where they take two lines."""
    prefix = "a_name_that_is_so_long_that_it_needs_more_than_a_line"
    partition = partition_parameters(Children(**{prefix: MODELS[model]()}))
    lines = str(partition).split("\n\n")[0].splitlines()[1:]
    end = len(lines[0].split()[0])
    cells: list[str] = []
    for line in lines[1:]:
        name = line[:end].strip()
        if line[end + 2 : end + 3] == "(":  # a shape: the first line of its row
            cells.append(name)
        else:
            cells[-1] += name
    expanded: set[str] = set()
    for cell in cells:
        name = re.sub(r"\s*x\d+$", "", cell)
        spans = re.findall(r"\{(\d+)\.\.(\d+)\}", name)
        assert len(spans) <= 1  # these models nest no stacks
        numbers = range(int(spans[0][0]), int(spans[0][1]) + 1) if spans else (0,)
        expanded |= {re.sub(r"\{.*\}", str(number), name) for number in numbers}
    assert expanded == {route.name for route in partition.routes}


def test_rows_collapse_only_when_shape_role_and_reason_agree():
    model = GPT(tied=False, depth=6)
    rules = {"blocks.2.qkv.weight": "adamw", "blocks.5.qkv.weight": "adamw"}
    lines = str(partition_parameters(model, rules=rules)).splitlines()
    rows = [line.split("  ")[0] for line in lines if ".qkv." in line]
    assert rows == ["blocks.{0,1,3,4}.qkv.weight", "blocks.2.qkv.weight", "blocks.5.qkv.weight"]


def test_nested_stacks_collapse_in_both_numbers_when_all_are_there():
    even = nn.ModuleList(nn.ModuleList(linear() for _ in range(3)) for _ in range(2))
    uneven = nn.ModuleList(nn.ModuleList(residual() for _ in range(n)) for n in (1, 3))
    table = str(partition_parameters(Children(even=even, uneven=uneven, head=linear())))
    rows = [line.split("  ")[0] for line in table.splitlines() if ".weight" in line]
    assert rows == [
        "even.{0..1}.{0..2}.weight",
        "uneven.0.0.up.weight",
        "uneven.0.0.down.weight",
        "uneven.1.{0..2}.up.weight",
        "uneven.1.{0..2}.down.weight",
        "head.weight",
    ]


def test_totals_count_in_readable_units():
    with torch.device("meta"):
        model = Children(wte=nn.Embedding(1000, 2), a=nn.Linear(2000, 1550, bias=False))
        model.head = nn.Linear(1000, 258, bias=False)
    *_, root, adamw = str(partition_parameters(model)).splitlines()
    assert root == "ROOT:  1 matrix, 3.1 M parameters (92.3 %), work 100.0 %"
    assert adamw == "AdamW: 2 tensors, 260.0 k parameters (7.7 %), work 0.0 %"


def rows(model: nn.Module) -> list[str]:
    """The names in the rows of a table whose names need one line each."""
    lines = str(partition_parameters(model)).split("\n\n")[0].splitlines()[2:]
    return [re.split(r"  +\(", line)[0].rstrip() for line in lines]


def test_equal_entries_of_a_dict_share_a_row():
    names = ("age", "income", "region", "size")
    model = Children(scale=nn.ModuleDict({name: linear() for name in names}), head=linear())
    model.deep = nn.ModuleDict({name: two_layers() for name in names[:3]})
    assert rows(model) == [
        *("scale.{age, income, +2}.weight  x4", "scale.{age, income, +2}.bias  x4"),
        *("head.weight", "head.bias"),
        *("deep.{age, income, region}.0.weight  x3", "deep.{age, income, region}.0.bias  x3"),
        *("deep.{age, income, region}.2.weight  x3", "deep.{age, income, region}.2.bias  x3"),
    ]


def test_entries_that_differ_keep_rows_of_their_own():
    sizes = {"age": 4, "income": 4, "region": 8}
    entries = nn.ModuleDict({name: nn.Linear(4, n, bias=False) for name, n in sizes.items()})
    ruled = partition_parameters(Children(d=entries, head=linear()), rules={"d.age.*": "adamw"})
    assert "d.{age, income}.weight  x2" in rows(Children(d=entries, head=linear()))
    assert not any("x2" in line for line in str(ruled).splitlines())


def test_equal_modules_share_rows_and_single_layers_do_not():
    model = Children(q=linear(), k=linear(), left=residual(), right=residual(), head=linear())
    assert [row for row in rows(model) if row.count("weight")] == [
        *("q.weight", "k.weight", "{left, right}.up.weight  x2", "{left, right}.down.weight  x2"),
        "head.weight",
    ]


def test_numbers_and_names_collapse_together():
    block = {name: residual for name in ("self_attention", "cross_attention")}
    layers = [Children(**{name: build() for name, build in block.items()}) for _ in range(3)]
    table = str(partition_parameters(Children(layers=nn.ModuleList(layers), head=linear())))
    assert "layers.{0..2}.{self_attention, +1}.up.weight  x6" in table


def test_the_table_of_a_fusion_transformer_fits_a_screen():
    *body, blank, root, adamw = str(partition_parameters(TemporalFusionTransformer())).splitlines()
    assert len(body) < 60
    assert (blank, root[:5], adamw[:6]) == ("", "ROOT:", "AdamW:")
    assert any(line.startswith("{age, income, +5}.fc1.weight  x7") for line in body)
    assert any(line.startswith("{all of one dimension}  x97") for line in body)
