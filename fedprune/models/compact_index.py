"""The index of a model folder in compact form.

Besides configuration and tokenizer such a folder holds ``compact-00001.safetensors`` and so on, and
``compact.index.json``. It names the files; the weights that are packed as
:mod:`fedprune.wire.compact` has it, and whether their masks were in a sidecar; and every other
tensor, which lies there as it is, with the CRC-32 of its bytes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeVar

from fedprune.errors import ModelError
from fedprune.models.folder import COMPACT_INDEX

_Value = TypeVar("_Value", bool, int)

_FORMAT = "fedprune-compact"
_VERSION = 1
_FILE = re.compile(r"compact-\d{5}\.safetensors")
_MOST_BYTES = 100_000_000  # as many as the header of a safetensors file may have


@dataclass(frozen=True)
class CompactIndex:
    """What a compact folder holds.

    Parameters
    ----------
    files : Sequence[str]
        Names of its safetensors files.
    packed : Mapping[str, bool]
        Name of each packed weight -> whether its mask was in a sidecar.
    checksums : Mapping[str, int]
        Name of each other tensor -> CRC-32 of its bytes.
    """

    files: Sequence[str]
    packed: Mapping[str, bool]
    checksums: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Write the index into a folder."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        (folder / COMPACT_INDEX).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the index of a folder that may come from anyone.

        Raises
        ------
        ModelError
            If it is damaged, or of another format or version.
        """
        path = folder / COMPACT_INDEX
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too long")
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("it is not a table")
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(folder, f"'{COMPACT_INDEX}' cannot be read: {error}") from error
        for key, expected in (("format", _FORMAT), ("version", _VERSION)):
            if content.get(key) != expected:
                raise ModelError(
                    f"'{path}': `{key}` must be {expected!r}, got {content.get(key)!r}. "
                    "Read it with the release of fedprune that wrote it."
                )
        files = content.get("files")
        # A name leads nowhere but into the folder.
        if not isinstance(files, list) or not files or not all(map(_is_file_name, files)):
            raise damaged(folder, "`files` does not list compact-00001.safetensors and so on")
        packed = _table(folder, content, "packed", bool)
        checksums = _table(folder, content, "checksums", int)
        return cls(files, packed, checksums)


def is_compact_file(path: Path) -> bool:
    """Return whether a file is named like those of the compact form."""
    return _is_file_name(path.name)


def damaged(folder: Path, what: str) -> ModelError:
    """Return the error for a compact folder that contradicts itself."""
    way_out = "Copy or export it again."
    return ModelError(
        f"The compact model '{folder}' is damaged: {what}. {way_out}",
        outside=f"The compact model is damaged: {what}. {way_out}",
    )


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and _FILE.fullmatch(name) is not None


def _table(
    folder: Path, content: Mapping[str, object], key: str, kind: type[_Value]
) -> dict[str, _Value]:
    table = content.get(key)
    if not isinstance(table, dict) or not all(type(value) is kind for value in table.values()):
        raise damaged(folder, f"`{key}` is not a table of {kind.__name__}")
    return table
