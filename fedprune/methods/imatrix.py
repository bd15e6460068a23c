"""Collected column squares as an importance matrix for llama.cpp's quantiser, in its GGUF form.

What `llama-imatrix` sums over one text is what a collection sums over all clients' texts: for each
matrix the squares of its inputs, ``{tensor}.in_sum2``, and how many tokens those are,
``{tensor}.counts``; of experts a row each, of the tokens that were routed to it
(``tools/imatrix/imatrix.cpp`` of llama.cpp, whose ``llama-quantize --imatrix`` reads the file).
Tensors are called as llama.cpp's converter calls them, by the table in its package `gguf`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from fedprune.disk import commit_file, sync
from fedprune.errors import ConfigError, FedpruneError
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.pruning.statistics import ColumnStatistics

_ALIKE = (
    "apertus arcee bloom cohere2 exaone4 falcon gemma gemma2 gemma3 glm4 gpt2 granite llama "
    "mpt olmo olmo2 olmoe phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2"
)  # called the same there

FAMILIES: Mapping[str, str] = {
    **{name: name for name in _ALIKE.split()},
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "mistral": "llama",
    "mixtral": "llama",
    "phi": "phi2",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""``model_type`` of a Hugging Face configuration -> the architecture that llama.cpp makes of it.

Only families whose converter leaves every matrix its inputs in their order: rows may be permuted or
several matrices of one input put together, and a sum for each input stays right.
"""

_EXPERT = re.compile(r"(?P<holder>.+)\.(?P<number>\d+)\.(?P<matrix>\w+)")
# One matrix here, two in llama.cpp; both read the same inputs.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
_ENDINGS = (".weight", ".bias")

Entry = tuple[NDArray[np.float32], NDArray[np.float32]]


def write_imatrix(statistics: StatisticsFolder, path: Path) -> int:
    """Write an importance matrix and return of how many tensors; a file appears whole.

    `path`: a new file, by custom ``imatrix.gguf``. Raises ConfigError if column squares were not
    collected or not by tokens, the file is there already, or the family or one of its matrices has
    no name in llama.cpp. Raises FedpruneError if the package `gguf` is not installed, or the file
    cannot be written.
    """
    gguf = _package()
    statistics.require("columns", "An importance matrix")
    told = statistics.manifest
    pooling = told.config.strategy.pooling
    if pooling != "tokens":
        raise ConfigError(
            "An importance matrix is of sums over tokens, these were pooled with "
            f"`strategy.pooling` '{pooling}'. Collect with strategy.pooling=tokens."
        )
    if path.exists():
        raise ConfigError(f"--imatrix must be a new file, '{path}' exists. Choose another name.")
    names = tensor_names(statistics, gguf)
    partial = path.with_name(f"{path.name}.partial")
    chunk = told.config.pruner.seq_len
    tokens = sum(one.tokens for one in told.participants)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(partial, "")
        # Its constructor names an architecture; an importance matrix has none.
        writer.kv_data[0].pop("general.architecture", None)
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(told.data))
        writer.add_uint32("imatrix.chunk_count", -(-tokens // chunk))
        writer.add_uint32("imatrix.chunk_size", chunk)
        for name, (sums, counts) in _entries(statistics, names):
            writer.add_tensor(f"{name}.in_sum2", sums)
            writer.add_tensor(f"{name}.counts", counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(partial)
        commit_file(partial, path)
    except OSError as error:
        raise FedpruneError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return len({name for block in names for found in block.values() for name in found})


def tensor_names(
    statistics: StatisticsFolder, gguf: ModuleType
) -> list[dict[str, tuple[str, ...]]]:
    """Return for each block what llama.cpp calls the tensors of each linear.

    Raises ConfigError if the family or a linear is unknown; names it.
    """
    told = statistics.manifest
    family = FAMILIES.get(told.architecture)
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if family not in known:
        raise ConfigError(
            f"llama.cpp's importance matrix is not written for the family '{told.architecture}', "
            f"only for {', '.join(FAMILIES)}. `fedprune solve` makes models of these statistics "
            "all the same."
        )
    table = gguf.get_tensor_name_map(known[family], statistics.num_blocks)
    # A model that sees or hears has its decoder one level deeper; the converter takes it out.
    prefix = told.prefix.replace("language_model.", "")
    found, missing = [], []
    for block, shapes in enumerate(told.shapes):
        names: dict[str, tuple[str, ...]] = {}
        for linear in shapes:
            full = [f"{prefix}.{block}.{one}.weight" for one in _unfused(linear)]
            tensors = [table.get_name(one, try_suffixes=_ENDINGS) for one in full]
            missing += [one for one, tensor in zip(full, tensors, strict=True) if not tensor]
            names[linear] = tuple(filter(None, tensors))
        found.append(names)
    if missing:
        raise ConfigError(
            f"llama.cpp has no tensor for {', '.join(f'`{name}`' for name in missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} of a "
            f"'{told.architecture}' (the table of gguf for '{family}'): an importance matrix "
            "without them would mislead. Tell the project of this model."
        )
    return found


def _unfused(linear: str) -> list[str]:
    """Return the names of a linear as a converter reads them, an expert's without its number."""
    parts = _EXPERT.fullmatch(linear)
    if parts is None or "experts" not in parts["holder"]:
        return [linear]
    names = _FUSED.get(parts["matrix"], (parts["matrix"],))
    return [f"{parts['holder']}.{name}" for name in names]


def _entries(
    statistics: StatisticsFolder, names: list[dict[str, tuple[str, ...]]]
) -> Iterator[tuple[str, Entry]]:
    """Yield each tensor's sums, (matrices, d_in), and counts, (matrices, 1), block by block."""
    for block, tensors in enumerate(names):
        rows: dict[str, dict[int, Entry]] = {}
        for linear, found in statistics.linears(block, "columns").items():
            if not isinstance(found, ColumnStatistics):
                raise RuntimeError("column squares are read as they were kept.")
            expert = _EXPERT.fullmatch(linear)
            number = int(expert["number"]) if expert and "experts" in expert["holder"] else 0
            entry = found.sum_squares.numpy(), np.array([found.tokens], dtype=np.float32)
            for tensor in tensors[linear]:
                rows.setdefault(tensor, {})[number] = entry
        for tensor in sorted(rows):
            ordered = [rows[tensor][number] for number in sorted(rows[tensor])]
            yield tensor, (np.stack([one[0] for one in ordered]), np.stack([o[1] for o in ordered]))


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise FedpruneError(
            "Importance matrices are written with llama.cpp's package gguf, which is not "
            "installed: pip install 'fedprune[gguf]'"
        ) from error
    found: ModuleType = gguf
    return found
