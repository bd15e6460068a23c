"""How many bytes a pruned model takes, in the forms in which it is kept.

Zeros in a dense file take as much room as any other number: pruning alone makes no file smaller.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fedprune.errors import ModelError
from fedprune.models.export import SIDECAR
from fedprune.models.sidecar import sidecar_metadata, sidecar_shapes
from fedprune.models.weights import index_files
from fedprune.wire.masks import popcount


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of a model folder's weights; None for a form that it does not have."""

    # safetensors files as they lie there: zeros written out, quantised weights packed
    dense: int | None = None
    masks: int | None = None  # the sidecar with a bit a prunable weight
    # by count: all weights if each pruned matrix were its mask and the values that survive, nothing
    # packed any further
    bits_and_values: int | None = None

    def to_dict(self) -> dict[str, int]:
        """Return the forms that there are as plain JSON values."""
        return {form: size for form, size in asdict(self).items() if size is not None}


def model_sizes(folder: Path) -> ModelSizes:
    """Measure a model folder.

    `folder`: with safetensors files, and `fedprune/masks.safetensors` if the model was pruned here.
    Raises ModelError if one of these files is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    sidecar = folder / SIDECAR
    if not sidecar.is_file():
        return ModelSizes(dense=size)
    item = _item_bytes(sidecar)
    shapes = sidecar_shapes(sidecar)
    saved = 0
    for name, bits in index_files([sidecar]).items():
        pruned = math.prod(shapes[name]) - popcount(bits.map().numpy())
        saved += pruned * item - bits.nbytes
    values = sum(weight.nbytes for weight in index_files(files).values())
    return ModelSizes(dense=size, masks=sidecar.stat().st_size, bits_and_values=values - saved)


def _item_bytes(sidecar: Path) -> int:
    """Return the bytes of one prunable weight."""
    model = sidecar_metadata(sidecar).get("model")
    name = model.get("dtype") if isinstance(model, dict) else None
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(
            f"Mask sidecar '{sidecar}' does not say what type the model's weights have, got "
            f"'{name}'. Export the model again."
        )
    return dtype.itemsize
