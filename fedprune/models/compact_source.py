"""The weights of a model in compact form, decoded one by one when they are asked for."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedprune.errors import WireError
from fedprune.models.compact_index import CompactIndex, damaged
from fedprune.models.layout import DecoderLayout, LinearRef, find_layout
from fedprune.models.weights import Stored, raw_bytes
from fedprune.wire.compact import decode_weight, decode_weight_mask
from fedprune.wire.masks import BitMask

_Decoded = TypeVar("_Decoded")


@dataclass(frozen=True)
class CompactWeights:
    """A model's tensors in a compact folder.

    Parameters
    ----------
    folder : Path
        The folder.
    index : CompactIndex
        What it holds.
    places : Mapping[str, Stored]
        Name -> place of the tensor, packed or as it is.
    linears : Mapping[str, LinearRef]
        Name of the weight -> linear map.
    like : Mapping[str, Tensor]
        Name in the model's state -> tensor of the type that the model computes in.
    tied : Mapping[str, str]
        Name -> name of the tensor that it shares.
    """

    folder: Path
    index: CompactIndex
    places: Mapping[str, Stored]
    linears: Mapping[str, LinearRef]
    like: Mapping[str, Tensor]
    tied: Mapping[str, str]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the model's state.

        Raises
        ------
        ModelError
            If its bytes are not those that were written.
        """
        stored, dtype = self.tied.get(name, name), self.like[name].dtype
        if stored in self.index.packed:
            dense = self._decoded(decode_weight, stored).dense()
            return self.linears[stored].orient(dense).contiguous().to(dtype)
        found = self.places[stored].map()
        if checksum(found) != self.index.checksums[stored]:
            raise damaged(self.folder, f"'{stored}' has another CRC-32")
        return found.to(dtype)

    def stored_name(self, name: str) -> str:
        """Return the name itself: the form has the names of the model's state."""
        return name

    def mask(self, name: str) -> BitMask:
        """Return the mask of a packed weight, (d_out, d_in); errors as :meth:`tensor`."""
        return self._decoded(decode_weight_mask, name)

    def _decoded(
        self, decode: Callable[[memoryview, tuple[int, int]], _Decoded], name: str
    ) -> _Decoded:
        try:
            return decode(raw_bytes(self.places[name].map()), self.linears[name].shape)
        except WireError as error:
            raise damaged(self.folder, f"'{name}': {error}") from error

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to read the tensors' files ahead."""
        for name in names:
            self.places[self.tied.get(name, name)].prefetch()


def open_compact(
    folder: Path, places: Mapping[str, Stored], model: PreTrainedModel
) -> CompactWeights:
    """Return the weights of a compact folder, which may come from anyone.

    Parameters
    ----------
    folder : Path
        The folder.
    places : Mapping[str, Stored]
        Name -> place of all tensors in its files.
    model : PreTrainedModel
        The architecture; its weights are not looked at.

    Raises
    ------
    ModelError
        If the index is of another format or version or damaged, or the tensors are not those of
        the index and of the architecture.
    """
    like, tied = model.state_dict(), model.all_tied_weights_keys
    index = CompactIndex.read(folder)
    if set(index.packed) & set(index.checksums):
        raise damaged(folder, "its index names a tensor twice")
    _same(folder, {*index.packed, *index.checksums}, set(places), "its index and its files")
    wanted = {name for name in like if name not in tied}
    _same(folder, wanted, set(places), "its config.json and its index")
    linears = named_linears(find_layout(model))
    for name, place in places.items():
        if name in index.packed:
            fits = name in linears and place.dtype == torch.uint8 and len(place.shape) == 1
        else:
            fits = place.shape == tuple(like[name].shape)
        if not fits:
            raise damaged(folder, f"'{name}' has type {place.dtype} and shape {place.shape}")
    return CompactWeights(folder, index, places, linears, like, tied)


def named_linears(layout: DecoderLayout) -> dict[str, LinearRef]:
    """Return name in the model's state -> linear map of every prunable weight."""
    return {
        layout.parameter_name(block, name): linear
        for block in range(len(layout.blocks))
        for name, linear in layout.linears(block).items()
    }


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(raw_bytes(tensor))


def _same(folder: Path, first: set[str], second: set[str], what: str) -> None:
    if first != second:
        odd = sorted(first ^ second)
        raise damaged(folder, f"{what} differ in {', '.join(odd[:3])}")
