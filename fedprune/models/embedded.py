"""The model inside the package: a first run needs no download and no account.

It ships as JSON because only text files travel in a Flower app bundle. On first use it becomes an
ordinary Hugging Face folder in the cache, so everything after this module treats it like any model.
"""

import base64
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fedprune.disk import home
from fedprune.errors import ModelError

SHIPPED = Path(__file__).parent / "demo"
FORMAT = "fedprune-weights-1"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
COPIED = ("config.json", *TOKENIZER, "training.json")
WEIGHTS = "weights.json"


def demo_model_path() -> Path:
    """Return the embedded model as a Hugging Face folder, made on first use.

    The folder is named after what is shipped, so two versions never mix; it appears whole or not
    at all, so processes that start together may all call this.

    Returns folder with `model.safetensors` (float32), `config.json` and the tokenizer. Raises
    ModelError: a shipped file is missing or damaged, or the cache cannot be written.
    """
    try:
        contents = {name: (SHIPPED / name).read_bytes() for name in sorted((*COPIED, WEIGHTS))}
    except OSError as error:
        raise _damaged(f"'{error.filename}' cannot be read") from error
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}:{len(content)}\n".encode())
        digest.update(content)
    target = home() / "models" / f"demo-{digest.hexdigest()[:12]}"
    if target.is_dir():
        return target
    weights = _decode_weights(contents[WEIGHTS])
    try:
        _write_folder(target, contents, weights)
    except OSError as error:
        raise ModelError(
            f"`model.name` 'demo' must be unpacked into '{target}', but that failed: {error}. "
            "Make the folder writable or point FEDPRUNE_HOME elsewhere."
        ) from error
    return target


def _decode_weights(content: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of `weights.json` as float32, after checking their hash."""
    digest = hashlib.sha256()
    tensors = {}
    try:
        document = json.loads(content)
        if document["format"] != FORMAT:
            raise _damaged(f"'{WEIGHTS}' has format '{document['format']}', not '{FORMAT}'")
        for name, entry in document["tensors"].items():
            if entry["dtype"] != "float16":
                raise _damaged(f"'{name}' has dtype '{entry['dtype']}', not 'float16'")
            data = base64.b64decode(entry["data"], validate=True)
            digest.update(f"{name} {entry['shape']}".encode() + data)
            values = np.frombuffer(data, dtype="<f2").reshape(entry["shape"])
            tensors[name] = torch.from_numpy(values.astype(np.float32))
        expected = document["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(f"'{WEIGHTS}' cannot be decoded ({error!r})") from error
    if digest.hexdigest() != expected:
        raise _damaged(f"'{WEIGHTS}' has sha256 {digest.hexdigest()}, not {expected}")
    return tensors


def _write_folder(
    target: Path, contents: dict[str, bytes], weights: dict[str, torch.Tensor]
) -> None:
    """Write a sibling of the target and rename it; whoever renames first has made the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in COPIED:
            (made / name).write_bytes(contents[name])
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        made.chmod(0o755)  # a temporary folder is private, a cache may be shared
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _damaged(what: str) -> ModelError:
    return ModelError(
        f"`model.name` 'demo' cannot be used: {what} in '{SHIPPED}'. Reinstall fedprune."
    )
