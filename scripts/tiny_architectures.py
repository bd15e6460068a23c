"""Tiny random models of every class of AutoModelForCausalLM and AutoModelForImageTextToText.

A configuration is made of its class's own fields: those that give sizes become small, the others
keep their defaults. What that cannot guess stands in `_EXCEPTIONS`, one entry a model type.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "causal": tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "image-text": tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
}
"""The model types of AutoModelForCausalLM, and those of AutoModelForImageTextToText."""

VOCABULARY = 512
Values = dict[str, Any]


def _same(value: int, names: str) -> Values:
    return dict.fromkeys(names.split(), value)


# Sizes by the names that configurations give them.
_SIZES: Values = {
    **_same(
        64,
        "hidden_size d_model n_embd dim_model lru_width embedding_size word_embed_proj_dim emb_dim "
        "input_embedding_size output_embedding_size attention_hidden_size backbone_hidden_size",
    ),
    **_same(4, "num_hidden_layers num_layers n_layer n_layers"),
    **_same(3, "decoder_layers num_decoder_layers"),
    **_same(2, "encoder_layers num_encoder_layers num_kv_shared_layers layer_group_size"),
    **_same(
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "linear_num_value_heads linear_num_heads swa_num_attention_heads d_rel gated_norm_rank",
    ),
    **_same(2, "num_key_value_heads linear_num_key_heads swa_num_key_value_heads n_mamba_heads"),
    **_same(
        16,
        "head_dim d_head dim_head linear_key_head_dim linear_value_head_dim linear_head_dim "
        "swa_head_dim kv_channels qk_nope_head_dim v_head_dim kv_lora_rank index_head_dim "
        "mamba_d_head mamba_head_dim hidden_size_per_layer_input router_hidden_size image_size "
        "attention_chunk_size",
    ),
    **_same(32, "q_lora_rank o_lora_rank rel_extent"),
    **_same(2, "o_groups index_n_heads"),
    **_same(
        128,
        "intermediate_size ffn_hidden_size ffn_dim decoder_ffn_dim encoder_ffn_dim dff dim_ff "
        "dense_intermediate_size intermediate_size_mlp prefix_dense_intermediate_size d_inner "
        "mamba_d_ssm",
    ),
    **_same(
        32,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size",
    ),
    **_same(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_same(
        2,
        "num_experts_per_tok moe_k moe_topk top_k_experts zero_expert_num "
        "centroid_intermediate_top_k",
    ),
    **_same(
        1,
        "n_group topk_group num_dense_layers first_k_dense_replace n_groups mamba_n_groups "
        "mamba_ngroups num_mtp_layers",
    ),
    **_same(
        8,
        "qk_rope_head_dim rotary_dim index_topk sliding_window sliding_window_size "
        "attention_window_size window_size chunk_size mamba_chunk_size state_size ssm_state_size "
        "mamba_d_state mamba_num_heads mamba_n_heads laurel_rank adapter_rank block_multiple_of "
        "num_centroids patch_size",
    ),
    **_same(4, "mamba_dt_rank time_step_rank"),
    **_same(
        256,
        "max_position_embeddings n_positions n_ctx max_seq_len original_max_position_embeddings",
    ),
    **_same(VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    **_same(0, "mem_len pad_token_id"),
    "hidden_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What means "as another size says", or "without", where its default is None.
_OPTIONAL = frozenset(
    "sliding_window num_key_value_heads head_dim q_lora_rank n_inner lru_width ffn_hidden_size "
    "n_group topk_group embedding_size prefix_dense_intermediate_size top_k_experts num_mtp_layers "
    "attention_hidden_size d_head intermediate_size moe_intermediate_size linear_num_key_heads "
    "linear_num_value_heads linear_key_head_dim linear_value_head_dim num_experts v_head_dim "
    "shared_expert_intermediate_size n_shared_experts num_local_experts "
    "original_max_position_embeddings".split()
)
_TOWER: Values = _SIZES | {
    **_same(32, "hidden_size embed_dim image_size projector_input_dim projector_output_dim"),
    **_same(2, "num_hidden_layers depth num_layers num_attention_heads num_heads attention_heads"),
    **_same(64, "intermediate_size out_hidden_size vision_output_dim"),
    "patch_size": 8,
    "num_position_embeddings": 16,
    "num_global_layers": 1,
}


def small_values(
    kind: type[PreTrainedConfig],
    given: Mapping[str, Any] | None = None,
    parts: Mapping[str, Values] | None = None,
    tower: bool = False,
) -> Values:
    """Return the arguments of a small configuration of a class.

    `parts`: the same for configurations inside it, by their field. `tower`: whether it is of an
    image or audio encoder.
    """
    given, parts = dict(given or {}), parts or {}
    inside = getattr(kind, "sub_configs", None) or {}
    values: Values = {}
    for entry in dataclasses.fields(kind):
        if entry.name in inside or entry.name in given:
            continue
        default = entry.default
        if default is dataclasses.MISSING:
            make = entry.default_factory
            default = None if make is dataclasses.MISSING else make()
        unset = default is None and entry.name in _OPTIONAL
        table = _TOWER if tower else _SIZES
        if entry.name in table and not unset and not isinstance(default, tuple | list):
            values[entry.name] = table[entry.name]
    for name, part in inside.items():
        if name in given:
            continue
        found = _part_of(kind, name) if part.__name__ == "AutoConfig" else part
        if found is not None:
            encoder = any(word in name for word in ("vision", "audio", "encoder"))
            values[name] = small_values(found, parts.get(name), tower=encoder)
            if found is not part:
                values[name]["model_type"] = found.model_type
    return values | given


def _part_of(kind: type[PreTrainedConfig], name: str) -> type[PreTrainedConfig] | None:
    """Return the class of what a configuration takes for a part that may be of any class."""
    try:
        part = getattr(kind(), name, None)
    except Exception:  # some cannot be made without arguments
        return None
    return type(part) if isinstance(part, PreTrainedConfig) else None


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What the sizes' names do not tell of a model type."""

    given: Values = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Values] = dataclasses.field(default_factory=dict)

    def __call__(self, kind: type[PreTrainedConfig]) -> PreTrainedConfig:
        return kind(**small_values(kind, self.given, self.parts))


