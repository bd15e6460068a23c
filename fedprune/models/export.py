"""A pruned model as an ordinary Hugging Face folder, written block by block.

The folder is written beside its final place and renamed once it is complete on the disk, so a
reader never meets half a model.
"""

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from fedprune.config.schema import ModelConfig
from fedprune.disk import new_folder
from fedprune.errors import ModelError
from fedprune.models.architecture import untie
from fedprune.models.changes import Changes, changed_tensors
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.folder import GENERATION, SAFETENSORS, SAFETENSORS_INDEX
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.quantized import QuantizedExport
from fedprune.models.sidecar import SidecarWriter, read_sidecar, sidecar_metadata
from fedprune.models.sources import tied_names
from fedprune.models.weights import save_tensors
from fedprune.wire.changes import keeps_survivors, mask_of
from fedprune.wire.quantized import QuantizedWeight

#: Where an export keeps its masks. Not beside the weights: servers that load a folder's every
#: ``*.safetensors`` would take them for a shard.
SIDECAR = Path("fedprune", "masks.safetensors")

_CARD = "README.md"
_DTYPES = ("float32", "bfloat16", "float16")
_WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_log = logging.getLogger("flwr")

SHARD_BYTES = 256_000_000
"""How large a file of weights gets at least, unless it is the last: about a block of a 7B model."""


class ShardWriter:
    """Writes a model's weights as one safetensors file, or as several with an index.

    `folder`: where ``model.safetensors`` or ``model-00001-of-0000N.safetensors`` go. `shard_bytes`:
    a file is written once its tensors have so many bytes; until then they are held.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._held: dict[str, Tensor] = {}
        self._written: list[list[str]] = []
        self._bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add CPU tensors that go into one file."""
        self._held.update(tensors)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        if sum(tensor.nbytes for tensor in self._held.values()) >= self._shard_bytes:
            self._write()

    def close(self) -> None:
        """Write what is left, and give the files their names."""
        if self._held or not self._written:
            self._write()
        total = len(self._written)
        if total == 1:
            self._part(1).rename(self._folder / SAFETENSORS)
            return
        places = {}
        for number, names in enumerate(self._written, start=1):
            file = f"model-{number:05d}-of-{total:05d}.safetensors"
            self._part(number).rename(self._folder / file)
            places.update(dict.fromkeys(names, file))
        index = {
            "metadata": {"total_size": self._bytes},
            "weight_map": dict(sorted(places.items())),
        }
        (self._folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        self._written.append(list(self._held))
        save_tensors(self._part(len(self._written)), self._held)
        self._held.clear()

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}"


def export_model(
    model: LoadedModel, changes: Changes, folder: Path, mark: Fingerprint | None = None
) -> None:
    """Write a model as a Hugging Face folder, pruned, with its masks in a sidecar.

    One block of the model is in memory at a time.

    `model`: the dense model; unchanged. `changes`: block -> linear -> what becomes of it; asked for
    block by block. `folder`: where the model goes: sharded safetensors with real zeros,
    configuration, tokenizer and :data:`SIDECAR`. Quantised weights go in compressed-tensors' form,
    and no masks beside. `mark`: the dense model's, if it is known already; the masks say which
    model they are of. Raises ModelError if the folder exists and is not empty, cannot be written,
    or the changes are another model's.
    """
    check_changes(model, changes)
    mark = fingerprint(model) if mark is None else mark
    with new_folder(folder) as partial:
        (partial / SIDECAR).parent.mkdir()
        quantized = QuantizedExport(model)
        with SidecarWriter(partial / SIDECAR, model.layout.prefix) as masks:
            kept = _write_weights(model, changes, partial, masks, quantized)
            if not quantized.used:
                masks.close(
                    {
                        "model": {"weights": mark.weights, "dtype": dtype_name(model)},
                        "survivors": "kept" if kept else "changed",
                    }
                )
        config = None
        if quantized.used:
            config = copy.deepcopy(model.model.config)
            config.quantization_config = quantized.configuration()
            config.dtype = model.model.dtype
        write_configuration(model, partial, config)


def apply_masks(base: str | Path, masks: Path, output: Path) -> None:
    """Make a pruned model of the dense model and the masks that were made for it.

    `base`: the dense model: a folder, a Hub id, or 'demo'. `masks`: the ``masks.safetensors`` of an
    export, which is a sixteenth of a model in bfloat16. `output`: a new folder; it becomes what the
    export was, bit for bit. Raises ModelError if the masks are another model's or came with new
    values for the survivors, a file is damaged, or the folder is taken or cannot be written.
    """
    said = sidecar_metadata(masks)
    if said.get("survivors") == "changed":
        raise ModelError(
            f"'{masks}' is of a model whose survivors have new values, which masks do not hold. "
            "Keep the model's own folder."
        )
    loaded, mark = base_model(base, masks, said.get("model"))
    export_model(loaded, read_sidecar(masks), output, mark)


