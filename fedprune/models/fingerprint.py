"""Who a model is: two nodes with equal fingerprints prune the same weights.

Tensors are hashed one by one on several threads and the hashes hashed again, so a 7B model takes
seconds and no copy of its weights.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import transformers
from pydantic import ConfigDict
from torch import Tensor

from fedprune.models.loading import LoadedModel
from fedprune.models.weights import raw_bytes

# Where and with which release a model was loaded says nothing about its weights; the dtype is
# covered by the hash of the weights.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "dtype"})


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a loaded model."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    config: str  # SHA-256 of the configuration, in hex
    weights: str  # SHA-256 over all tensors' names, dtypes, shapes and bytes, in hex
    transformers: str  # release that loaded it: tells why configurations may differ


def fingerprint(model: LoadedModel) -> Fingerprint:
    """Return the fingerprint of a model in the type that it computes in.

    `model`: tied tensors count under each of their names; buffers that are not saved do not count.
    """
    return Fingerprint(
        config=config_hash(model.model.config.to_diff_dict()),
        weights=weights_hash(model.names(), model.tensor),
        transformers=str(transformers.__version__),
    )


def config_hash(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a configuration, without what differs between equal models."""
    text = json.dumps(_stable(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """Return the SHA-256 of named tensors, whatever the order in which they come.

    `tensor`: name -> tensor; asked for by several threads, and let go once it is hashed.
    """

    def one(name: str) -> bytes:
        found = tensor(name).detach().cpu()
        form = f"{name}\0{found.dtype}\0{tuple(found.shape)}\0"
        return form.encode() + hashlib.sha256(raw_bytes(found)).digest()

    root = hashlib.sha256()
    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for part in threads.map(one, sorted(names)):
            root.update(part)
    return root.hexdigest()


def _stable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_stable(entry) for entry in value]
    return value
