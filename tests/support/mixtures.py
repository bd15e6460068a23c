"""Slow, obvious oracles of what experts do, and of a mixture with fewer of them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
import transformers as hf
from torch.nn import functional

from fedprune.models.embedded import demo_model_path
from tests.support.architectures import tiny_config

#: Family -> the router's weight and, where there is one, its correction bias inside a block.
ROUTERS = {
    "mixtral": ("mlp.gate.weight", None),
    "qwen3_moe": ("mlp.gate.weight", None),
    "olmoe": ("mlp.gate.weight", None),
    "gpt_oss": ("mlp.router.weight", None),
    "deepseek_v3": ("mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
    "llama4": ("feed_forward.router.weight", None),
    "dbrx": ("ffn.router.layer.weight", None),
}


@contextmanager
def restricted_routers(loaded, family: str, keep: Mapping[int, Sequence[int]]):
    """Let the routers of a dense model choose among some experts only, and change nothing else."""
    router, bias = ROUTERS[family]
    closed, corrected = {}, []
    for block, kept in keep.items():
        module = loaded.layout.blocks[block]
        weight = module.get_parameter(router)
        gone = [expert for expert in range(len(weight)) if expert not in kept]
        closed[weight.data_ptr()] = gone
        if bias is not None:
            tensor = module.get_buffer(bias)
            corrected.append((tensor, tensor.clone()))
            tensor[gone] = -math.inf
    linear = functional.linear

    def routed(inputs, weight, bias=None):
        logits = linear(inputs, weight, bias)
        if weight.data_ptr() in closed:
            logits = logits.clone()
            logits[..., closed[weight.data_ptr()]] = -math.inf
        return logits

    try:
        with patch.object(functional, "linear", routed):
            yield
    finally:
        for tensor, before in corrected:
            tensor.copy_(before)


def expert_output(module, expert: int, token: torch.Tensor) -> torch.Tensor:
    """Return what one expert makes of one token, from the formula, in double precision."""
    if hasattr(module, "mlp"):  # DBRX
        w1, v1, w2 = (
            part.double().chunk(module.num_experts)[expert]
            for part in (module.mlp.w1, module.mlp.v1, module.mlp.w2)
        )
        return (functional.silu(w1 @ token.double()) * (v1 @ token.double())) @ w2
    gate_up, down = module.gate_up_proj[expert].double(), module.down_proj[expert].double()
    if not module.is_transposed:
        gate_up, down = gate_up.T, down.T
    inner = token.double() @ gate_up
    if module.has_bias:
        inner = inner + module.gate_up_proj_bias[expert].double()
    if module.is_concatenated:
        half = len(inner) // 2
        inner = module.act_fn(inner[:half]) * inner[half:]
    else:  # interleaved, clamped: gpt-oss
        gate, up = inner[0::2].clamp(max=module.limit), inner[1::2]
        up = up.clamp(-module.limit, module.limit)
        inner = (up + 1) * gate * torch.sigmoid(module.alpha * gate)
    outer = inner @ down
    return outer + module.down_proj_bias[expert].double() if module.has_bias else outer


def slow_sums(calls, module, experts: int) -> dict[str, list[int]]:
    """Return a block's exact sums from what its experts were called with, token by token."""
    sums = {name: [0] * experts for name in ("saliency", "weights", "norms", "tokens")}
    for hidden, chosen, weights in calls:
        hidden = hidden.reshape(-1, hidden.shape[-1])
        for token, indices, values in zip(hidden, chosen, weights, strict=True):
            for expert, weight in zip(indices.tolist(), values.tolist(), strict=True):
                norm = float(expert_output(module, expert, token).detach().norm())
                for name, value in (
                    ("saliency", weight * norm),
                    ("weights", weight),
                    ("norms", norm),
                ):
                    sums[name][expert] += round(value * 2**24)
                sums["tokens"][expert] += 1
    return sums


def tiny_mixture_folder(family: str, folder):
    """Write a tiny mixture of a family, random weights, the demo's tokenizer."""
    config = tiny_config(family)
    config.vocab_size = 1024
    # What a family calls its positions.
    setattr(config, "max_seq_len" if family == "dbrx" else "max_position_embeddings", 256)
    return _saved(config, folder, seed=1)


def mixture_folder(folder):
    """Write a Mixtral of three blocks of eight experts, random weights, the demo's tokenizer."""
    sizes = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    config = hf.MixtralConfig(**sizes)
    return _saved(config, folder, seed=0)


def _saved(config, folder, seed):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder)
    return folder
