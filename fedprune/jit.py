"""Compile the CPU loops when they are first called: numba is slow to import.

A function that another one calls is compiled with it, whichever module it is in. Compiled code is
kept (see `fedprune.jit_cache`); ``NUMBA_CACHE_DIR`` has the first word on where.
"""

from collections.abc import Callable
from functools import update_wrapper
from threading import RLock
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = RLock()  # threads may call a function for the first time at once


class Compiled(Generic[P, R]):
    """A function that is compiled on its first call."""

    def __init__(self, function: Callable[P, R]) -> None:
        self._function: Any = function
        self._compiled: Callable[P, R] | None = None
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the compiled function."""
        return (self._compiled or self.compiled())(*args, **kwargs)

    def compiled(self) -> Callable[P, R]:
        """Return numba's form of the function; that of the functions it calls is made first."""
        with _LOCK:
            if self._compiled is None:
                names = self._function.__globals__
                for name in self._function.__code__.co_names:
                    if isinstance(names.get(name), Compiled):
                        names[name] = names[name].compiled()  # numba knows no other form
                self._compiled = _compile(self._function)
            return self._compiled


def jit(function: Callable[P, R]) -> Compiled[P, R]:
    """Compile a function on its first call, without the GIL, exactly as IEEE arithmetic is written.

    Falls back to compiling anew in each process where no cache folder can be written.
    """
    return Compiled(function)


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    import numba
    from numba.core import config

    before = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = "UserProvidedCacheLocator,fedprune.jit_cache.HomeCacheLocator"
    try:
        compiled: Callable[P, R] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    finally:
        config.CACHE_LOCATOR_CLASSES = before
    return compiled
