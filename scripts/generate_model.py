"""Models with random weights in the true shape of any architecture, to measure memory and time on.

    python scripts/generate_model.py llama-2-7b /models/shape --blocks 2

What a tensor holds depends on its name, its shape and the seed alone, so a slice with fewer blocks
has the same first blocks. Some features of the hidden states are loud, as they are in trained
models, so that inputs matter to a pruner.
"""

import argparse
import copy
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fedprune.disk import new_folder
from fedprune.errors import ModelError
from fedprune.models.embedded import SHIPPED, TOKENIZER
from fedprune.models.export import SHARD_BYTES, ShardWriter
from fedprune.models.layout import find_layout
from fedprune.models.names import as_saved
from fedprune.seeds import derive_seed

_CHUNK = 1 << 22  # weights drawn at a time, in float32
_STD = 0.02  # where a configuration names no deviation
_SPREAD = 0.3  # of the logarithm of an ordinary feature's scale
_LOUD_SHARE = 0.005
_LOUD = (4.0, 10.0)  # scales of loud features


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
_QWEN3_30B_A3B: dict[str, object] = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
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
        "qwen3-30b-a3b": ("qwen3_moe", _QWEN3_30B_A3B),
        "opt-125m": ("opt", {}),
        "opt-1.3b": ("opt", _OPT_1_3B),
    }
)


@dataclass(frozen=True)
class Draft:
    """A model that is drawn tensor by tensor; it holds none of them."""

    model: PreTrainedModel  # the architecture, on the meta device
    prefix: str
    seed: int  # what the values follow from

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Name -> meta tensor of everything that a checkpoint holds; tied weights once."""
        first: dict[int, str] = {}
        state = self.model.state_dict(keep_vars=True)
        for name, stored in state.items():
            first.setdefault(id(stored), name)
        return {name: state[name] for name in first.values()}

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(stored.nbytes for stored in self.stored.values())

    @property
    def weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(stored.numel() for stored in self.stored.values())

    def draw(self, name: str) -> Tensor:
        """Return one tensor; takes its memory and that of a few million float32 values.

        `name`: one of :attr:`stored`. Matrices are normal with the deviation that the configuration
        names, in blocks and embeddings times the scale of the feature that they write; all others
        are as the architecture initialises them.
        """
        stored = self.stored[name]
        owner, _, attribute = name.rpartition(".")
        module = self.model.get_submodule(owner)
        if stored.ndim < 2:
            return self._initial(module, attribute)
        drawn = torch.empty(stored.shape, dtype=stored.dtype)
        self._fill(drawn.view(len(drawn), -1), self._scale(name, module, stored), name)
        return drawn

    def _fill(self, matrix: Tensor, scale: Tensor, name: str) -> None:
        height = max(1, _CHUNK // matrix.shape[1])
        scales = scale.expand(len(matrix), -1)

        def fill(first: int) -> None:
            rows = matrix[first : first + height]
            generator = torch.Generator().manual_seed(derive_seed(self.seed, name, first))
            values = torch.empty(rows.shape).normal_(generator=generator)
            rows.copy_(values.mul_(scales[first : first + height]))

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(fill, range(0, len(matrix), height)))

    def _scale(self, name: str, module: nn.Module, stored: Tensor) -> Tensor:
        """Return the deviation of a matrix's rows, (rows, 1), or of its columns, (1, columns)."""
        text = self.model.config.get_text_config()
        std = getattr(text, "initializer_range", None) or getattr(text, "init_std", None) or _STD
        if isinstance(module, nn.Embedding):
            return std * self._loudness(stored.shape[1])
        if not name.startswith(f"{self.prefix}."):
            return torch.full((1, 1), std)
        if isinstance(module, nn.Linear):
            return std * self._loudness(stored.shape[0]).T
        return std * self._loudness(math.prod(stored.shape[1:]))

    def _loudness(self, features: int) -> Tensor:
        """Return the scale of each feature of a width, (1, features), float32."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "features", features))
        scale = torch.empty(features).log_normal_(0, _SPREAD, generator=generator)
        loud = torch.randperm(features, generator=generator)[: math.ceil(features * _LOUD_SHARE)]
        scale[loud] = torch.empty(len(loud)).uniform_(*_LOUD, generator=generator)
        return scale[None]

    def _initial(self, module: nn.Module, attribute: str) -> Tensor:
        """Return a vector of a module as its architecture initialises it."""
        alone = copy.copy(module)
        for kind in ("_parameters", "_buffers"):
            alone.__dict__[kind] = {
                key: _zeros(stored) if stored is not None and stored.ndim < 2 else stored
                for key, stored in getattr(module, kind).items()
            }
        self.model._init_weights(alone)
        found: Tensor = getattr(alone, attribute)
        return found.detach()


def draft_model(source: str, dtype: str, blocks: int | None, seed: int) -> Draft:
    """Return a model that can be generated.

    `source`: a name of :data:`PRESETS`, or a folder with a ``config.json``. `dtype`: 'float32',
    'bfloat16' or 'float16'. `blocks`: how many of its blocks, the first ones; None for all. Raises
    ModelError if there is no such architecture, it cannot be pruned block by block, it has fewer
    blocks, or fewer tokens than the embedded model's tokenizer.
    """
    config = _configuration(source)
    text = config.get_text_config()
    if blocks is not None:
        if not 1 <= blocks <= text.num_hidden_layers:
            raise ModelError(
                f"`--blocks` must be 1 to {text.num_hidden_layers} for '{source}', got {blocks}."
            )
        text.num_hidden_layers = blocks
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:blocks]
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=False
            )
    except (ValueError, ImportError) as error:
        detail = str(error).partition("\n")[0]
        raise ModelError(
            f"'{source}' cannot be generated: {detail} Give the configuration of a causal "
            "language model that transformers knows."
        ) from error
    draft = Draft(model, find_layout(model).prefix, seed)
    tokens = json.loads((SHIPPED / "config.json").read_text())["vocab_size"]
    if text.vocab_size < tokens:
        raise ModelError(
            f"'{source}' has {text.vocab_size} tokens, the embedded model's tokenizer, which a "
            f"generated model gets, has {tokens}. Raise `vocab_size` in its configuration."
        )
    return draft


def generate_model(draft: Draft, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model as a Hugging Face folder, tensor by tensor, whole or not at all.

    The tokenizer is that of the embedded model, whose ids every larger vocabulary has too.

    `folder`: where; missing or empty. `shard_bytes`: bytes of tensors after which a file is full.
    Raises ModelError if there is something in the folder, its disk has too little room, or it
    cannot be written.
    """
    check_room(draft, folder)
    with new_folder(folder) as partial:
        for name in TOKENIZER:
            shutil.copyfile(SHIPPED / name, partial / name)
        draft.model.config.architectures = [type(draft.model).__name__]
        draft.model.config.save_pretrained(partial)
        shards = ShardWriter(partial, shard_bytes)
        for name in draft.stored:
            # Under the names of a published checkpoint: of fused experts each has its own.
            shards.add(as_saved(draft.model, {name: draft.draw(name)}))
        shards.close()


