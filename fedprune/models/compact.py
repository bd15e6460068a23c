"""Model folders in compact form: about a third of a dense one's size at half the weights zero.

The model that comes out is the one that went in, bit for bit. Prunable matrices are packed by
:mod:`fedprune.wire.compact`, everything else stays as it is. The form is for keeping and sending:
fedprune alone reads it.
"""

import shutil
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedprune.config.schema import ModelConfig
from fedprune.disk import new_folder
from fedprune.errors import ModelError
from fedprune.models.changes import Recalled
from fedprune.models.compact_index import CompactIndex
from fedprune.models.compact_source import CompactWeights, checksum, named_linears
from fedprune.models.export import SIDECAR, export_model
from fedprune.models.folder import COMPACT_INDEX
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.packing import in_order, pack_weight, write_shards
from fedprune.models.sidecar import read_sidecar
from fedprune.wire.masks import BitMask

_COMPANIONS = (".json", ".jinja", ".md", ".model", ".txt")
_LICENSES = ("LICENSE", "NOTICE")


def companions(folder: Path) -> list[Path]:
    """Return what lies beside a model's weights: configuration, tokenizer, card, licence."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in _COMPANIONS or path.name in _LICENSES)
        and not path.name.endswith(".index.json")
    ]


def write_compact(source: Path, folder: Path) -> None:
    """Write a model in compact form.

    Parameters
    ----------
    source : Path
        A Hugging Face model folder. The masks of its sidecar are kept; without one, a weight is
        pruned where it is zero.
    folder : Path
        A new folder.

    Raises
    ------
    ModelError
        If the model cannot be loaded or is in compact form already, or the folder is taken or
        cannot be written.
    """
    loaded = load_model(_config(source))
    if isinstance(loaded.source, CompactWeights):
        raise ModelError(f"'{source}' is in compact form already. Copy it.")
    sidecar = read_sidecar(source / SIDECAR) if (source / SIDECAR).is_file() else {}
    masks = {
        loaded.layout.parameter_name(block, linear): mask
        for block, named in sidecar.items()
        for linear, mask in named.items()
    }
    linears = named_linears(loaded.layout)
    names = [name for name in loaded.names() if name not in loaded.model.all_tied_weights_keys]
    packed: dict[str, bool] = {}
    checksums: dict[str, int] = {}

    def form(name: str) -> Tensor:
        tensor = loaded.tensor(name)
        found = pack_weight(linears[name], tensor, masks.get(name)) if name in linears else None
        if found is None:
            checksums[name] = checksum(tensor)
            return tensor
        data, packed[name] = found
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    with new_folder(folder) as partial:
        files = write_shards(partial, in_order(form, names))
        CompactIndex(files, packed, checksums).write(partial)
        _copy_companions(source, partial)


def write_dense(source: Path, folder: Path) -> None:
    """Write a model in compact form as an ordinary folder again, with the sidecar it had.

    Parameters
    ----------
    source : Path
        What :func:`write_compact` made.
    folder : Path
        A new folder.

    Raises
    ------
    ModelError
        If the compact form is damaged, or the folder is taken or cannot be written.
    """
    loaded, weights = _open(source)
    masked: dict[int, list[str]] = {}
    for block in range(len(loaded.layout.blocks)):
        for linear in loaded.layout.linears(block):
            if weights.index.packed.get(loaded.layout.parameter_name(block, linear)):
                masked.setdefault(block, []).append(linear)

    @lru_cache(maxsize=1)  # asked for with each tensor of the block
    def masks(block: int) -> dict[str, BitMask]:
        names = {linear: loaded.layout.parameter_name(block, linear) for linear in masked[block]}
        return {linear: weights.mask(name) for linear, name in names.items()}

    export_model(loaded, Recalled(list(masked), masks), folder)
    _copy_companions(source, folder)


def load_compact(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model from its compact form.

    Parameters
    ----------
    folder : str or Path
        What `fedprune export --compact` made.

    Returns
    -------
    PreTrainedModel
        In evaluation mode, on the CPU; the dense model bit for bit.
    PreTrainedTokenizerBase
        Its tokenizer.

    Raises
    ------
    ModelError
        If the folder is not in compact form, or damaged.
    """
    loaded, _ = _open(Path(folder))
    model = loaded.model
    # Copies: what is not packed is mapped, and a model outlives its files.
    state = {name: tensor.clone() for name, tensor in in_order(loaded.tensor, loaded.names())}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model, loaded.tokenizer


def _config(folder: Path) -> ModelConfig:
    return ModelConfig(name="hf", path=str(folder), revision=None, dtype="auto")


def _open(folder: Path) -> tuple[LoadedModel, CompactWeights]:
    loaded = load_model(_config(folder))
    if not isinstance(loaded.source, CompactWeights):
        raise ModelError(
            f"'{folder}' is no model in compact form, it has no '{COMPACT_INDEX}'. "
            "AutoModelForCausalLM.from_pretrained loads ordinary folders."
        )
    return loaded, loaded.source


def _copy_companions(source: Path, folder: Path) -> None:
    for path in companions(source):
        try:
            shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise ModelError(f"'{path}' cannot be copied to '{folder}': {error}.") from error
