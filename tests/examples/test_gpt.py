import math

import pytest
import torch

from examples.gpt import GPT, rotary_angles, rotate


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(depth=2, width=32, heads=2, context=16)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", [1, 7, 15])
def test_a_later_byte_does_not_change_earlier_logits(model, tokens, position):
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=0)
    assert (after[:, position:] - before[:, position:]).abs().amax(dim=(0, 2)).min() > 0


def test_prediction_depends_on_the_order_of_bytes(tokens):
    one_block = GPT(depth=1, width=32, heads=2, context=16)
    swapped = tokens[:, [1, 0, *range(2, 16)]]  # one block without positions would see a mere set
    with torch.no_grad():
        change = one_block(tokens)[:, -1] - one_block(swapped)[:, -1]
    assert change.abs().max() > 1e-5  # float32 rounding is below 1e-7


def test_untrained_loss_is_that_of_a_uniform_guess(model, tokens):
    # 0.1: the head's small random weights cost a little over the uniform distribution.
    assert model.loss(tokens).item() == pytest.approx(math.log(256), abs=0.1)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone():
    cos, sin = rotary_angles(time=12, head_width=8, device=torch.device("cpu"))
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    queries, keys = rotate(query.expand(12, 8), cos, sin), rotate(key.expand(12, 8), cos, sin)
    # float32 products of 8 terms of order one: a few 1e-7
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(12), rtol=1e-5, atol=1e-6)
    products = queries @ keys.T
    for distance in range(12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert (products[0, 1:] - products[0, 0]).abs().min() > 1e-3


def test_hidden_matrices_are_the_four_of_each_block(model):
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    inside = {"attention.qkv", "attention.output", "mlp.up", "mlp.down"}
    hidden = {f"blocks.{i}.{name}.weight" for i in range(2) for name in inside}
    assert matrices == hidden | {"embedding.weight", "head.weight"}


def test_width_must_split_into_even_heads():
    with pytest.raises(ValueError, match="`width` must be a multiple of 2 \\* `heads`"):
        GPT(width=30, heads=4)


def test_too_long_a_window_is_refused(model):
    with pytest.raises(ValueError, match="at most 16 bytes a row, got 17"):
        model(torch.zeros(1, 17, dtype=torch.long))
