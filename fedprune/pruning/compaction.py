"""The smaller model that a model with units of zeros is: the same outputs, narrower matrices.

Which key of a configuration says how many units there are is found by trying too: of those that
have the right number now, the one that makes all matrices come out right.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.changes import Changes
from fedprune.models.loading import LoadedModel
from fedprune.models.reshape import Reshape, check_shapes
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.structured import unit_pruner, units_kept
from fedprune.pruning.units import Units, find_units
from fedprune.wire.changes import mask_of

_UNSET = ("n_inner", "ffn_hidden_size")  # widths that follow from others until they are given


def narrowed_config(model: LoadedModel, units: Units, kept: int) -> dict[str, object]:
    """Return the keys of a model's configuration, and their values, that leave fewer units.

    Raises ModelError if the architecture has no such shape: saying what its matrices would be.
    """
    found, why = _loadable(model, units, kept)
    if found is not None:
        return found
    others = (*range(kept - 1, 0, -1), *range(kept + 1, units.count)) if units.size > 1 else ()
    other = next((one for one in others if _loadable(model, units, one)[0] is not None), None)
    raise ModelError(
        f"{type(model.model).__name__} cannot have {kept} units in front of `{units.linear}` where "
        f"it has {units.count}, so that nothing would load the result: {why} "
        + ("" if other is None else f"It can have {other}: sparsity={1 - other / units.count:g}. ")
        + "Remove whole blocks, or use a pruner of single weights, such as wanda."
    )


@dataclass(frozen=True)
class Narrowing:
    """How a run that removes units makes a model narrower."""

    model: LoadedModel
    units: Units  # those of every block
    values: Mapping[str, object]  # keys of the configuration and their new values

    @property
    def summary(self) -> str:
        """What goes, in a clause."""
        sizes = ", ".join(f"{key} {value}" for key, value in self.values.items())
        return f"units in front of {self.units.linear} removed from every block: {sizes}"

    def reshape(self, changes: Changes) -> Reshape:
        """Return how the model loses the units that its changes made zeros of."""
        return _reshape(self.model, self.units, self.values, _Kept(self.units, changes))


def plan_narrowing(model: LoadedModel, pruner: Pruner, sparsity: float) -> Narrowing | None:
    """Return how a model will become narrower, None where a pruner removes no units.

    Raises ModelError if it has no such units, none would go, or nothing would load the result.
    """
    structured = unit_pruner(pruner)
    if structured is None:
        return None
    units = find_units(model, structured.structure)
    kept = units_kept(units, sparsity, structured.multiple)
    return Narrowing(model, units, narrowed_config(model, units, kept))


class _Kept(Mapping[int, NDArray[np.int64]]):
    """Block -> the units that remain in it; looked up in the changes one block at a time."""

    def __init__(self, units: Units, changes: Changes) -> None:
        self._units, self._changes = units, changes
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, block: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != block:
            mask = mask_of(self._changes[block][self._units.linear]).to_bool()
            living = np.asarray(mask.any(axis=0))
            self._last = block, np.flatnonzero(living[self._units.columns].any(axis=1))
        return self._last[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


def _loadable(model: LoadedModel, units: Units, kept: int) -> tuple[dict[str, object] | None, str]:
    """Return the keys that leave so many units, or None and why there are none."""
    why = ""
    every = {block: np.arange(kept) for block in range(len(model.layout.blocks))}
    for values in _candidates(model, units, kept):
        try:
            check_shapes(model, _reshape(model, units, values, every))
            return values, ""
        except ModelError as error:
            why = why or str(error)
    return None, why or "no key of its configuration says how many there are."


def _candidates(model: LoadedModel, units: Units, kept: int) -> Iterator[dict[str, object]]:
    """Yield what may be the keys, the most telling first."""
    config = model.model.config.get_text_config()
    table = config.to_dict()
    if units.size == 1:
        own = [key for key, value in table.items() if value == units.count and type(value) is int]
        for key in sorted(own, key=lambda key: ("inter" not in key and "ffn" not in key, key)):
            yield {key: kept}
        for key in (one for one in _UNSET if one in table and table[one] is None):
            yield {key: kept}
        return
    heads, shared = config.num_attention_heads, units.count
    if heads % shared:
        return
    sizes: dict[str, object] = {"num_attention_heads": heads // shared * kept}
    grouped = getattr(config, "num_key_value_heads", None)
    if grouped is not None:
        sizes["num_key_value_heads"] = grouped * kept // shared
    yield {**sizes, "head_dim": units.size // (heads // shared)}
    yield sizes


def _reshape(
    model: LoadedModel,
    units: Units,
    values: Mapping[str, object],
    kept: Mapping[int, NDArray[np.int64]],
) -> Reshape:
    prefix, refs = f"{model.layout.prefix}.", model.layout.linears(0)
    outputs = {refs[name].key: (name, rows) for name, rows in units.producers.items()}
    biases = {f"{name}.bias": rows for name, rows in units.producers.items()}
    after = refs[units.linear]

    def cut(name: str, tensor: Tensor) -> Tensor:
        number, _, inside = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or inside not in {after.key, *outputs, *biases}:
            return tensor
        numbers = kept[int(number)]
        if inside == after.key:
            return after.orient(after.orient(tensor)[:, _chosen(units.columns, numbers)])
        if inside in biases:
            return tensor[_chosen(biases[inside], numbers)]
        linear, rows = outputs[inside]
        ref = refs[linear]
        return ref.orient(ref.orient(tensor)[_chosen(rows, numbers)])

    return Reshape(config=values, tensors=cut)


def _chosen(places: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
    """Return the rows or columns of some units, in the order in which they are stored."""
    return torch.from_numpy(np.sort(places[numbers].reshape(-1)))
