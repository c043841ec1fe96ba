"""Coefficients by shape in a parameter group: used, kept in the state, refused when wrong."""

import copy
import io

import pytest
import torch

from lightning_root import ROOT, fit_coefficients
from lightning_root.coefficients import save_coefficients
from lightning_root.functional import newton_schulz

OWN = ((2.0, -1.5, 0.5),) * 5
OTHER = ((1.5, -0.5, 0.0),) * 5


def layers():
    """Named, so that none is taken for an output head."""
    torch.manual_seed(0)
    return [
        ("blocks.0.wide.weight", torch.nn.Parameter(torch.randn(8, 24))),
        ("blocks.0.square.weight", torch.nn.Parameter(torch.randn(8, 8))),
    ]


def step(optimizer):
    generator = torch.Generator().manual_seed(1)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_each_shape_is_orthogonalized_with_its_own_triples():
    (_, wide), (_, square) = named = layers()
    before = [wide.detach().clone(), square.detach().clone()]
    optimizer = ROOT(
        named,
        lr=1.0,
        weight_decay=0.0,
        momentum=0.0,
        outlier_quantile=None,
        coefficients={"8x24": OWN, "otherwise": OTHER},
        adjust_lr_fn="original",
    )
    step(optimizer)
    for parameter, old, triples in zip((wide, square), before, (OWN, OTHER), strict=True):
        expected = old - newton_schulz(parameter.grad, triples)
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_a_swap_between_steps_takes_effect_on_the_next():
    optimizer = ROOT(layers(), coefficients="adaptive")
    step(optimizer)
    seen = []
    optimizer.register_stack_hook(lambda stack: seen.append(stack.coefficients.triples))
    optimizer.param_groups[0]["coefficients"] = {"otherwise": "adaptive", "8x8": OWN}
    step(optimizer)
    assert OWN in seen
    assert len(set(seen)) == 2


def test_the_mapping_travels_with_the_state_dict():
    optimizer = ROOT(layers(), coefficients={"8x24": [list(row) for row in OWN]})
    step(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = ROOT(layers())
    other.load_state_dict(state)
    assert other.param_groups[0]["coefficients"] == {"8x24": OWN}
    assert copy.deepcopy(other).param_groups[0]["coefficients"] == {"8x24": OWN}
    step(other)


def test_a_json_file_is_read_once_and_not_needed_again(tmp_path):
    path = tmp_path / "mine.json"
    fitted = fit_coefficients((8, 24), 5)
    save_coefficients(path, [fitted, fit_coefficients((8, 24), 3)])
    optimizer = ROOT(layers(), coefficients=str(path))
    path.unlink()
    assert optimizer.param_groups[0]["coefficients"] == {
        "otherwise": "adaptive",
        "8x24": fitted.triples,
    }
    step(optimizer)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({"24x8": OWN}, r"shapes like \"768x3072\", smaller size first, got '24x8'"),
        ({"wide": OWN}, r"got 'wide'"),
        ({(8, 24): OWN}, r"got \(8, 24\)"),
        ({"8x24": OWN[:3]}, r"holds 3 triples.* `ns_steps` is 5"),
        ({"8x24": ((9.0, 9.0, 9.0),) * 5}, r"\(set for 8x24, 5 steps\) are unbounded"),
        ({"otherwise": "muno"}, r"must be one of \['adaptive'.*got 'muno'"),
        ("nowhere.json", r"`nowhere\.json` cannot be read"),
    ],
)
def test_a_wrong_mapping_is_named(coefficients, message):
    with pytest.raises(ValueError, match=message):
        ROOT(layers(), coefficients=coefficients)
    optimizer = ROOT([])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(
            {"params": layers(), "role": "root", "coefficients": coefficients}
        )
