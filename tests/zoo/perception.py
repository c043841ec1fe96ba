"""Models that see and hear, as `transformers` builds them."""

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.decoders import USUAL
from tests.zoo.encoders import PAIR
from tests.zoo.specimen import (
    VOCABULARY,
    WIDTH,
    Specimen,
    from_transformers,
    image_loss,
    images,
    tokens,
)

VISION = {
    **{"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "image_size": 16, "patch_size": 4, "num_labels": 5},
}
BEFORE_NORM = "a norm takes a shift away again"
SPEECH = {
    **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "layerdrop": 0.0},
    **{
        "conv_dim": (8, 8),
        "conv_kernel": (5, 3),
        "conv_stride": (4, 2),
        "num_feat_extract_layers": 2,
    },
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0},
    "apply_spec_augment": False,
}


def dense_image_loss(model: nn.Module) -> Tensor:
    """A class for each pixel."""
    labels = torch.randint(0, 5, (2, 64, 64))
    return model(pixel_values=images(64), labels=labels).loss


def pair_loss(model: nn.Module) -> Tensor:
    """Texts and images that belong together."""
    return model(input_ids=tokens(8), pixel_values=images(), return_loss=True).loss


def transcription_loss(model: nn.Module) -> Tensor:
    """Text from spectrograms, a token at a time."""
    return model(input_features=torch.randn(2, 8, 32), labels=tokens(6)).loss


def alignment_loss(model: nn.Module) -> Tensor:
    """Text from waves, by connectionist temporal classification."""
    return model(input_values=torch.randn(2, 400), labels=tokens(4)).loss


def distillation_logits(model: nn.Module) -> Tensor:
    """Both heads of DeiT, which answer with their mean."""
    return model(pixel_values=images()).logits.square().mean()


def detection_transformer() -> nn.Module:
    """DETR with a residual network of its own before the transformer."""
    transformers = pytest.importorskip("transformers", reason="the zoo needs transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    sizes = {key: value for key, value in PAIR.items() if key.endswith(("layers", "heads", "dim"))}
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=WIDTH, num_queries=5, num_labels=4, **sizes
    )
    return transformers.DetrForObjectDetection(config)


def detection_loss(model: nn.Module) -> Tensor:
    """Classes and boxes; without the matching to labels, which needs scipy."""
    output = model(pixel_values=images(32))
    return output.logits.square().mean() + output.pred_boxes.mean()


def caption_loss(model: nn.Module) -> Tensor:
    """Texts about images."""
    batch = tokens(8)
    return model(input_ids=batch, pixel_values=images(), labels=batch).loss