def _text(**values: Any) -> _Shape:
    return _Shape(parts={"text_config": values})


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LINEAR_FULL = ["linear_attention", "full_attention"]
_SLIDING_FULL = ["sliding_attention", "full_attention"]
_CONV = ["conv", "conv", "full_attention", "conv"]
_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    **_SPECIAL_TOKENS,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_SMALL_TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_LLAMA4 = {
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
}
_GEMMA3N = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": _SLIDING_FULL * 3,
}
_GEMMA4 = _GEMMA3N | {"global_head_dim": 32}
_GEMMA4_ASSISTANT = {
    "model_type": "gemma4_text",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "layer_types": ["full_attention", "full_attention"],
    **_SPECIAL_TOKENS,
}
_QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "heads_per_ngram": 2,
    "ple_layer_ids": [1],
    "ple_embed_dim": 32,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_ZAMBA = {
    "num_hidden_layers": 8,
    "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention"] * 2,
}
_DOTS3_TEXT = {
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "head_dim": 24,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}

_HEADS = _GROUPED | {"head_dim": 16}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "hidden_size": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 256,
    **_SPECIAL_TOKENS,
}
_KOSMOS_TEXT = {
    "vocab_size": VOCABULARY,
    "embed_dim": 64,
    "layers": 3,
    "ffn_dim": 128,
    "attention_heads": 4,
    "max_position_embeddings": 256,
    **_SPECIAL_TOKENS,
}
_CODEBOOK = {
    "embed_dim": 8,
    "num_embeddings": 16,
    "latent_channels": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}


def _rope(*sections: int, **values: Any) -> Values:
    """Return positions of several axes; each gets so many pairs of a head."""
    return {"rope_parameters": {**_ROPE, "mrope_section": list(sections), **values}}


def _dbrx(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    experts = {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}
    config = kind(
        d_model=64,
        n_heads=4,
        n_layers=3,
        max_seq_len=256,
        vocab_size=VOCABULARY,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0},
        ffn_config=experts,
        rope_parameters=_ROPE,
        **_SPECIAL_TOKENS,
    )
    config.attn_config.rope_theta = 10000.0
    return config


