"""The safetensors files of a model, in a folder or fetched from the Hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from fedprune.models.compact_index import CompactIndex, damaged
from fedprune.models.folder import (
    COMPACT_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    is_local,
    shard_names,
)


def weight_files(source: str, revision: str | None) -> list[Path]:
    """Return the files that hold a model's weights; none if it is not stored as safetensors.

    Parameters
    ----------
    source : str
        A folder or a Hub id.
    revision : str or None
        Of a Hub id; None is its main branch.

    Raises
    ------
    OSError
        If the Hub cannot be reached.
    ModelError
        If the index of several files is damaged.
    """
    whole = _file(source, revision, SAFETENSORS)
    if whole is not None:
        return [whole]
    index = _file(source, revision, SAFETENSORS_INDEX)
    if index is None:
        return _compact(source, revision)
    files = [_file(source, revision, name) for name in sorted(shard_names(index))]
    return [path for path in files if path is not None]


def _compact(source: str, revision: str | None) -> list[Path]:
    """Return the files of a model in compact form; none if it is not in that form."""
    index = _file(source, revision, COMPACT_INDEX)
    if index is None:
        return []
    found = []
    for name in CompactIndex.read(index.parent).files:
        path = _file(source, revision, name)
        if path is None:
            raise damaged(index.parent, f"'{name}' is missing")
        found.append(path)
    return found


def _file(source: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a model, None if the model has no such file."""
    if is_local(source):
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None
