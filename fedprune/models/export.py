"""A pruned model as an ordinary Hugging Face folder.

The folder is written beside its final place and renamed once it is complete on the disk, so a
reader never meets half a model.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fedprune.errors import ModelError
from fedprune.models.loading import LoadedModel, progress_on_terminals_only
from fedprune.models.masking import apply_masks
from fedprune.models.sidecar import write_sidecar
from fedprune.wire.change import Change, mask_of

#: Where an export keeps its masks. Not beside the weights: servers that load a folder's every
#: ``*.safetensors`` would take them for a shard.
SIDECAR = Path("fedprune", "masks.safetensors")
_SHARD_SIZE = "5GB"


def export_model(
    model: LoadedModel, masks: Mapping[int, Mapping[str, Change]], folder: Path
) -> None:
    """Prune a model and write it as a Hugging Face folder with its masks in a sidecar.

    Parameters
    ----------
    model : LoadedModel
        The dense model; it is pruned in place and stays so.
    masks : Mapping[int, Mapping[str, BitMask or LinearUpdate or SparseWeight]]
        Block -> linear -> change, applied as :func:`~fedprune.models.masking.apply_masks` does.
    folder : Path
        Where the model goes: sharded safetensors with real zeros, configuration, tokenizer and
        :data:`SIDECAR`.

    Raises
    ------
    ModelError
        If the folder exists and is not empty, cannot be written, or the masks are another model's.
    """
    check_free(folder)
    apply_masks(model, masks)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # a killed export may have left one
        (partial / SIDECAR).parent.mkdir(parents=True)
        _make_generation_config_writable(model)
        with progress_on_terminals_only():
            model.model.save_pretrained(partial, max_shard_size=_SHARD_SIZE)
        model.tokenizer.save_pretrained(partial)
        write_sidecar(
            partial / SIDECAR,
            {
                block: {name: mask_of(change) for name, change in named.items()}
                for block, named in masks.items()
            },
            model.layout.prefix,
        )
        _share(partial)
        _flush(partial)
        os.replace(partial, folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise ModelError(
            f"The pruned model cannot be written to '{folder}': {error}. "
            "Free disk space or set `output_dir` to a writable folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raise ``ModelError`` unless a folder is missing or empty, so that no work is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            f"'{folder}' exists and is not an empty folder. "
            "Set `output_dir` to a new one, or remove it."
        )


def _make_generation_config_writable(model: LoadedModel) -> None:
    """Let old checkpoints through: their sampling options can be read, but not written as is."""
    generation = model.model.generation_config
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True  # what a temperature or top_p without it was meant for


def _share(folder: Path) -> None:
    """Let who may read the configuration read the weights: safetensors files are the owner's."""
    for path in folder.rglob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)


def _flush(folder: Path) -> None:
    """Force a folder and all in it to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
