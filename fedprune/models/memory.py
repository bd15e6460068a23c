"""Out of memory, said in the words of the configuration."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedprune.errors import ModelError


@contextmanager
def explain_out_of_memory(doing: str, *keys: str) -> Iterator[None]:
    """Re-raise a device's out-of-memory error with the configuration keys that help.

    Parameters
    ----------
    doing : str
        What was going on, for example ``"pruning block 3"``.
    *keys : str
        Configuration keys to turn, the most effective first.

    Raises
    ------
    ModelError
        In place of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        knobs = ", ".join(f"`{key}`" for key in keys)
        detail = str(error).partition("\n")[0]
        raise ModelError(
            f"Out of memory while {doing}: {detail} Lower or change one of: {knobs}."
        ) from error
