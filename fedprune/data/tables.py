"""Rows of tables that the library `datasets` reads: CSV, Parquet, Arrow, and what it saved itself.

Files are streamed, so no copy of private texts comes to lie in a cache.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedprune.errors import DataError

_BUILDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
TABLE_SUFFIXES = tuple(_BUILDERS)
SAVED_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What `save_to_disk` writes beside the rows."""


def table_rows(file: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a table; DataError, which quotes none, if it cannot be read."""
    from datasets import load_dataset  # takes a second, and only tables need it

    builder, options = _BUILDERS[file.suffix.lower()]
    try:
        yield from load_dataset(
            builder, data_files=str(file), split="train", streaming=True, **options
        )
    except Exception as error:  # many types, of many libraries; a parser's message shows rows
        raise _unreadable(f"'{file}'", error) from None


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` made of a data set, or of several splits."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def saved_rows(folder: Path, split: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of one split of a saved data set; of the only one whatever it is called.

    Raises DataError if it cannot be read, or has several splits and not this one.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        raise _unreadable(f"'{folder}'", error) from None
    if isinstance(found, DatasetDict):
        chosen = found.get(split, next(iter(found.values())) if len(found) == 1 else None)
        if chosen is None:
            names = ", ".join(repr(name) for name in found)
            raise DataError(
                f"The data set '{folder}' has the splits {names}, not '{split}'. Write data=hub "
                "data.path=FOLDER data.split=NAME.",
                outside=f"The data set there has no split '{split}'.",
            )
        found = chosen
    yield from found


def _unreadable(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} cannot be read as a table ({type(error).__name__}). Write it anew, or as JSON "
        "lines.",
        outside="A table of its texts cannot be read. The node's own log says which.",
    )