def check_room(draft: Draft, folder: Path) -> None:
    """Raise ``ModelError`` if the disk of a folder has less room than a model needs."""
    there = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < draft.bytes:
        raise ModelError(
            f"The model takes {draft.bytes / 1e9:.2f} GB, and '{there}' has {free / 1e9:.2f} GB "
            "free. Give a folder on another disk, a shorter `--dtype` or fewer `--blocks`."
        )


def _configuration(source: str) -> PreTrainedConfig:
    if source in PRESETS:
        kind, values = PRESETS[source]
        return AutoConfig.for_model(kind, **copy.deepcopy(dict(values)))
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"SHAPE must be a folder with a `config.json` or one of {', '.join(PRESETS)}; got "
            f"'{source}'."
        ) from error


def _zeros(stored: Tensor) -> Tensor:
    values = torch.zeros(stored.shape, dtype=stored.dtype)
    return nn.Parameter(values, requires_grad=False) if isinstance(stored, nn.Parameter) else values


def main(arguments: list[str]) -> int:
    """Write the model that the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "shape",
        metavar="SHAPE",
        help=f"a folder with a config.json, or one of {', '.join(PRESETS)}",
    )
    parser.add_argument("folder", metavar="MODEL_DIR", type=Path, help="the new model's folder")
    parser.add_argument("--blocks", type=int, metavar="N", help="only the first N blocks")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="(bfloat16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="what the weights follow from (0)")
    chosen = parser.parse_args(arguments)
    target = chosen.folder.expanduser().absolute()
    try:
        draft = draft_model(chosen.shape, chosen.dtype, chosen.blocks, chosen.seed)
        blocks = draft.model.config.get_text_config().num_hidden_layers
        print(
            f"{chosen.shape}: {blocks} block(s), {draft.weights / 1e9:.2f} billion weights, "
            f"{draft.bytes / 1e9:.2f} GB as {chosen.dtype}"
        )
        started = time.monotonic()
        generate_model(draft, target)
    except ModelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(f"{target}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
