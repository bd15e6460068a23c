"""Where numba keeps the code that `fedprune.jit` compiles; imported with numba, late.

Flower unpacks an app into a new folder whenever any of its files changed, and a deployed node
starts a process per message. numba's own cache lies beside the source, so it would be cold after
every change of a configuration file. Here it lies in the home folder and is found by the hash of
a function's source file and of those of the compiled functions it calls, which become part of it.
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
        sources = sorted({py_file, *_called(py_func)})
        contents = b"".join(Path(source).read_bytes() for source in sources)
        self._cache_path = str(home() / "numba" / hashlib.sha256(contents).hexdigest()[:16])


def _called(function: Any) -> Iterator[str]:
    """Yield the source files of the compiled functions that a function calls, and they in turn."""
    for name in function.__code__.co_names:
        called = getattr(function.__globals__.get(name), "py_func", None)
        if called is not None:
            yield called.__code__.co_filename
            yield from _called(called)