PERCEPTION = {
    "vit": Specimen(
        build=from_transformers("ViTForImageClassification", "ViTConfig", **VISION),
        loss=image_loss,
        aside={
            "vit.embeddings.cls_token": "learned token",
            "vit.embeddings.position_embeddings": "position table",
            "vit.embeddings.patch_embeddings.projection.weight": "patch embedding",
            "classifier.weight": "output head",
        },
    ),
    "deit": Specimen(
        build=from_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VISION),
        loss=distillation_logits,
        aside={
            "deit.embeddings.*_token": "learned token",
            "deit.embeddings.position_embeddings": "position table",
            "deit.embeddings.patch_embeddings.projection.weight": "patch embedding",
            "*_classifier.weight": "output head",
        },
    ),
    "swin": Specimen(
        build=from_transformers(
            "SwinForImageClassification",
            "SwinConfig",
            **{"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2]},
            **{"num_heads": [2, 4], "window_size": 2, "num_labels": 5},
        ),
        loss=image_loss,
        aside={
            "swin.embeddings.patch_embeddings.projection.weight": "patch embedding",
            "*.relative_position_bias_table": "table of relative positions",
            "classifier.weight": "output head",
        },
    ),
    "convnext": Specimen(
        build=from_transformers(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            **{"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 2], "num_labels": 5},
        ),
        loss=image_loss,
        aside={
            "convnext.embeddings.patch_embeddings.weight": "patch embedding",
            "*.dwconv.weight": "depthwise convolution",
            "classifier.weight": "output head",
        },
    ),
    "resnet": Specimen(
        build=from_transformers(
            "ResNetForImageClassification",
            "ResNetConfig",
            **{"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 5},
        ),
        loss=image_loss,
        aside={"classifier.1.weight": "output head"},
    ),
    "segformer": Specimen(
        build=from_transformers(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            **{"num_encoder_blocks": 2, "depths": [1, 2], "sr_ratios": [2, 1]},
            **{"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
            **{"patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 12},
            num_labels=5,
        ),
        loss=dense_image_loss,
        aside={
            "*.dwconv.dwconv.weight": "depthwise convolution",
            "decode_head.classifier.weight": "output head",
        },
        blind={
            "decode_head.linear_projections.*.bias": BEFORE_NORM,
            "segformer.stages.1.layer_norm.bias": BEFORE_NORM,
        },
    ),
    "clip": Specimen(
        build=from_transformers(
            "CLIPModel",
            "CLIPConfig",
            text_config=USUAL,
            vision_config=VISION,
            projection_dim=8,
        ),
        loss=pair_loss,
        aside={
            "text_model.embeddings.token_embedding.weight": "token embedding",
            "*.embeddings.position_embedding.weight": "position table",
            "vision_model.embeddings.patch_embedding.weight": "patch embedding",
            "*_projection.weight": "output head: into the space that both share",
        },
    ),
    "whisper": Specimen(
        build=from_transformers(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **{**PAIR, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        loss=transcription_loss,
        aside={
            "model.decoder.embed_tokens.weight": "token embedding, tied to the head",
            "model.decoder.embed_positions.weight": "position table",
        },
    ),
    "wav2vec2": Specimen(
        build=from_transformers("Wav2Vec2ForCTC", "Wav2Vec2Config", **SPEECH),
        loss=alignment_loss,
        aside={
            "*.pos_conv_embed.conv.parametrizations.weight.original0": "weight norm's gains",
            "lm_head.weight": "output head",
        },
        idle={"wav2vec2.masked_spec_embed": "stands for masked frames; masking is off"},
    ),
    "hubert": Specimen(
        build=from_transformers("HubertForCTC", "HubertConfig", **SPEECH),
        loss=alignment_loss,
        aside={
            "*.pos_conv_embed.conv.parametrizations.weight.original0": "weight norm's gains",
            "lm_head.weight": "output head",
        },
        idle={"hubert.masked_spec_embed": "stands for masked frames; masking is off"},
    ),
    "pvt": Specimen(
        build=from_transformers(
            "PvtForImageClassification",
            "PvtConfig",
            **{"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 2]},
            **{"sequence_reduction_ratios": [2, 1], "hidden_sizes": [8, 16]},
            **{"patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2]},
            **{"mlp_ratios": [2, 2], "num_labels": 5},
        ),
        loss=lambda model: model(pixel_values=images(32), labels=torch.tensor([0, 1])).loss,
        aside={
            "pvt.encoder.patch_embeddings.0.projection.weight": "patch embedding",
            "pvt.encoder.patch_embeddings.*.position_embeddings": "position table",
            "pvt.encoder.patch_embeddings.1.cls_token": "learned token",
            "classifier.weight": "output head",
        },
    ),
    "detr": Specimen(
        build=detection_transformer,
        loss=detection_loss,
        aside={
            "model.query_position_embeddings.weight": "table of what the decoder asks for",
            "class_labels_classifier.weight": "output head",
            "bbox_predictor.layers.2.weight": "output head: last layer",
        },
        idle={"model.decoder.layers.0.self_attn.v_proj.weight": "its input starts from zero"},
        blind={"model.decoder.layers.0.self_attn.[qk]_proj.*": "all values are equal there"},
    ),
    "siglip": Specimen(
        build=from_transformers(
            "SiglipModel",
            "SiglipConfig",
            text_config={**USUAL, "projection_size": WIDTH},
            vision_config=VISION,
        ),
        loss=pair_loss,
        aside={
            "text_model.embeddings.token_embedding.weight": "token embedding",
            "*.embeddings.position_embedding.weight": "position table",
            "vision_model.embeddings.patch_embedding.weight": "patch embedding",
            "vision_model.head.probe": "learned query",
            "text_model.head.weight": "output head: into the space that both share",
            "vision_model.head.mlp.fc2.weight": "output head: into the space that both share",
        },
    ),
    "git": Specimen(
        build=from_transformers(
            "GitForCausalLM", "GitConfig", **USUAL, vision_config={**VISION, "projection_dim": 8}
        ),
        loss=caption_loss,
        aside={
            "git.embeddings.word_embeddings.weight": "token embedding",
            "output.weight": "output head",
            "git.embeddings.position_embeddings.weight": "position table",
            "git.image_encoder.vision_model.embeddings.patch_embedding.weight": "patch embedding",
            "git.image_encoder.vision_model.embeddings.position_embedding.weight": "position table",
        },
    ),
}
