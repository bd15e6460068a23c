"""Who a model is: two nodes with equal fingerprints prune the same weights.

Tensors are hashed one by one on several threads and the hashes hashed again, so a 7B model takes
seconds and no copy of its weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from fedprune.models.loading import LoadedModel

# Where and with which release a model was loaded says nothing about its weights; the dtype is
# covered by the hash of the weights.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "dtype"})


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a loaded model.

    Parameters
    ----------
    config : str
        SHA-256 of the configuration, in hex.
    weights : str
        SHA-256 over all tensors' names, dtypes, shapes and bytes, in hex.
    transformers : str
        Release that loaded it: tells why configurations may differ.
    """

    config: str
    weights: str
    transformers: str


def fingerprint(model: LoadedModel) -> Fingerprint:
    """Return the fingerprint of a model as it is in memory.

    Parameters
    ----------
    model : LoadedModel
        Tied tensors count under each of their names; buffers that are not saved do not count.
    """
    return Fingerprint(
        config=config_hash(model.model.config.to_diff_dict()),
        weights=weights_hash(model.model.state_dict()),
        transformers=str(transformers.__version__),
    )


def config_hash(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a configuration, without what differs between equal models."""
    text = json.dumps(_stable(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, whatever the order in which they come."""
    root = hashlib.sha256()
    names = sorted(state)
    tensors = [state[name] for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing releases the interpreter lock
        digests = threads.map(_tensor_hash, tensors)
        for name, tensor, digest in zip(names, tensors, digests, strict=True):
            root.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode() + digest)
    return root.hexdigest()


def _tensor_hash(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()


def _stable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_stable(entry) for entry in value]
    return value
