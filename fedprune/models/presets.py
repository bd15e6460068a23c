"""Published shapes of well-known decoders, so that one can be generated without a download."""

from collections.abc import Mapping
from types import MappingProxyType

_LLAMA: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_LLAMA_2 = _LLAMA | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA_3 = _LLAMA_2 | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_13B: dict[str, object] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
_30B: dict[str, object] = {
    "hidden_size": 6656,
    "intermediate_size": 17920,
    "num_hidden_layers": 60,
    "num_attention_heads": 52,
}
_70B: dict[str, object] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
_OPEN_LLAMA_3B: dict[str, object] = {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
}
_OPT_1_3B: dict[str, object] = {
    "hidden_size": 2048,
    "word_embed_proj_dim": 2048,
    "ffn_dim": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}

#: Name -> (transformers' model type, values that differ from its defaults).
PRESETS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "llama-7b": ("llama", _LLAMA),
        "llama-13b": ("llama", _LLAMA | _13B),
        "llama-30b": ("llama", _LLAMA | _30B),
        "open-llama-3b": ("llama", _LLAMA | _OPEN_LLAMA_3B),
        "llama-2-7b": ("llama", _LLAMA_2),
        "llama-2-13b": ("llama", _LLAMA_2 | _13B),
        "llama-2-70b": ("llama", _LLAMA_2 | _70B),
        "llama-3-8b": ("llama", _LLAMA_3),
        "llama-3-70b": ("llama", _LLAMA_3 | _70B),
        "opt-125m": ("opt", {}),
        "opt-1.3b": ("opt", _OPT_1_3B),
    }
)
