"""A pruned model as an ordinary Hugging Face folder, written block by block.

The folder is written beside its final place and renamed once it is complete on the disk, so a
reader never meets half a model.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedprune.disk import new_folder
from fedprune.errors import ModelError
from fedprune.models.changes import Changes, Recalled, changed_tensors
from fedprune.models.loading import LoadedModel
from fedprune.models.sidecar import write_sidecar
from fedprune.models.weights import SHARD_BYTES, TensorForm, write_model
from fedprune.wire.changes import mask_of

#: Where an export keeps its masks. Not beside the weights: servers that load a folder's every
#: ``*.safetensors`` would take them for a shard.
SIDECAR = Path("fedprune", "masks.safetensors")


def export_model(model: LoadedModel, changes: Changes, folder: Path) -> None:
    """Write a model as a Hugging Face folder, pruned, with its masks in a sidecar.

    One block of the model is in memory at a time.

    Parameters
    ----------
    model : LoadedModel
        The dense model; unchanged.
    changes : Mapping[int, Mapping[str, BitMask or LinearUpdate or SparseWeight]]
        Block -> linear -> what becomes of it; asked for block by block.
    folder : Path
        Where the model goes: sharded safetensors with real zeros, configuration, tokenizer and
        :data:`SIDECAR`.

    Raises
    ------
    ModelError
        If the folder exists and is not empty, cannot be written, or the changes are another
        model's.
    """
    _check_blocks(model, changes)
    masks = Recalled(
        sorted(changes), lambda block: {n: mask_of(c) for n, c in changes[block].items()}
    )
    with new_folder(folder) as partial:
        _write_weights(model, changes, partial)
        _write_configuration(model, partial)
        (partial / SIDECAR).parent.mkdir()
        write_sidecar(partial / SIDECAR, masks, model.layout.prefix)


def _write_weights(model: LoadedModel, changes: Changes, folder: Path) -> None:
    """Write every tensor once; the blocks lie side by side, so one is pruned at a time."""
    state, tied = model.model.state_dict(), model.model.all_tied_weights_keys
    kept = sorted((name for name in state if name not in tied), key=lambda n: _block(model, n))
    names = {model.source.stored_name(name): name for name in kept}
    forms = [TensorForm.of(stored, state[name]) for stored, name in names.items()]
    ready: dict[int, Mapping[str, Tensor]] = {}

    def tensor(stored: str) -> Tensor:
        name = names[stored]
        block = _block(model, name)
        if block not in changes:
            return model.tensor(name)
        if block not in ready:
            ready.clear()
            dense = model.block_tensors(block)
            ready[block] = changed_tensors(model.layout, block, dense, changes[block])
            model.prefetch(block + 1)
        return ready[block][name.removeprefix(f"{model.layout.prefix}.{block}.")]

    write_model(folder, forms, tensor, SHARD_BYTES)


def _block(model: LoadedModel, name: str) -> int:
    """Return the block that a tensor belongs to, -1 if to none."""
    inside = name.removeprefix(f"{model.layout.prefix}.")
    return int(inside.partition(".")[0]) if inside != name else -1


def _write_configuration(model: LoadedModel, folder: Path) -> None:
    config = model.model.config
    config.architectures = [type(model.model).__name__]
    config.save_pretrained(folder)
    generation = model.model.generation_config
    if generation is not None:
        try:
            generation.validate(strict=True)
        except ValueError:
            # Old checkpoints: what a temperature or top_p without sampling was meant for.
            generation.do_sample = True
        generation.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _check_blocks(model: LoadedModel, changes: Changes) -> None:
    blocks = len(model.layout.blocks)
    for block in changes:
        if not 0 <= block < blocks:
            raise ModelError(
                f"There is a mask for block {block}, but `{model.layout.prefix}` has blocks 0 to "
                f"{blocks - 1}. Use masks made for this model."
            )
