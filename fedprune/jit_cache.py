"""Where numba keeps the code that `fedprune.jit` compiles; imported with numba, late.

Flower unpacks an app into a new folder whenever any of its files changed, and a deployed node
starts a process per message. numba's own cache lies beside the source, so it would be cold after
every change of a configuration file. Here it lies in the home folder and is found by the hash of
the name and source of a function's module and of those of the compiled functions it calls, which
become part of it.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba.core.caching import UserWideCacheLocator

from fedprune.disk import home


class HomeCacheLocator(UserWideCacheLocator):  # type: ignore[misc]
    """Put compiled code under ``home()/numba``, by the content of the files it comes from."""

    def __init__(self, py_func: Callable[..., object], py_file: str) -> None:
        """Choose the folder; numba then checks that it can write there."""
        super().__init__(py_func, py_file)
        # Compiled code names its module: one that has moved with the same content is another.
        sources = sorted({(py_func.__module__, py_file), *_called(py_func)})
        contents = b"".join(name.encode() + Path(file).read_bytes() for name, file in sources)
        self._cache_path = str(home() / "numba" / hashlib.sha256(contents).hexdigest()[:16])


def _called(function: Any) -> Iterator[tuple[str, str]]:
    """Yield module and file of the compiled functions that a function calls, and they in turn."""
    for name in function.__code__.co_names:
        called = getattr(function.__globals__.get(name), "py_func", None)
        if called is not None:
            yield called.__module__, called.__code__.co_filename
            yield from _called(called)
