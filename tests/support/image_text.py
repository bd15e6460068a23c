"""Tiny models that read images and text, with random weights."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from transformers import PreTrainedModel

from tests.support.architectures import VOCABULARY, tiny_tokenizer

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# Deeper and wider than the text: what is taken for the blocks must not depend on it.
_TOWER = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 16,
    "patch_size": 8,
}
_CLIP = _TOWER | {"model_type": "clip_vision_model"}
_QWEN_EYES = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_PERSIMMON = {key: value for key, value in _TEXT.items() if key != "head_dim"}
_MIXTURE = {
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
}
_LLAMA4_EYES = _TOWER | {
    "vision_output_dim": 48,
    "projector_input_dim": 96,
    "projector_output_dim": 48,
    "pixel_shuffle_ratio": 1.0,
}

_MODELS: dict[str, Callable[[], tuple[type[PreTrainedModel], hf.PreTrainedConfig]]] = {
    "llava": lambda: (
        hf.LlavaForConditionalGeneration,
        hf.LlavaConfig(
            text_config={"model_type": "llama", **_TEXT}, vision_config=_CLIP, image_token_index=9
        ),
    ),
    "mistral3": lambda: (
        hf.Mistral3ForConditionalGeneration,
        hf.Mistral3Config(
            text_config={"model_type": "mistral", **_TEXT},
            vision_config={"model_type": "pixtral", "head_dim": 24, **_TOWER},
            image_token_index=9,
        ),
    ),
    "gemma3": lambda: (
        hf.Gemma3ForConditionalGeneration,
        hf.Gemma3Config(
            text_config=_TEXT | {"sliding_window": 4},
            vision_config=_TOWER,
            mm_tokens_per_image=4,
            image_token_index=9,
        ),
    ),
    "qwen3_vl": lambda: (
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLConfig(
            text_config=_TEXT | {"rope_parameters": _ROPE},
            vision_config=_QWEN_EYES,
            image_token_id=9,
            video_token_id=8,
            vision_start_token_id=7,
            vision_end_token_id=6,
        ),
    ),
    "qwen3_5": lambda: (
        hf.Qwen3_5ForConditionalGeneration,
        hf.Qwen3_5Config(
            text_config=_TEXT | _LINEAR | {"rope_parameters": _ROPE},
            vision_config=_QWEN_EYES,
            image_token_id=9,
            video_token_id=8,
            vision_start_token_id=7,
            vision_end_token_id=6,
        ),
    ),
    "llama4": lambda: (
        hf.Llama4ForConditionalGeneration,
        hf.Llama4Config(
            text_config=_TEXT | _MIXTURE, vision_config=_LLAMA4_EYES, image_token_index=9
        ),
    ),
    "fuyu": lambda: (
        hf.FuyuForCausalLM,
        hf.FuyuConfig(
            text_config={"model_type": "persimmon", **_PERSIMMON},
            image_size=16,
            patch_size=8,
            **_COMMON | {"hidden_size": 32},
        ),
    ),
    "got_ocr2": lambda: (
        hf.GotOcr2ForConditionalGeneration,
        hf.GotOcr2Config(
            text_config={"model_type": "qwen2", **_PERSIMMON},
            vision_config=_TOWER
            | {"output_channels": 16, "mlp_dim": 96, "global_attn_indexes": [1], "window_size": 2},
            image_token_index=9,
        ),
    ),
    "git": lambda: (hf.GitForCausalLM, hf.GitConfig(**_PERSIMMON, vision_config=_TOWER)),
}
IMAGE_TEXT = tuple(_MODELS)


def image_text_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a tiny model; every parameter is random, so that no bias or norm is neutral."""
    kind, config = _MODELS[family]()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = kind._from_config(config)
        for parameter in model.parameters():
            parameter.data = (parameter + 0.1 * torch.randn(parameter.shape)).to(dtype)
    model.tie_weights()
    return model.eval()


def saved_image_text(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny model with its tokenizer as a folder, and return the folder."""
    image_text_model(family, dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
