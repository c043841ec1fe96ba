"""Low-rank adapters around a frozen model, with PEFT's names, written for the zoo."""

import torch
from torch import Tensor, nn

from tests.models import GPT

RANK = 2


class LoraLinear(nn.Module):
    """A frozen Linear plus the product of two thin ones."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict(
            {"default": nn.Linear(base_layer.in_features, RANK, bias=False)}
        )
        self.lora_B = nn.ModuleDict(
            {"default": nn.Linear(RANK, base_layer.out_features, bias=False)}
        )
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class LoraEmbedding(nn.Module):
    """A frozen table plus the product of a thin table and a matrix."""

    def __init__(self, base_layer: nn.Embedding):
        super().__init__()
        self.base_layer = base_layer
        rows, width = base_layer.weight.shape
        self.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(RANK, rows)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.randn(width, RANK)})

    def forward(self, tokens: Tensor) -> Tensor:
        thin = nn.functional.embedding(tokens, self.lora_embedding_A["default"].T)
        return self.base_layer(tokens) + thin @ self.lora_embedding_B["default"].T


class ModulesToSaveWrapper(nn.Module):
    """A module that is trained as a whole, beside its frozen original."""

    def __init__(self, original_module: nn.Module, copy: nn.Module):
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict({"default": copy})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)


class LoraModel(nn.Module):
    """What holds the adapted model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


class PeftModel(nn.Module):
    """What the user gets."""

    def __init__(self, base_model: nn.Module):
        super().__init__()
        self.base_model = base_model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base_model(tokens)


def adapted_gpt(*, head: str, table: bool) -> PeftModel:
    """Adapt every attention and MLP of a frozen GPT.

    Args:
        head: "frozen", "saved" (trained as a whole) or "adapted" (by factors of its own).
        table: Whether the embedding is adapted too.
    """
    model = GPT(tied=False).requires_grad_(False)
    for block in model.blocks:
        block.qkv, block.proj = LoraLinear(block.qkv), LoraLinear(block.proj)
        block.mlp[0], block.mlp[2] = LoraLinear(block.mlp[0]), LoraLinear(block.mlp[2])
    if table:
        model.wte = LoraEmbedding(model.wte)
    if head == "saved":
        model.lm_head = ModulesToSaveWrapper(model.lm_head, nn.Linear(16, 256, bias=False))
    elif head == "adapted":
        model.lm_head = LoraLinear(model.lm_head)
    return PeftModel(LoraModel(model))


class LoRAQKVLinear(nn.Module):
    """litgpt's: a frozen fused projection, and factors for q, k and v that lie below each other."""

    def __init__(self, linear: nn.Linear, sizes: list[int]):
        super().__init__()
        self.linear, self.qkv_shapes = linear, sizes
        self.lora_A = nn.Parameter(torch.randn(RANK * len(sizes), linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(sum(sizes), RANK))

    def forward(self, x: Tensor) -> Tensor:
        thin = (x @ self.lora_A.T).chunk(len(self.qkv_shapes), -1)
        wide = self.lora_B.split(self.qkv_shapes)
        parts = [a @ b.T for a, b in zip(thin, wide, strict=True)]
        return self.linear(x) + torch.cat(parts, -1)


def litgpt_adapted() -> GPT:
    """A frozen GPT whose fused projections are adapted as litgpt does."""
    model = GPT(tied=False).requires_grad_(False)
    for block in model.blocks:
        width = block.qkv.in_features
        block.qkv = LoRAQKVLinear(block.qkv, [width] * 3)
    return model
