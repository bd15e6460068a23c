"""Where a run's time goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Timings:
    """Seconds by name, over all processes that a run takes.

    `before`: what earlier processes of the run measured.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._done = dict(before or {})
        self._running: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add how long the body of the `with` statement takes."""
        self._running[name] = time.monotonic()
        try:
            yield
        finally:
            self._done[name] = self.seconds[name]
            del self._running[name]

    @property
    def seconds(self) -> dict[str, float]:
        """Name -> seconds up to now; what is still running counts too."""
        now = time.monotonic()
        running = {n: self._done.get(n, 0.0) + now - begun for n, begun in self._running.items()}
        return {**self._done, **running}
