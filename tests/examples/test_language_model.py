import math

import pytest
import torch
import torch.nn.functional as F

from examples.language.layers import Matrix
from examples.language.loss import chunked_cross_entropy
from examples.language.model import Llama
from examples.language.names import hugging_face_name
from lightning_root import partition_parameters

SIZES = dict(
    vocabulary=61,
    dimension=24,
    layers=2,
    heads=6,
    key_value_heads=2,
    head_dimension=8,
    mlp_dimension=40,
    context=32,
)


def llama(**changes) -> Llama:
    torch.manual_seed(0)
    return Llama(**(SIZES | changes))


def tokens(rows: int = 3, time: int = 20) -> torch.Tensor:
    return torch.randint(61, (rows, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_hugging_faces_llama(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = llama(tied=tied, rope_theta=700.0).eval()
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=40,
            max_position_embeddings=32,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
        )
    ).eval()
    for parameter in model.parameters():  # gains start at one, which would hide them
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    weights = {hugging_face_name(name): value for name, value in model.state_dict().items()}
    missing = reference.load_state_dict(weights, strict=False)
    assert missing == ((["lm_head.weight"] if tied else []), [])
    with torch.no_grad():
        ours, theirs = model(tokens()), reference(tokens()).logits
    # float32 products of 24 to 48 terms in another order: a few 1e-7 of logits of order one
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.05


@pytest.mark.parametrize("chunk_elements", [1, 61 * 7, 61 * 49, 61 * 50, 2**28])
def test_chunked_loss_and_gradients_are_those_of_cross_entropy(chunk_elements):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(61, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(61, (50,), generator=generator)
    single = [part.detach().float().requires_grad_() for part in (hidden, weight)]
    loss = chunked_cross_entropy(*single, targets, chunk_elements)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    (3 * loss).backward()
    (3 * expected).backward()
    # float64 is the truth; float32 softmaxes over 61 entries
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for part, truth in zip(single, (hidden, weight), strict=True):
        torch.testing.assert_close(part.grad.double(), truth.grad, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_cross_entropy(*single, targets, chunk_elements), loss, rtol=1e-6, atol=0
        )


def test_chunked_loss_under_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    hidden, weight = torch.randn(64, 16, requires_grad=True), torch.randn(61, 16).requires_grad_()
    targets = torch.randint(61, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk_elements=61 * 10)
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    truth = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for part, true in zip(gradients, truth, strict=True):
        assert part.dtype == torch.float32
        assert (part - true).norm() < 0.02 * true.norm()  # bfloat16 has 8 bits: 0.004 an entry


def test_chunked_loss_never_holds_all_logits(monkeypatch):
    sizes = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: sizes.append(len(x) * len(w)) or linear(x, w))
    chunked_cross_entropy(torch.randn(100, 4), torch.randn(61, 4), torch.zeros(100).long(), 61 * 9)
    assert max(sizes) == 61 * 9


def test_loss_is_the_cross_entropy_of_the_next_token():
    model, batch = llama(), tokens()
    logits = model(batch[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    torch.testing.assert_close(model.loss(batch), expected, rtol=1e-6, atol=0)
    # 0.3: small random weights cost a little over the uniform distribution.
    assert expected.item() == pytest.approx(math.log(61), abs=0.3)


def test_a_later_token_does_not_change_earlier_logits():
    model, batch = llama(), tokens()
    changed = batch.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    with torch.no_grad():
        before, after = model(batch), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=0)
    assert (after[:, 7:] - before[:, 7:]).abs().amax(dim=(0, 2)).min() > 0


def test_checkpointing_changes_no_gradient():
    plain, checkpointed = llama(), llama(activation_checkpointing=True)
    for model in (plain, checkpointed):
        model.loss(tokens()).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            checkpointed.get_parameter(name).grad, parameter.grad, rtol=0, atol=0
        )


def test_embeddings_heads_and_norms_go_to_adamw_and_every_other_matrix_to_root():
    routes = partition_parameters(llama(tied=False)).routes
    inside = {"attention.query", "attention.key", "attention.value", "attention.output"}
    inside |= {"mlp.gate", "mlp.up", "mlp.down"}
    hidden = {f"network.blocks.{i}.{name}.weight" for i in range(2) for name in inside}
    assert {route.name for route in routes if route.role == "root"} == hidden
    others = {route.name for route in routes} - hidden
    assert {"network.embedding.weight", "network.head.weight", "network.norm.weight"} < others


def test_the_papers_model_has_the_sizes_of_the_paper():
    with torch.device("meta"):
        model = Llama(128256, 2048, 16, 32, 8, 64, 8192, 4096)
    block = 2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048 + 2 * 2048
    expected = 128256 * 2048 + 16 * block + 2048
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 1_235_814_400


def test_a_model_made_without_memory_is_drawn_as_one_made_with_it():
    with torch.device("meta"):
        made = llama(dimension=240, tied=False)
    made.to_empty(device="cpu")
    for module in made.modules():  # as Lightning's strategies for large models do
        if isinstance(module, Matrix | torch.nn.Embedding | torch.nn.RMSNorm):
            module.reset_parameters()
    for name, parameter in llama(dimension=240, tied=False).named_parameters():
        ours = made.get_parameter(name)
        # thousands of draws: their spread is known to a few percent
        torch.testing.assert_close(ours.std(), parameter.std(), rtol=0.1, atol=1e-6)
        torch.testing.assert_close(ours.mean(), parameter.mean(), rtol=0, atol=2e-3)


def test_there_are_no_buffers_to_lose():
    assert not list(llama().buffers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(key_value_heads=4), "`key_value_heads` must divide `heads`, got 4 and 6"),
        (dict(head_dimension=7), "`head_dimension` must be even, got 7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        llama(**changes)


def test_too_long_a_window_is_refused():
    with pytest.raises(ValueError, match="at most 32 tokens a row, got 33"):
        llama()(tokens(time=33))


def sharded(rank, ranks, tied):
    """Loss and gradients of a model sharded over the ranks, each rank with its own rows."""
    from torch.distributed.device_mesh import init_device_mesh

    model = llama(tied=tied, activation_checkpointing=True)
    model._device_mesh = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("data_parallel", "tp"))
    model.configure_model()
    model.configure_model()  # Lightning may call it again
    loss = model.loss(tokens(rows=4).chunk(ranks)[rank])
    loss.backward()
    names = [name for name, _ in model.named_parameters()]
    return loss.item(), {name: model.get_parameter(name).grad.full_tensor() for name in names}


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_model_has_the_loss_and_gradients_of_a_whole_one(gloo_pool, tied):
    results = gloo_pool.run(sharded, tied)
    whole = llama(tied=tied)
    loss = whole.loss(tokens(rows=4))
    loss.backward()
    assert sum(result[0] for result in results) / 2 == pytest.approx(loss.item(), rel=1e-6)
    (_, first), (_, second) = results
    assert first.keys() == dict(whole.named_parameters()).keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=0, atol=0)
        expected = whole.get_parameter(name).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