def base_model(base: str | Path, sidecar: Path, said: object) -> tuple[LoadedModel, Fingerprint]:
    """Load the dense model that a sidecar was made for.

    `base`: the dense model: a folder, a Hub id, or 'demo'. `said`: what the sidecar says of the
    model: a mapping with ``weights`` and ``dtype``. Raises ModelError if it is another model.
    """
    known = said if isinstance(said, dict) else {}
    said_dtype, demo = known.get("dtype"), str(base) == "demo"
    config = ModelConfig.model_validate(
        {
            "name": "demo" if demo else "hf",
            "path": "" if demo else str(base),
            "revision": None,
            "dtype": said_dtype if said_dtype in _DTYPES else "auto",
            "source": "local",
        }
    )
    loaded = load_model(config)
    mark = fingerprint(loaded)
    if "weights" in known and known["weights"] != mark.weights:
        raise ModelError(
            f"'{sidecar}' is of another model: its weights have the SHA-256 {known['weights']}, "
            f"those of '{base}' have {mark.weights}. Give the model that was pruned."
        )
    return loaded, mark


def _write_weights(
    model: LoadedModel,
    changes: Changes,
    folder: Path,
    masks: SidecarWriter,
    quantized: QuantizedExport,
) -> bool:
    """Write every tensor once, block by block; return whether the survivors are as they were."""
    state, tied = model.model.state_dict(), tied_names(model.model)
    shards, prefix, kept = ShardWriter(folder, SHARD_BYTES), f"{model.layout.prefix}.", True
    outside = [name for name in state if name not in tied and not name.startswith(prefix)]
    unread = tuple(f"{name}." for name in model.layout.unread)
    for names in model.source.together(outside):
        if all(name.startswith(unread) for name in names):
            stored = model.source.untouched(names)
        else:
            stored = model.source.stored({name: model.tensor(name) for name in names})
        quantized.left(stored)
        shards.add(stored)
    for block in range(len(model.layout.blocks)):
        done = changes.get(block, {})
        kept = kept and all(map(keeps_survivors, done.values()))
        masks.add(block, {linear: mask_of(change) for linear, change in done.items()})
        inside = f"{prefix}{block}."
        coded = quantized.keys(block, done)
        floats = {name: one for name, one in done.items() if not isinstance(one, QuantizedWeight)}
        tensors = changed_tensors(model.layout, block, model.block_tensors(block), floats)
        model.prefetch(block + 1)
        full = {f"{inside}{name}": one for name, one in tensors.items() if name not in coded}
        saved = {name: full[name] for name in full if name in state and name not in tied}
        stored = model.source.stored(saved)
        quantized.left(stored)
        shards.add(stored | quantized.tensors(block, done))
    shards.close()
    return kept


def dtype_name(model: LoadedModel) -> str:
    """Return the type that a model computes in, ``bfloat16`` for instance."""
    return str(model.model.dtype).removeprefix("torch.")


def write_configuration(
    model: LoadedModel, folder: Path, config: PreTrainedConfig | None = None
) -> None:
    """Write a model's configuration, or a new one, and what lay beside its weights."""
    decoder = model.model
    config = copy.deepcopy(decoder.config if config is None else config)
    config.architectures = [type(decoder).__name__]
    head = decoder.get_output_embeddings()
    if head is not None and head.weight is not decoder.get_input_embeddings().weight:
        untie(config)
    config.save_pretrained(folder)
    generation, beside = decoder.generation_config, model.side_files()
    if generation is not None and GENERATION not in beside:
        # As it is, valid or not: a run does not fail for how a model wants to generate.
        (folder / GENERATION).write_text(generation.to_json_string(), encoding="utf-8")
    model.tokenizer.save_pretrained(folder)
    _copy_side_files(model, beside, folder)


def _copy_side_files(model: LoadedModel, beside: Mapping[str, Path], folder: Path) -> None:
    """Carry what lay beside the dense weights; the card is not the new model's."""
    for name, path in beside.items():
        if name == GENERATION or not ((folder / name).exists() or name == _CARD):
            shutil.copyfile(path, folder / name)
    generation = model.model.generation_config
    if generation is not None:
        try:
            generation.validate(strict=True)
        except ValueError as error:
            detail = " ".join(str(error).split())[:200]
            _log.warning("'%s' is exported as it is, though not valid: %s", GENERATION, detail)
    there = Path(model.path)
    if beside and there.is_dir():
        left = sorted(
            entry.name
            for entry in there.iterdir()
            if not (entry.name in beside or entry.name.startswith("."))
            and not entry.name.endswith(_WEIGHTS)
        )
        if left:
            _log.warning("not exported with the model: %s", ", ".join(left[:8]))


def check_changes(model: LoadedModel, changes: Changes) -> None:
    """Raise ``ModelError`` if changes are of blocks that a model has not."""
    blocks = len(model.layout.blocks)
    for block in changes:
        if not 0 <= block < blocks:
            raise ModelError(
                f"There is a mask for block {block}, but `{model.layout.prefix}` has blocks 0 to "
                f"{blocks - 1}. Use masks made for this model."
            )
