"""Where a run's time goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lap(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note in ``seconds[name]`` how long the body of the `with` statement took."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - started
