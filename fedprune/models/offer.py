"""A model that a server sends to nodes that lack it: read from its files parcel by parcel."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedprune.errors import ModelError
from fedprune.models.compact_index import is_compact_file
from fedprune.models.folder import COMPACT_INDEX, SAFETENSORS, SAFETENSORS_INDEX
from fedprune.models.hub_files import weight_files
from fedprune.models.transfer import SMALL_FILES, Manifest, ModelFile, may_travel

_PIECE = 1 << 20
_THREADS = 4


@dataclass(frozen=True)
class Offer:
    """What a server has to give.

    Attributes
    ----------
    manifest : Manifest
        The files and their hashes.
    paths : Mapping[str, Path]
        Name -> where the file lies.
    """

    manifest: Manifest
    paths: Mapping[str, Path]

    @classmethod
    def of(cls, source: str, revision: str | None, parcel_bytes: int) -> Self:
        """Hash a model that has been loaded; no more than a piece of each file is in memory.

        Parameters
        ----------
        source : str
            Its folder, or its id on the Hub.
        revision : str or None
            Of a Hub id.
        parcel_bytes : int
            Most bytes of a parcel.

        Raises
        ------
        ModelError
            If it is not in safetensors files.
        """
        paths = _files(source, revision)
        names = sorted(paths, key=lambda name: (name not in SMALL_FILES, name))
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            files = threads.map(lambda name: _hashed(name, paths[name], parcel_bytes), names)
            return cls(Manifest(parcel_bytes, tuple(files)), paths)

    def parcel(self, number: int) -> bytes:
        """Return the bytes of a parcel."""
        place = self.manifest.parcels[number]
        with self.paths[place.file.name].open("rb") as file:
            file.seek(place.start)
            return file.read(place.size)


def _files(source: str, revision: str | None) -> dict[str, Path]:
    """Return name -> place of the files that a node needs to load a model."""
    weights = weight_files(source, revision)
    odd = next((path.name for path in weights if not may_travel(path.name)), None)
    if not weights or odd is not None:
        what = f"'{odd}' among its weights" if odd else "no safetensors weights"
        raise ModelError(
            f"`model.source` must be 'local' with the model '{source}', which has {what}: nodes "
            "take nothing that could run code when it is opened. Write it anew with "
            "save_pretrained(FOLDER), or copy it to every node: model.source=local."
        )
    # What the loader has just read lies beside the weights, also in the Hub's cache.
    folder = weights[0].parent
    unwanted = {SAFETENSORS_INDEX, COMPACT_INDEX}
    if is_compact_file(weights[0]):
        unwanted.remove(COMPACT_INDEX)
    elif weights[0].name != SAFETENSORS:
        unwanted.remove(SAFETENSORS_INDEX)
    small = {name: folder / name for name in SMALL_FILES - unwanted}
    found = {name: path for name, path in small.items() if path.is_file() and path.stat().st_size}
    return found | {path.name: path for path in weights}


def _hashed(name: str, path: Path, parcel_bytes: int) -> ModelFile:
    whole, size = hashlib.sha256(), 0
    parcels: list[str] = []
    with path.open("rb") as file:
        while True:
            part, left = hashlib.sha256(), parcel_bytes
            while left and (data := file.read(min(left, _PIECE))):
                whole.update(data)
                part.update(data)
                left -= len(data)
            if left == parcel_bytes:
                return ModelFile(name, size, whole.hexdigest(), tuple(parcels))
            parcels.append(part.hexdigest())
            size += parcel_bytes - left