def _dots3(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    parts = kind.sub_configs
    image = {"adapter_in_dim": 32, "adapter_out_dim": 64, "mlp_layer_types": ["dense", "dense"]}
    sound = {"adapter_input_size": 32, "adapter_out_dim": 64}
    return kind(
        text_config=_EXCEPTIONS["dots3_note_text"](CONFIG_MAPPING["dots3_note_text"]).to_dict(),
        vision_config=small_values(parts["vision_config"], image, tower=True)
        | {"per_layer_config": {}},
        audio_config=small_values(parts["audio_config"], sound, tower=True),
    )


def _music_decoder(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    decoder: type[PreTrainedConfig] = kind.sub_configs["decoder"]
    return decoder(**small_values(decoder, {"ffn_dim": 128, "num_codebooks": 2}))


def _blt(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    local = _GROUPED | {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    inside = local | {"hidden_size_global": 64, "cross_attn_k": 2}
    return kind(
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        patch_size=4,
        patching_mode="entropy",
        encoder_hash_byte_group_vocab=64,
        local_attention_window_len=32,
        cross_attn_k=2,
        patcher_config=local | {"num_hidden_layers": 2},
        encoder_config=inside | {"num_hidden_layers": 1},
        decoder_config=inside | {"num_hidden_layers": 2},
        global_config=_PLAIN | {"num_key_value_heads": 4},
        **_SPECIAL_TOKENS,
    )


def _each(names: str, **given: Any) -> dict[str, _Shape]:
    return {name: _Shape(given) for name in names.split()}


_EXCEPTIONS: dict[str, Callable[[type[PreTrainedConfig]], PreTrainedConfig]] = {
    **_each(
        "bert bert-generation camembert data2vec-text electra ernie megatron-bert rembert roberta "
        "roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl",
        is_decoder=True,
    ),
    **_each(
        "bart blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr",
        is_decoder=True,
        is_encoder_decoder=False,
    ),
    **_each("big_bird", is_decoder=True, attention_type="original_full"),
    **_each(
        "bigbird_pegasus",
        is_decoder=True,
        is_encoder_decoder=False,
        attention_type="original_full",
    ),
    **_each(
        "whisper",
        is_decoder=True,
        is_encoder_decoder=False,
        max_target_positions=256,
        begin_suppress_tokens=None,
        pad_token_id=0,
        decoder_start_token_id=1,
    ),
    **_each(
        "roc_bert",
        is_decoder=True,
        pronunciation_vocab_size=64,
        shape_vocab_size=64,
        pronunciation_embed_dim=16,
        shape_embed_dim=16,
    ),
    **_each("xmod", is_decoder=True, default_language="en_XX"),
    **_each(
        "axk1 axk2 deepseek_v3 deepseek_v32 longcat_flash glm4_moe_lite glm_moe_dsa minicpm3",
        num_key_value_heads=4,
        head_dim=8,
    ),
    **_each("deepseek_v2", num_key_value_heads=4),
    **_each("youtu", num_key_value_heads=4, tie_word_embeddings=False),
    **_each("bailing_hybrid", num_key_value_heads=4, head_dim=16),
    **_each("deepseek_v4", num_key_value_heads=1, head_dim=32),
    **_each(
        "kimi_linear",
        num_key_value_heads=4,
        layer_types=_LINEAR_FULL * 2,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
    ),
    **_each("dots3_note_text", **_DOTS3_TEXT),
    "dots3_note": _dots3,
    **_each("dots1", n_shared_experts=1, num_key_value_heads=4, max_window_layers=2),
    **_each(
        "cohere_compass_text",
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        num_key_value_heads=2,
        rope_parameters={"sliding_attention": _ROPE, "full_attention": _ROPE},
    ),
    "dbrx": _dbrx,
    "emu3": _Shape(
        {
            "vocabulary_map": {
                "<image>": 505,
                "<|extra_200|>": 506,
                "<|visual token 000000|>": 507,
            }
        },
        {
            "vq_config": {
                "codebook_size": 16,
                "embed_dim": 8,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "hidden_size": 32,
                "num_attention_heads": 2,
            },
            "text_config": {"attention_dropout": 0.0},
        },
    ),
    **_each("fuyu", text_config={"model_type": "persimmon", **_PLAIN}, image_size=32, patch_size=8),
    "blt": _blt,
    **_each(
        "gemma3",
        vision_config={
            "model_type": "siglip_vision_model",
            "intermediate_size": 64,
            **_SMALL_TOWER,
        },
        mm_tokens_per_image=4,
        image_token_index=505,
    ),
    "gemma3n": _Shape(
        {
            "vision_config": {
                "hidden_size": 32,
                "vocab_size": 16,
                "vocab_offset": 512,
                "num_classes": 2,
                "architecture": "mobilenetv5_300m_enc",
            },
            "audio_config": {
                "hidden_size": 32,
                "vocab_size": 16,
                "vocab_offset": 528,
                "input_feat_size": 16,
                "conf_num_hidden_layers": 1,
                "conf_num_attention_heads": 2,
                "sscp_conv_channel_size": (8, 4),
            },
        },
        {"text_config": {**_GEMMA3N, "activation_sparsity_pattern": [0.0] * 6}},
    ),
    **_each("gemma3n_text", **_GEMMA3N, activation_sparsity_pattern=[0.5, 0.5] + [0.0] * 4),
    **_each("gemma4_text gemma4_unified_text", **_GEMMA4),
    **dict.fromkeys(("gemma4", "gemma4_unified"), _text(**_GEMMA4)),
    **_each("gemma4_assistant", text_config=_GEMMA4_ASSISTANT),
    **_each(
        "gemma4_unified_assistant",
        text_config={**_GEMMA4_ASSISTANT, "model_type": "gemma4_unified_text"},
    ),
    "git": _Shape(parts={"vision_config": {"intermediate_size": 64, **_SMALL_TOWER}}),
    "got_ocr2": _Shape(
        {"text_config": {"model_type": "qwen2", **_GROUPED}},
        {
            "vision_config": {
                **_SMALL_TOWER,
                "output_channels": 16,
                "mlp_dim": 64,
                "global_attn_indexes": [1],
                "window_size": 2,
            }
        },
    ),
    **_each(
        "moss_transcribe_diarize", text_config={"model_type": "qwen3", "head_dim": 16, **_GROUPED}
    ),
    **_each("llama4_text", **_LLAMA4),
    "llama4": _text(**_LLAMA4),
    "mllama": _Shape(
        parts={
            "text_config": {
                "cross_attention_layers": [1],
                "num_hidden_layers": 4,
                "pad_token_id": 0,
                "rope_parameters": _ROPE,
            },
            "vision_config": {
                "intermediate_layers_indices": [0, 1],
                "max_num_tiles": 2,
                "supported_aspect_ratios": [[1, 1], [1, 2]],
                "vision_output_dim": 96,
            },
        }
    ),
    **_each("mpt", expansion_ratio=2),
    "musicgen": _music_decoder,
    "musicgen_melody": _music_decoder,
    "moshi": _Shape(
        {
            "audio_encoder_config": {
                "model_type": "mimi",
                "num_quantizers": 8,
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "intermediate_size": 64,
            },
            "num_key_value_heads": 4,
            "head_dim": 16,
            "num_codebooks": 2,
            "ffn_dim": 128,
        },
        {"depth_decoder_config": {"ffn_dim": 64}},
    ),
    **_each("nemotron_h", layers_block_type=["linear_attention", "mlp", "full_attention", "moe"]),
    **_each("nemotron", num_key_value_heads=2),
    **_each("zamba", **_ZAMBA, attn_layer_period=2, attn_layer_offset=1),
    **_each("zamba2", **_ZAMBA, mamba_headdim=64, n_mamba_heads=2),
    **_each(
        "reformer",
        is_decoder=True,
        attn_layers=["local", "lsh", "local", "lsh"],
        axial_pos_shape=[16, 16],
        axial_pos_embds_dim=[16, 48],
        num_attention_heads=2,
        attention_head_size=16,
        feed_forward_size=64,
        lsh_attn_chunk_length=16,
        local_attn_chunk_length=16,
        num_buckets=4,
        hash_seed=0,
        hidden_dropout_prob=0.0,
    ),
    **_each("hrm_text", num_hidden_layers=2, prefix_lm=False),
    **_each("xlnet", n_layer=3),
    **_each("xlm", n_layers=3, causal=True),
    **_each(
        "xlstm",
        num_blocks=3,
        num_hidden_layers=3,
        embedding_dim=64,
        num_heads=2,
        chunk_size=16,
        autocast_kernel_dtype="float32",
    ),
    **_each("rwkv", attention_hidden_size=64, num_hidden_layers=8),
    **_each(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
    ),
    **_each("bamba", attn_layer_indices=[1, 3], mamba_expand=2),
    **_each(
        "granitemoehybrid",
        layer_types=_LINEAR_FULL * 2,
        shared_intermediate_size=64,
        mamba_expand=2,
        position_embedding_type="rope",
    ),
    **_each("lfm2", layer_types=_CONV),
    **_each("lfm2_moe", layer_types=_CONV),
    **_each("recurrent_gemma", num_hidden_layers=3, num_key_value_heads=1),
    **_each("mamba2", num_heads=8, expand=2),
    **_each("ctrl", n_layer=3),
    "phi4_multimodal": _Shape(
        {"num_key_value_heads": 2},
        {
            "vision_config": {
                **_SMALL_TOWER,
                "intermediate_size": 64,
                "crop_size": 32,
                "image_token_id": 505,
            },
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "nemo_conv_channels": 8,
                "ext_pw_out_channel": 32,
                "depthwise_separable_out_channel": 32,
                "nemo_final_size": 8,
                "input_size": 16,
                "audio_token_id": 506,
            },
        },
    ),
    **_each("gpt_oss", rope_parameters=_ROPE, layer_types=_SLIDING_FULL * 2),
    **_each("gpt_neo", attention_types=[[["global", "local"], 2]]),
    **_each("qwen2_moe", layer_types=_SLIDING_FULL * 2, use_sliding_window=True, sliding_window=8),
    **_each("hunyuan_v1_dense hunyuan_v1_moe", head_dim=16),
    **_each("ministral", head_dim=16, layer_types=_SLIDING_FULL * 2),
    **_each("qwen4_exp_text", **_QWEN4),
    "qwen4_exp": _Shape(
        parts={"text_config": _QWEN4, "vision_config": {"deepstack_visual_indexes": [0]}}
    ),
    **_each(
        "zaya",
        num_experts_per_tok=1,
        layer_types=["hybrid", "hybrid_sliding"] * 2,
        sliding_window=8,
    ),
    **_each("qwen3_5_text qwen3_5_moe_text qwen3_next olmo_hybrid", layer_types=_LINEAR_FULL * 2),
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_moe"),
        _Shape(
            parts={
                "text_config": {"layer_types": _LINEAR_FULL * 2},
                "vision_config": {"deepstack_visual_indexes": [0]},
            }
        ),
    ),
    # Images and text.
    "chameleon": lambda kind: kind(
        **_GROUPED,
        vq_config={**_CODEBOOK, "resolution": 16},
        vocabulary_map={"<image>": 500, "IMGIMGBSA": 501, "IMGIMGBSZ": 502},
    ),
    "cohere_compass": _text(
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        rope_parameters={"sliding_attention": _ROPE, "full_attention": _ROPE},
    ),
    "cosmos3_edge": _text(**_rope(4, 2, 2)),
    "deepseek_ocr2": _Shape(
        {
            "vision_config": {
                "sam_config": {
                    **_SMALL_TOWER,
                    "output_channels": 16,
                    "mlp_dim": 64,
                    "window_size": 2,
                    "global_attn_indexes": [1],
                    "downsample_channels": [16, 64],
                },
                "encoder_config": _GROUPED,
            }
        },
        {
            "text_config": {
                "head_dim": 16,
                "num_experts_per_tok": 2,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            }
        },
    ),
    "diffusion_gemma": _text(
        num_experts=4, top_k_experts=2, moe_intermediate_size=32, layer_types=_SLIDING_FULL * 2
    ),
    "ernie4_5_vl_moe": _text(**_rope(3, 3, 2), moe_intermediate_size=[32, 16]),
    "florence2": lambda kind: kind(
        text_config={"model_type": "bart", **_ENCODER_DECODER},
        vision_config={
            "depths": [1, 1],
            "patch_size": [4, 2],
            "patch_stride": [4, 2],
            "patch_padding": [0, 0],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 2,
            "projection_dim": 64,
        },
    ),
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "glmga"), _text(**_rope(2, 3, 3))),
    "glm4v_moe": _text(**_rope(1, 1, 2)),
    "glm5_next": _text(
        num_key_value_heads=4, index_kpool=4, qk_rope_head_dim=0, head_dim=0, qk_nope_head_dim=16
    ),
    "granite4_vision": _Shape(
        {"deepstack_layer_map": [[0, 1]], "downsample_rate": "1/2"},
        {"vision_config": {"hidden_size": 64, "num_attention_heads": 4}},
    ),
    "hunyuan_vl": _text(num_key_value_heads=2, head_dim=16, **_rope(2, 2, 2, 2)),
    "inkling2": _Shape(parts={"vision_config": {"text_hidden_size": 64}}),
    "janus": lambda kind: kind(
        text_config={"model_type": "llama", **_HEADS},
        vision_config={**_SMALL_TOWER, "projection_dim": 64, "mlp_ratio": 2},
        vq_config={
            **_CODEBOOK,
            "num_patches": 4,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
            "num_hidden_layers": 2,
            "hidden_size": 64,
        },
    ),
    "kimi_k25": _text(**_LATENT),
    "kosmos-2": lambda kind: kind(
        text_config=_KOSMOS_TEXT,
        vision_config={**_SMALL_TOWER, "intermediate_size": 64},
        latent_query_num=4,
    ),
    "kosmos-2.5": lambda kind: kind(
        text_config=_KOSMOS_TEXT,
        vision_config={
            **_SMALL_TOWER,
            "intermediate_size": 64,
            "patch_embed_hidden_size": 48,
            "patch_size": 4,
            "max_num_patches": 16,
            "head_dim": 16,
        },
        latent_query_num=4,
    ),
    **_each("mistral4", **_LATENT),
    "mistral_large4": _text(**_LATENT),
    "molmo2": _Shape(
        {
            "adapter_config": {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 64,
                "text_hidden_size": 64,
                "vision_feature_layer": [-1, 0],
            }
        },
        {"vision_config": {"image_size": [32, 32], "head_dim": 16, "num_key_value_heads": 2}},
    ),
    "muse_glimmer": _Shape({"out_hidden_size": 64, "projector_hidden_size": 64}),
    "muse_spark": _Shape(
        {"out_hidden_size": 64, "projector_hidden_size": 64},
        {
            "text_config": {"moe_hidden_size": 32},
            "audio_config": {
                "patch_sizes": [4, 4],
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "out_hidden_size": 64,
            },
        },
    ),
    "nemotron_h_omni": _Shape(
        {"vision_hidden_size": 32, "projector_hidden_size": 64},
        {
            "vision_config": {"video_temporal_patch_size": 2},
            "text_config": {
                "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]
            },
        },
    ),
    **dict.fromkeys(
        ("paddleocr_vl", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker"), _text(**_rope(4, 2, 2))
    ),
    "step3p7": _text(sliding_window=8, layer_types=_SLIDING_FULL * 2),
    **_each(
        "gemma2 gemma3_text cohere2 exaone4 vaultgemma olmo3 cwm mimo_v2_flash",
        layer_types=_SLIDING_FULL * 2,
    ),
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return the configuration of a tiny model of a type."""
    kind = CONFIG_MAPPING[model_type]
    return _EXCEPTIONS.get(model_type, _Shape())(kind)


def causal_class(model_type: str) -> type[PreTrainedModel]:
    """Return the class that AutoModelForCausalLM takes for a type."""
    found: type[PreTrainedModel] = getattr(
        transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    )
    return found


def saved_class(model_type: str) -> type[PreTrainedModel]:
    """Return the class that checkpoints of a type are of: with images where there is such a one."""
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    name = name[0] if isinstance(name, tuple | list) else name
    return getattr(transformers, name) if name else causal_class(model_type)


def tiny_model(model_type: str) -> PreTrainedModel:
    """Return a tiny model of a type; every weight is random, so that no zero hides a fault."""
    config, kind = tiny_config(model_type), saved_class(model_type)
    if isinstance(config.get_text_config(), kind.config_class):
        config = config.get_text_config()
    torch.manual_seed(0)
    model: PreTrainedModel = kind._from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    model.tie_weights()
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words ``w3``, ``w4`` ..., whose ids are their numbers."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words = {f"w{number}": number for number in range(3, VOCABULARY - 12)}
    core = Tokenizer(models.WordLevel(special | words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<pad>",
    )
