"""How many bytes a pruned model takes, in the forms in which it is kept.

Zeros in a dense file take as much room as any other number: pruning alone makes no file smaller.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from fedprune.models.export import SIDECAR
from fedprune.models.weights import index_files
from fedprune.wire.masks import popcount


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of a model folder's weights; None for a form that it does not have.

    Attributes
    ----------
    dense : int or None
        Safetensors files with zeros written out.
    masks : int or None
        The sidecar with a bit a prunable weight.
    bits_and_values : int or None
        By count: all weights if each pruned matrix were its mask and the values that survive,
        nothing packed any further.
    """

    dense: int | None = None
    masks: int | None = None
    bits_and_values: int | None = None

    def to_dict(self) -> dict[str, int]:
        """Return the forms that there are as plain JSON values."""
        return {form: size for form, size in asdict(self).items() if size is not None}


def model_sizes(folder: Path) -> ModelSizes:
    """Measure a model folder.

    Parameters
    ----------
    folder : Path
        With safetensors files, and `fedprune/masks.safetensors` if the model was pruned here.

    Raises
    ------
    ModelError
        If one of these files is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    sidecar = folder / SIDECAR
    if not sidecar.is_file():
        return ModelSizes(dense=size)
    stored, saved = index_files(files), 0
    for name, bits in index_files([sidecar]).items():
        weight = stored[name]
        survivors = popcount(bits.map().numpy())
        saved += weight.nbytes - survivors * weight.dtype.itemsize - bits.nbytes
    values = sum(weight.nbytes for weight in stored.values())
    return ModelSizes(dense=size, masks=sidecar.stat().st_size, bits_and_values=values - saved)
