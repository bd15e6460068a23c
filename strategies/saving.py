"""When to put the sums of an exchange under way on the disk: often, and never at much cost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST_SECONDS = 5.0
"""Time between two savings of sums, at least."""

_SHARE = 20  # the time between two is so many times what one takes


class SavePace:
    """Tells when sums are worth saving again.

    Parameters
    ----------
    clock : Callable
        Seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether so much would be lost that saving it costs little in comparison."""
        return self._clock() - self._last >= max(LEAST_SECONDS, _SHARE * self._cost)

    def reset(self) -> None:
        """Begin to count anew: nothing would be lost now."""
        self._last = self._clock()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure what the body of the `with` statement, which saves sums, costs."""
        begun = self._clock()
        yield
        self._last = self._clock()
        self._cost = self._last - begun
