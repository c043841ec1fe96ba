"""Architectures that the zoo has to write itself, as their libraries are not at hand."""

import torch
from torch import Tensor, nn

from tests.zoo import adapters, diffusion, image_models, recurrent
from tests.zoo.decoders import DECODERS, TOKENS_AND_HEAD
from tests.zoo.perception import BEFORE_NORM
from tests.zoo.specimen import Specimen, images, language_loss, logits_loss, tokens

PATCHES = {"patch_embed.proj.weight": "patch embedding"}
HEAD = {"head.weight": "output head"}
ADAPTED = "base_model.model"


def denoising_loss(model: nn.Module) -> Tensor:
    """Noise from latents, a time, a class and, for the U-Net, a text."""
    conditions = [torch.tensor([3.0, 7.0]), torch.tensor([1, 2])]
    if isinstance(model, diffusion.UNet2DConditionModel):
        conditions.append(torch.randn(2, 6, 12))
    return model(torch.randn(2, 4, 8, 8), *conditions).square().mean()


def wrapped_llama() -> nn.Module:
    """A LightningModule around a model of transformers."""
    from lightning.pytorch import LightningModule

    module = LightningModule()
    module.model = DECODERS["llama"].build()
    return module


text_loss, pixel_loss = logits_loss(tokens), logits_loss(images)

BY_HAND = {
    "unet": Specimen(
        build=diffusion.UNet2DConditionModel,
        loss=denoising_loss,
        aside={"class_embedding.weight": "class embedding", "conv_out.weight": "output head"},
    ),
    "dit": Specimen(
        build=diffusion.DiT,
        loss=denoising_loss,
        aside={
            "x_embedder.proj.weight": "patch embedding",
            "y_embedder.embedding_table.weight": "class embedding",
            "final_layer.linear.weight": "output head",
        },
    ),
    "timm_vit": Specimen(
        build=image_models.VisionTransformer,
        loss=pixel_loss,
        aside={
            **PATCHES,
            **HEAD,
            "cls_token": "learned token",
            "reg_token": "learned tokens",
            "pos_embed": "position table",
        },
    ),
    "timm_convnext": Specimen(
        build=image_models.ConvNeXt,
        loss=pixel_loss,
        aside={
            "stem.0.weight": "patch embedding",
            "*.conv_dw.weight": "depthwise convolution",
            "head.fc.weight": "output head",
        },
    ),
    "timm_efficientnet": Specimen(
        build=image_models.EfficientNet,
        loss=pixel_loss,
        aside={"*.conv_dw.weight": "depthwise convolution", "classifier.weight": "output head"},
        blind={"blocks.*.bn3.bias": BEFORE_NORM},
    ),
    "timm_mixer": Specimen(
        build=image_models.MlpMixer,
        loss=pixel_loss,
        aside={"stem.proj.weight": "patch embedding", **HEAD},
        blind={"blocks.*.mlp_tokens.fc2.bias": BEFORE_NORM},
    ),
    "torch_transformer": Specimen(
        build=recurrent.Translator,
        loss=text_loss,
        aside={"*_tok_emb.weight": "token embedding", "generator.weight": "output head"},
    ),
    "lstm": Specimen(
        build=recurrent.LSTMLanguageModel,
        loss=text_loss,
        aside={"encoder.weight": "token embedding", "decoder.weight": "output head"},
    ),
    "gru": Specimen(
        build=recurrent.GRUClassifier,
        loss=text_loss,
        aside={"embedding.weight": "token embedding", "fc.weight": "output head"},
    ),
    "recommender": Specimen(
        build=recurrent.Recommender,
        loss=text_loss,
        aside={
            "*_factors.weight": "embedding",
            "cross.weight": "a bilinear form of three dimensions",
            "mlp.4.weight": "output head",
        },
    ),
    "lora": Specimen(
        build=lambda: adapters.adapted_gpt(head="frozen", table=False), loss=text_loss, aside={}
    ),
    "lora_with_trained_head": Specimen(
        build=lambda: adapters.adapted_gpt(head="saved", table=True),
        loss=text_loss,
        aside={
            f"{ADAPTED}.wte.lora_embedding_A.default": "a column for each token",
            f"{ADAPTED}.wte.lora_embedding_B.default": "the table's second factor",
            f"{ADAPTED}.lm_head.modules_to_save.default.weight": "output head",
        },
    ),
    "lora_with_adapted_head": Specimen(
        build=lambda: adapters.adapted_gpt(head="adapted", table=False),
        loss=text_loss,
        aside={f"{ADAPTED}.lm_head.lora_B.default.weight": "output head: a row for each token"},
    ),
    "litgpt_lora": Specimen(build=adapters.litgpt_adapted, loss=text_loss, aside={}),
    "lightning_llama": Specimen(
        build=wrapped_llama,
        loss=lambda module: language_loss(module.model),
        aside={f"model.{name}": what for name, what in TOKENS_AND_HEAD.items()},
    ),
}
