"""A matrix view cuts a parameter into matrices and puts it together again, whatever its memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_root.partition import MatrixView, partition_named, partition_parameters
from tests.models import CNN, mlp


@st.composite
def composition(draw: st.DrawFn, total: int) -> tuple[int, ...] | None:
    """Positive sizes with the given sum, or None for one block."""
    ends = draw(st.none() | st.sets(st.integers(1, max(total - 1, 1)), max_size=4))
    if ends is None:
        return None
    ends = sorted(end for end in ends if end < total)
    return tuple(b - a for a, b in zip([0, *ends], [*ends, total], strict=True))


@st.composite
def shapes_and_views(draw: st.DrawFn) -> tuple[tuple[int, ...], MatrixView]:
    """A matrix, a convolution, or a stack of either, with a view that fits."""
    stack = draw(st.integers(0, 2))
    inner = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    shape = (*draw(st.lists(st.integers(1, 3), min_size=stack, max_size=stack)), *inner)
    view = MatrixView(
        stack=stack,
        rows=draw(composition(inner[0])),
        columns=draw(composition(math.prod(inner[1:]))),
        transposed=draw(st.booleans()),
    )
    return shape, view


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def scattered(tensor: Tensor, order: list[int]) -> Tensor:
    """The same tensor with its dimensions in another order in memory, and with gaps between."""
    inverse = [order.index(dim) for dim in range(len(order))]
    spread = torch.zeros(*(2 * tensor.shape[dim] for dim in order))
    view = spread[tuple(slice(None, None, 2) for _ in order)].permute(inverse)
    return view.copy_(tensor)


@settings(deadline=None, max_examples=200)
@given(case=shapes_and_views())
def test_blocks_tile_the_parameter_exactly_once(case):
    shape, view = case
    blocks = view.cut(numbered(shape))
    entries = torch.cat([block.flatten() for block in blocks])
    assert entries.sort().values.tolist() == list(range(math.prod(shape)))
    assert [tuple(block.shape) for block in blocks] == view.matrices(shape)


@settings(deadline=None, max_examples=200)
@given(case=shapes_and_views())
def test_writing_into_the_blocks_writes_a_contiguous_parameter(case):
    shape, view = case
    tensor = torch.zeros(shape)
    assert view.is_view(tensor)
    for block, source in zip(view.cut(tensor), view.cut(numbered(shape)), strict=True):
        block.copy_(source)
    assert torch.equal(tensor, numbered(shape))


@settings(deadline=None, max_examples=200)
@given(case=shapes_and_views(), data=st.data())
def test_memory_changes_nothing_but_who_writes_back(case, data):
    """Blocks are the same numbers in any memory, `paste` brings them back, `is_view` is true."""
    shape, view = case
    order = data.draw(st.permutations(range(len(shape))))
    tensor = scattered(numbered(shape), list(order))
    blocks = view.cut(tensor)
    for block, expected in zip(blocks, view.cut(numbered(shape)), strict=True):
        assert torch.equal(block, expected)
    shared = {block.untyped_storage().data_ptr() for block in blocks}
    memory = tensor.untyped_storage().data_ptr()
    assert view.is_view(tensor) == (shared == {memory})
    view.paste(tensor, [block + 1 for block in blocks])
    assert torch.equal(tensor, numbered(shape) + 1)
    view.paste(tensor, view.cut(tensor))  # blocks that may be views of what they are written to
    assert torch.equal(tensor, numbered(shape) + 1)


@settings(deadline=None, max_examples=200)
@given(case=shapes_and_views())
def test_meta_tensors_are_cut_without_data(case):
    shape, view = case
    tensor = torch.empty(shape, device="meta")
    blocks = view.cut(tensor)
    assert [tuple(block.shape) for block in blocks] == view.matrices(shape)
    assert {block.device.type for block in blocks} == {"meta"}
    view.paste(tensor, blocks)


def test_order_is_stack_then_rows_then_columns():
    view = MatrixView(stack=1, rows=(1, 2), columns=(2, 1))
    first = [block.tolist() for block in view.cut(numbered((2, 3, 3)))[:4]]
    assert first == [[[0, 1]], [[2]], [[3, 4], [6, 7]], [[5], [8]]]
    assert view.matrices((2, 3, 3)) == 2 * [(1, 2), (1, 1), (2, 2), (2, 1)]


def test_a_convolution_in_channels_last_is_copied_unless_its_kernel_is_one():
    view = MatrixView(rows=(2, 2))
    for kernel, is_view in ((3, False), (1, True)):
        weight = torch.zeros(4, 5, kernel, kernel).to(memory_format=torch.channels_last)
        assert view.is_view(weight) is is_view


MISFITS = {
    "rows": (MatrixView(rows=(4, 3)), (8, 6), r"`rows` must add up to the 8 rows .* 4 \+ 3 = 7"),
    "columns": (MatrixView(columns=(4,)), (8, 3, 2), r"to the 6 columns .* got 4 = 4"),
    "deep stack": (MatrixView(stack=1), (8, 6), r"`stack` must leave two .* at most 0"),
    "vector": (MatrixView(), (8,), r"`stack` must leave two dimensions .* got 0"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_view_that_does_not_fit_is_refused_everywhere(case: str):
    view, shape, message = MISFITS[case]
    tensor = torch.zeros(shape)
    for use in (
        lambda: view.check(shape),
        lambda: view.matrices(shape),
        lambda: view.cut(tensor),
        lambda: view.is_view(tensor),
        lambda: view.paste(tensor, [tensor]),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stack": -1}, ValueError, r"`stack` must be >= 0, got -1"),
        ({"stack": True}, TypeError, r"`stack` must be an integer"),
        ({"transposed": 1}, TypeError, r"`transposed` a boolean"),
        ({"rows": (3, 0)}, ValueError, r"`rows` must hold positive sizes, got \(3, 0\)"),
        ({"rows": ()}, ValueError, r"`rows` must hold positive sizes"),
        ({"columns": [3]}, TypeError, r"`columns` must be None or a tuple of integers, got \[3\]"),
        ({"columns": (1.5,)}, TypeError, r"`columns` must be None or a tuple of integers"),
    ],
)
def test_malformed_views_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MatrixView(**arguments)


def test_blocks_that_are_views_may_be_pasted_in_another_order():
    view, tensor = MatrixView(rows=(2, 2)), numbered((4, 2))
    view.paste(tensor, view.cut(tensor)[::-1])
    assert tensor.tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]


def test_pasting_other_blocks_is_refused():
    view, tensor = MatrixView(rows=(4, 2)), torch.zeros(6, 3)
    blocks = view.cut(tensor)
    for wrong in (blocks[:1], [*blocks, blocks[0]], blocks[::-1]):
        with pytest.raises(ValueError, match=r"`blocks` must be blocks of \(4, 3\), \(2, 3\), got"):
            view.paste(tensor, wrong)


# What the user writes.

RULED = {
    "equal rows": ({"rows": 2}, MatrixView(rows=(4, 4))),
    "sizes": ({"rows": [4, 2, 2]}, MatrixView(rows=(4, 2, 2))),
    "columns": ({"columns": 3, "role": "root"}, MatrixView(columns=(2, 2, 2))),
    "both": ({"rows": 2, "columns": [4, 2]}, MatrixView(rows=(4, 4), columns=(4, 2))),
    "transposed": ({"transposed": True}, MatrixView(transposed=True)),
    "view": (MatrixView(rows=(6, 2)), MatrixView(rows=(6, 2))),
    "one block": ({"rows": 1}, None),
    "role in a mapping": ({"role": "root"}, None),
}


@pytest.mark.parametrize("case", RULED)
def test_rules_cut_as_they_say(case: str):
    rule, view = RULED[case]
    route = partition_parameters(mlp(6, 8, 2), rules={"0.weight": rule}).routes[0]
    assert (route.role, route.view) == ("root", view)
    assert route.matrices == (view or MatrixView()).matrices((8, 6))
    named = partition_named([("0.weight", torch.zeros(8, 6))], rules=[("0.weight", rule)])
    assert named.routes[0].view == view


def test_a_rule_cuts_stacks_and_kernels():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.bank = nn.Parameter(torch.zeros(3, 4, 6))
            self.conv = nn.Conv2d(4, 8, 3)

    rules = {"bank": {"stack": 1, "columns": 2}, "conv.weight": {"rows": 2}}
    bank, conv, _ = partition_parameters(Mixer(), rules=rules).routes
    assert bank.matrices == 6 * [(4, 3)]
    assert bank.reason == "rule 'bank', 6 blocks of (4, 3)"
    assert conv.matrices == 2 * [(4, 36)]


def test_heads_are_cut_by_rules():
    layer = nn.TransformerEncoderLayer(16, 4)
    rules = {
        "*.in_proj_weight": {"rows": 12},
        "*.out_proj.weight": {"columns": 4},
    }
    routes = {route.name: route for route in partition_parameters(layer, rules=rules).routes}
    assert routes["self_attn.in_proj_weight"].matrices == 12 * [(4, 16)]
    assert routes["self_attn.out_proj.weight"].matrices == 4 * [(16, 4)]


def test_a_rule_of_one_block_leaves_whole_what_the_module_would_cut():
    cut, whole = (
        partition_parameters(CNN(), rules={"grouped.weight": rule}).routes
        for rule in ("root", {"rows": 1})
    )
    assert {r.name: len(r.matrices) for r in cut}["grouped.weight"] == 4
    assert {r.name: len(r.matrices) for r in whole}["grouped.weight"] == 1


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"rows": 3}, ValueError, r"'0\.weight' cannot cut .*\(8, 6\): `rows` must divide the 8"),
        (
            {"rows": [4, 3]},
            ValueError,
            r"cannot cut '0\.weight' of shape \(8, 6\): `rows` must add",
        ),
        ({"stack": 1}, ValueError, r"cannot cut .* `stack` must leave two dimensions"),
        (MatrixView(columns=(7,)), ValueError, r"cannot cut .* `columns` must add up to the 6"),
        ({"rows": 0}, ValueError, r"for '0\.weight': `rows` must be at least 1 block, got 0"),
        ({"rows": [4, -4]}, ValueError, r"for '0\.weight': `rows` must hold positive sizes"),
        ({"rows": "3"}, TypeError, r"`rows` must be a number of equal blocks or a list .* got '3'"),
        ({"columns": True}, TypeError, r"`columns` must be a number of equal blocks or a list"),
        ({"stack": 1.0}, TypeError, r"for '0\.weight': `stack` must be an integer"),
        ({"row": 3}, ValueError, r"for '0\.weight': a cut has the keys 'role', 'rows'.* got 'row'"),
        ({"role": "muon"}, ValueError, r"the role 'root' or 'adamw', got 'muon' for '0\.weight'"),
        ({"role": "adamw", "rows": 2}, ValueError, r"cut only what goes to 'root', .* and 'rows'"),
        (3, ValueError, r"or a cut such as \{'rows': 3\}, got 3 for '0\.weight'"),
    ],
)
def test_bad_rules_name_themselves_and_what_is_wrong(rule, error, message):
    with pytest.raises(error, match=message):
        partition_parameters(mlp(6, 8, 2), rules={"0.weight": rule})
