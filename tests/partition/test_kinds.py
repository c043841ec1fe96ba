"""What single parameters are taken for: by their owner, their name, their shape, their state."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_root.partition import partition_named, partition_parameters
from tests.models import CNN, GPT, mlp
from tests.partition.reading import Children, Wrapper, linear, names, reasons


class Parameters(nn.Module):
    """Raw parameters of the given shapes."""

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class RMSNorm2d(Parameters):
    """A norm of another library."""


class RotaryEmbedding(Parameters):
    """An embedding of another library."""


class BitLinear(Parameters):
    """A Linear of another library."""


KINDS = {
    "raw matrix": (Parameters(mix=(3, 4)), "root", "2-D weight of Parameters"),
    "raw table": (Parameters(pos_table=(3, 4)), "adamw", "position table: named 'pos_table'"),
    "raw wpe": (Parameters(wpe=(3, 4)), "adamw", "position table: named 'wpe'"),
    "bias table": (
        Parameters(relative_position_bias_table=(9, 2)),
        "adamw",
        "position table: named 'relative_position_bias_table'",
    ),
    "mask token": (Parameters(mask_token=(1, 4)), "adamw", "learned token: named 'mask_token'"),
    "leading one": (
        Parameters(query=(1, 3, 4)),
        "adamw",
        "table: leading dimension of 1, shape (1, 3, 4)",
    ),
    "column": (Parameters(scale=(4, 1)), "adamw", "vector in effect: shape (4, 1)"),
    "empty": (Parameters(none=(0, 4)), "adamw", "vector in effect: shape (0, 4)"),
    "scalar": (Parameters(temperature=()), "adamw", "scalar: 0 dimensions"),
    "raw head": (Parameters(lm_head=(9, 4)), "adamw", "output head: named 'lm_head'"),
    "class prototypes": (
        nn.ModuleDict({"loss": Parameters(weight=(9, 4))}),
        "adamw",
        "beside the model: in 'part.model.loss'",
    ),
    "raw projection": (Parameters(pos_proj=(3, 4)), "root", "2-D weight of Parameters"),
    "norm": (RMSNorm2d(weight=(3, 4)), "adamw", "gain of RMSNorm2d"),
    "torch norm": (nn.LayerNorm((3, 4), bias=False), "adamw", "gain of LayerNorm"),
    "embedding": (RotaryEmbedding(frequencies=(3, 4)), "adamw", "embedding"),
    "bag": (nn.EmbeddingBag(9, 4), "adamw", "embedding"),
    "linear": (BitLinear(weight=(3, 4)), "root", "BitLinear weight"),
    "rnn": (nn.RNNCell(3, 4, bias=False), "root", "RNNCell weight"),
    "conv1d": (nn.Conv1d(6, 8, 3, bias=False), "root", "Conv1d weight, flattened to (8, 18)"),
    "transposed": (
        nn.ConvTranspose2d(6, 8, 2, 2, bias=False),
        "root",
        "ConvTranspose2d weight, flattened to (6, 32), stored as (in, out)",
    ),
    "one filter": (
        nn.Conv2d(3, 1, 3, bias=False),
        "adamw",
        "vector in effect: shape (1, 3, 3, 3)",
    ),
    "patches of an image": (
        nn.Conv2d(3, 8, 4, 4, bias=False),
        "adamw",
        "input embedding: patches of the raw input",
    ),
    "patches of features": (
        nn.Conv2d(6, 8, 2, 2, bias=False),
        "root",
        "Conv2d weight, flattened to (8, 24)",
    ),
    "stem that overlaps": (
        nn.Conv2d(3, 8, 7, 2, bias=False),
        "root",
        "Conv2d weight, flattened to (8, 147)",
    ),
    "unequal queries": (
        nn.MultiheadAttention(4, 1, bias=False, kdim=3, vdim=3).q_proj_weight,
        "root",
        "attention: q",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_parameters(kind: str):
    module, role, reason = KINDS[kind]
    if isinstance(module, nn.Parameter):
        module = nn.MultiheadAttention(4, 1, bias=False, kdim=3, vdim=3)
    # Behind another model's head, so that this is not the last Linear.
    route = partition_parameters(Children(part=Wrapper(module), head=linear())).routes[0]
    assert (route.role, route.reason) == (role, reason)
    assert partition_parameters(Children(model=module, head=linear())).routes[0].role == role


def test_more_dimensions_need_the_rule_that_the_reason_names():
    model = Children(mixers=nn.ModuleList([Parameters(bank=(2, 3, 4)) for _ in range(2)]))
    (reason,) = set(reasons(partition_parameters(model)).values())
    assert reason == ('3 dimensions of Parameters: {"stack": 1} would make it 2 blocks of (3, 4)')
    for rule in ("root", {"stack": 1}):
        partition = partition_parameters(model, rules={"*.bank": rule})
        assert names(partition, "root") == {"mixers.0.bank", "mixers.1.bank"}


def test_parametrized_weights_count_as_the_weight():
    model = mlp(4, 8, 8, 2)
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[2])
    parametrizations.weight_norm(model[4])
    partition = partition_parameters(model)
    assert names(partition, "root") == {
        "0.parametrizations.weight.original1",
        "2.parametrizations.weight.original",
    }
    found = reasons(partition)
    assert found["0.parametrizations.weight.original0"] == "vector in effect: shape (8, 1)"
    assert found["2.parametrizations.weight.original"] == "Linear weight"
    assert found["4.parametrizations.weight.original1"] == "output head: last Linear"


def test_a_parametrized_module_keeps_the_name_of_its_class():
    model = Children(hidden=BitLinear(weight=(3, 4)), head=linear())
    parametrize.register_parametrization(model.hidden, "weight", nn.Identity())
    assert type(model.hidden).__name__ == "ParametrizedBitLinear"
    found = reasons(partition_parameters(model))
    assert found["hidden.parametrizations.weight.original"] == "BitLinear weight"


def test_only_the_first_convolution_reads_the_raw_input():
    stem, later = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 8, 2, 2, bias=False)
    assert names(partition_parameters(nn.Sequential(stem, later)), "adamw") == set()
    assert names(partition_parameters(nn.Sequential(later, stem)), "adamw") == {"0.weight"}


def test_a_lazy_parameter_is_an_error_that_names_the_fix():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0\.weight', '0\.bias'; run one forward pass"):
        partition_parameters(model)
    model(torch.zeros(1, 3))
    assert names(partition_parameters(model), "root") == {"0.weight"}


def test_without_names_only_shapes_decide():
    model = CNN()
    named = [(f"parameter.{i}", p) for i, p in enumerate(model.parameters())]
    for route in partition_named(named).routes:
        assert route.role == ("root" if len(route.shape) == 2 else "adamw")


def test_a_tensor_with_two_names_is_tied():
    shared = torch.zeros(8, 4)
    partition = partition_named([("wte.weight", shared), ("lm_head.weight", shared)])
    (route,) = partition.routes
    assert (route.name, route.role) == ("wte.weight", "adamw")


def test_no_data_is_read():
    with torch.device("meta"):
        partition = partition_parameters(GPT(tied=True))
    assert partition == partition_parameters(GPT(tied=True))


def test_frozen_parameters_are_left_out():
    model = GPT(tied=False)
    model.blocks[0].requires_grad_(False)
    found = {route.name for route in partition_parameters(model).routes}
    expected = {name for name, _ in model.named_parameters() if not name.startswith("blocks.0")}
    assert found == expected


def test_pairs_are_routed_frozen_or_not():
    named = [("fc1.weight", torch.zeros(4, 4)), ("head.weight", torch.zeros(2, 4))]
    assert len(partition_named(named).routes) == 2


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match=r"must have trainable parameters.*only frozen"):
        partition_parameters(mlp(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"must have trainable parameters.*no parameters"):
        partition_parameters(nn.ReLU())
    with pytest.raises(ValueError, match="at least one"):
        partition_named([])
