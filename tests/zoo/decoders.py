"""Language models that read from left to right, as `transformers` builds them."""

from tests.zoo.specimen import VOCABULARY, WIDTH, Specimen, from_transformers, language_loss

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What most configurations call these sizes.
USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    **SPECIAL,
}
GROUPED = {**USUAL, "num_key_value_heads": 2}

TOKENS = {"model.embed_tokens.weight": "token embedding"}
TOKENS_AND_HEAD = {**TOKENS, "lm_head.weight": "output head"}
EXPERT_BIASES = {"*.experts.*_bias": "biases, one row for each expert"}


def decoder(name: str, aside: dict[str, str], **sizes: object) -> Specimen:
    """A language model whose classes are called after it."""
    build = from_transformers(f"{name}ForCausalLM", f"{name}Config", **sizes)
    return Specimen(build=build, loss=language_loss, aside=aside)


DECODERS = {
    "gpt2": Specimen(
        build=from_transformers(
            "GPT2LMHeadModel",
            "GPT2Config",
            **{"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4},
            **{"n_positions": 32, **SPECIAL},
        ),
        loss=language_loss,
        aside={
            "transformer.wte.weight": "token embedding, tied to the head",
            "transformer.wpe.weight": "position table",
        },
    ),
    "llama": decoder("Llama", TOKENS_AND_HEAD, **GROUPED),
    "qwen2": decoder("Qwen2", TOKENS, **GROUPED, tie_word_embeddings=True),
    "qwen3": decoder("Qwen3", TOKENS_AND_HEAD, **GROUPED, head_dim=8),
    "mistral": decoder("Mistral", TOKENS_AND_HEAD, **GROUPED),
    "gemma2": decoder("Gemma2", TOKENS, **GROUPED, head_dim=8),
    "gpt_neox": decoder(
        "GPTNeoX",
        {"gpt_neox.embed_in.weight": "token embedding", "lm_head.weight": "output head"},
        **USUAL,
    ),
    "bloom": decoder(
        "Bloom",
        {"transformer.word_embeddings.weight": "token embedding, tied to the head"},
        **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4, **SPECIAL},
    ),
    "falcon": decoder(
        "Falcon",
        {"transformer.word_embeddings.weight": "token embedding, tied to the head"},
        **USUAL,
    ),
    "phi3": decoder("Phi3", TOKENS_AND_HEAD, **GROUPED),
    "opt": decoder(
        "OPT",
        {
            "model.decoder.embed_tokens.weight": "token embedding, tied to the head",
            "model.decoder.embed_positions.weight": "position table",
        },
        **{**USUAL, "ffn_dim": 24, "word_embed_proj_dim": 8},
    ),
    "mixtral": decoder("Mixtral", TOKENS_AND_HEAD, **GROUPED, num_local_experts=4),
    "olmoe": decoder("Olmoe", TOKENS_AND_HEAD, **GROUPED, num_experts=4, num_experts_per_tok=2),
    "qwen2_moe": decoder(
        "Qwen2Moe",
        {**TOKENS_AND_HEAD, "*.shared_expert_gate.weight": "one gate: a vector of shape (1, n)"},
        **GROUPED,
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        shared_expert_intermediate_size=12,
    ),
    "deepseek_v3": decoder(
        "DeepseekV3",
        TOKENS_AND_HEAD,
        **{**USUAL, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8},
        **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"first_k_dense_replace": 1, "moe_intermediate_size": 8},
    ),
    "gpt_oss": decoder(
        "GptOss",
        {**TOKENS_AND_HEAD, **EXPERT_BIASES},
        **GROUPED,
        **{"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "mamba": decoder(
        "Mamba",
        {
            "backbone.embeddings.weight": "token embedding, tied to the head",
            "*.mixer.A_log": "decay rates, entry by entry",
            "*.mixer.conv1d.weight": "depthwise convolution",
        },
        **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 4, "time_step_rank": 2},
        **{"num_hidden_layers": 2, **SPECIAL},
    ),
    "mamba2": decoder(
        "Mamba2",
        {
            "backbone.embeddings.weight": "token embedding",
            "lm_head.weight": "output head",
            "*.mixer.conv1d.weight": "depthwise convolution",
        },
        **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 4, "n_groups": 1},
        **{"num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "chunk_size": 8, **SPECIAL},
    ),
    "xlnet": Specimen(
        build=from_transformers(
            "XLNetLMHeadModel",
            "XLNetConfig",
            **{"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 2, "n_head": 4},
            **{"d_inner": 24, "dropout": 0.0, **SPECIAL},
        ),
        loss=language_loss,
        aside={
            "transformer.word_embedding.weight": "token embedding, tied to the head",
            "transformer.mask_emb": "learned token",
            "*.rel_attn.r_?_bias": "biases, one row for each attention head",
            "*.rel_attn.seg_embed": "segment embedding",
        },
        preset="xlnet",
        idle={
            "transformer.mask_emb": "stands for tokens to predict, which no mapping names here",
            "*.rel_attn.r_s_bias": "for segments, which are not given",
            "*.rel_attn.seg_embed": "for segments, which are not given",
        },
    ),
}
