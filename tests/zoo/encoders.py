"""Text models that read in both directions, and pairs of encoder and decoder."""

import torch
from torch import Tensor, nn

from tests.zoo.decoders import SPECIAL, USUAL
from tests.zoo.specimen import (
    VOCABULARY,
    WIDTH,
    Specimen,
    from_transformers,
    language_loss,
    tokens,
)

PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    **{"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 24},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 24},
    **SPECIAL,
    "decoder_start_token_id": 1,
}


def tables(path: str) -> dict[str, str]:
    """The three tables that models after BERT begin with."""
    return {
        f"{path}.word_embeddings.weight": "token embedding",
        f"{path}.position_embeddings.weight": "position table",
        f"{path}.token_type_embeddings.weight": "segment embedding",
    }


def pretraining_loss(model: nn.Module) -> Tensor:
    """Masked tokens and, from the pooled first one, whether the second sentence is the next."""
    batch = tokens()
    return model(input_ids=batch, labels=batch, next_sentence_label=torch.tensor([0, 1])).loss


def classification_loss(model: nn.Module) -> Tensor:
    """One of a few classes for each text."""
    return model(input_ids=tokens(), labels=torch.tensor([0, 1])).loss


def detection_loss(model: nn.Module) -> Tensor:
    """For each token, whether it was replaced."""
    batch = tokens()
    return model(input_ids=batch, labels=batch % 2).loss


ENCODERS = {
    "bert": Specimen(
        build=from_transformers("BertForPreTraining", "BertConfig", **USUAL),
        loss=pretraining_loss,
        aside={
            **tables("bert.embeddings"),
            "cls.seq_relationship.weight": "output head of the sentence pair",
        },
    ),
    "roberta": Specimen(
        build=from_transformers("RobertaForSequenceClassification", "RobertaConfig", **USUAL),
        loss=classification_loss,
        aside={**tables("roberta.embeddings"), "classifier.out_proj.weight": "output head"},
    ),
    "distilbert": Specimen(
        build=from_transformers(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            **{"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 24, "n_layers": 2},
            **{"n_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0},
        ),
        loss=classification_loss,
        aside={
            "distilbert.embeddings.word_embeddings.weight": "token embedding",
            "distilbert.embeddings.position_embeddings.weight": "position table",
            "classifier.weight": "output head, after the hidden `pre_classifier`",
        },
    ),
    "electra": Specimen(
        build=from_transformers(
            "ElectraForPreTraining", "ElectraConfig", **USUAL, embedding_size=8
        ),
        loss=detection_loss,
        aside={
            **tables("electra.embeddings"),
            "discriminator_predictions.dense_prediction.weight": "output head: a vector",
        },
    ),
    "albert": Specimen(
        build=from_transformers("AlbertForMaskedLM", "AlbertConfig", **USUAL, embedding_size=8),
        loss=language_loss,
        aside=tables("albert.embeddings"),
    ),
    "deberta_v2": Specimen(
        build=from_transformers(
            "DebertaV2ForMaskedLM",
            "DebertaV2Config",
            **USUAL,
            **{"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
            **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0},
            position_biased_input=False,
        ),
        loss=language_loss,
        aside={
            "deberta.embeddings.word_embeddings.weight": "token embedding, tied to the head",
            "deberta.encoder.rel_embeddings.weight": "table of relative positions",
        },
    ),
    "modernbert": Specimen(
        build=from_transformers(
            "ModernBertForMaskedLM",
            "ModernBertConfig",
            **USUAL,
            **{"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
            attn_implementation="eager",
        ),
        loss=language_loss,
        aside={"model.embeddings.tok_embeddings.weight": "token embedding, tied to the head"},
    ),
    "t5": Specimen(
        build=from_transformers(
            "T5ForConditionalGeneration",
            "T5Config",
            **{"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 4, "d_ff": 24},
            **{"num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8},
            **{"feed_forward_proj": "gated-gelu"},
            **{"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
        ),
        loss=language_loss,
        aside={
            "shared.weight": "token embedding of encoder and decoder, tied to the head",
            "*.relative_attention_bias.weight": "table of relative positions",
        },
    ),
    "bart": Specimen(
        build=from_transformers(
            "BartForConditionalGeneration",
            "BartConfig",
            **{**PAIR, "max_position_embeddings": 32, "forced_eos_token_id": 2},
        ),
        loss=language_loss,
        aside={
            "model.shared.weight": "token embedding of encoder and decoder, tied to the head",
            "model.*.embed_positions.weight": "position table",
        },
    ),
}
