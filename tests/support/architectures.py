"""Tiny decoders with random weights, one of every family that the tests walk."""

from collections.abc import Callable

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fedprune.models.loading import LoadedModel, loaded_from

VOCABULARY = 100
POSITIONS = 32
WINDOW = 4  # of sliding attention: shorter than the samples, so that masks differ by block

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = _COMMON | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "head_dim": 8}
_MIXED = _GROUPED | {
    "num_hidden_layers": 3,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GPT2 = _COMMON | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
_BLOOM = _COMMON | {"hidden_size": 32, "n_layer": 2, "n_head": 4}

_CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED | {"num_hidden_layers": 3}),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**_SIZES, num_key_value_heads=2),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED),
    "gemma": lambda: hf.GemmaConfig(**_GROUPED),
    "gemma2": lambda: hf.Gemma2Config(**_MIXED, query_pre_attn_scalar=8),
    "gemma3": lambda: hf.Gemma3TextConfig(**_MIXED, query_pre_attn_scalar=8),
    "opt": lambda: hf.OPTConfig(**_SIZES | _OPT),
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_SIZES),
    "phi": lambda: hf.PhiConfig(**_SIZES),
    "falcon": lambda: hf.FalconConfig(**_SIZES),
    "bloom": lambda: hf.BloomConfig(**_BLOOM),
}

_FEW_HEADS = {key: value for key, value in _GROUPED.items() if key != "head_dim"}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_EXPERTS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "mixtral": lambda: hf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_GROUPED, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2
    ),
    "olmoe": lambda: hf.OlmoeConfig(
        **_FEW_HEADS | {"intermediate_size": 24}, num_experts=8, num_experts_per_tok=2
    ),
    # Stored (d_in, d_out), with biases, gate and up interleaved.
    "gpt_oss": lambda: hf.GptOssConfig(
        **_GROUPED | {"intermediate_size": 32}, num_local_experts=4, num_experts_per_tok=2
    ),
    # A dense block first, shared experts, a router limited to groups.
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **_SIZES,
        **_LATENT,
        moe_intermediate_size=24,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
    # No part of the library's contract: all tokens go through all experts, most as zeros.
    "llama4": lambda: hf.Llama4TextConfig(
        **_GROUPED | {"intermediate_size": 24},
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
    ),
    # Rows of all experts one after another in parameters of two dimensions.
    "dbrx": lambda: hf.DbrxConfig(
        **_COMMON,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=POSITIONS,
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    ),
    # One parameter a module, and experts of attention.
    "jetmoe": lambda: hf.JetMoeConfig(
        **_COMMON,
        hidden_size=32,
        num_hidden_layers=2,
        kv_channels=8,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        intermediate_size=24,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
}

_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = (*_ATTENTION, "self_attn.o_proj", *_GATED)
_FUSED = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

#: Where the blocks are and which linear maps one block has, family by family.
EXPECTED: dict[str, tuple[str, set[str]]] = {
    **{
        name: ("model.layers", set(_LLAMA))
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
    },
    "opt": ("model.decoder.layers", {*_ATTENTION, "self_attn.out_proj", "fc1", "fc2"}),
    "gpt2": ("transformer.h", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    "gpt_neox": ("gpt_neox.layers", {"attention.query_key_value", "attention.dense", *_FUSED}),
    "phi": ("model.layers", {*_ATTENTION, "self_attn.dense", "mlp.fc1", "mlp.fc2"}),
    "falcon": (
        "transformer.h",
        {"self_attention.query_key_value", "self_attention.dense", *_FUSED},
    ),
    "bloom": ("transformer.h", {"self_attention.query_key_value", "self_attention.dense", *_FUSED}),
}
FAMILIES = tuple(_CONFIGS)
#: Families with routed experts in fused parameters.
MIXTURES = tuple(_EXPERTS)


def tiny_config(family: str) -> hf.PreTrainedConfig:
    """Return the configuration of a tiny decoder."""
    return (_CONFIGS | _EXPERTS)[family]()


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Return a tiny decoder; every parameter is random, so that no bias or norm is neutral."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = hf.AutoModelForCausalLM.from_config(tiny_config(family))
        for parameter in model.parameters():
            # Buffers keep their dtype, as they do in a model that is loaded.
            parameter.data = (parameter + 0.1 * torch.randn(parameter.shape)).to(dtype)
    return loaded_from(model, tiny_tokenizer(), f"tiny-{family}")


def made_of(config: hf.PreTrainedConfig) -> LoadedModel:
    """Return a decoder of any configuration, every parameter random."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model: PreTrainedModel = hf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return loaded_from(model, tiny_tokenizer(), "made")


def tiny_tokenizer(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words ``w3`` to ``w99``, whose ids are their numbers."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words = {f"w{number}": number for number in range(3, VOCABULARY)}
    core = Tokenizer(models.WordLevel(special | words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token="<pad>", unk_token="<pad>"
    )


def token_samples(count: int, seq_len: int, seed: int = 0) -> list[torch.Tensor]:
    """Return random samples of token ids, each int64 of shape (seq_len,)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (seq_len,), generator=generator) for _ in range(count)]
