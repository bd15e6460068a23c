"""Compile the CPU loops once per version of their source, wherever the package is installed.

Flower unpacks an app into a new folder whenever any of its files changed, and a deployed node
starts a process per message. numba's own cache lies beside the source, so it would be cold after
every change of a configuration file. Here it lies in the home folder and is found by the module's
name and the hash of its source and of that of the compiled functions it imports, which become
part of it. ``NUMBA_CACHE_DIR`` still has the first word.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import numba
from numba.core import config
from numba.core.caching import UserWideCacheLocator
from numba.core.dispatcher import Dispatcher

from fedprune.disk import home

P = ParamSpec("P")
R = TypeVar("R")


class HomeCacheLocator(UserWideCacheLocator):  # type: ignore[misc]
    """Put compiled code under ``home()/numba``, by the content of the module it comes from."""

    def __init__(self, py_func: Callable[..., object], py_file: str) -> None:
        """Choose the folder; numba then checks that it can write there."""
        super().__init__(py_func, py_file)
        sources = sorted({py_file, *_compiled_from(py_func)})
        contents = b"".join(Path(source).read_bytes() for source in sources)
        self._cache_path = str(home() / "numba" / hashlib.sha256(contents).hexdigest()[:16])


def _compiled_from(function: Callable[..., object]) -> Iterator[str]:
    """Yield the files of the compiled functions that a function's module has."""
    for found in getattr(function, "__globals__", {}).values():
        if isinstance(found, Dispatcher):
            yield found.py_func.__code__.co_filename


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function on first use, without the GIL, exactly as IEEE arithmetic is written.

    Falls back to compiling anew in each process where no cache folder can be written.
    """
    before = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = ",".join(
        ("UserProvidedCacheLocator", f"{__name__}.{HomeCacheLocator.__name__}")
    )
    try:
        compiled: Callable[P, R] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    finally:
        config.CACHE_LOCATOR_CLASSES = before
    return compiled
