"""Running sums as named arrays, so that a run that was killed can go on with them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""Name -> array; what :meth:`Keepable.state` returns shares memory with the sums."""


class Keepable(Protocol):
    """Sums that can be kept and taken up again."""

    def state(self) -> Arrays:
        """Return all that was added so far."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned, into sums that are made alike and still empty.

        Raises KeyError or ValueError if the arrays are not those of such sums.
        """
        ...


def gathered(parts: Mapping[str, Keepable]) -> Arrays:
    """Return the states of several sums, each name behind that of its part."""
    return {
        f"{part}/{name}": array
        for part, sums in parts.items()
        for name, array in sums.state().items()
    }


def scattered(arrays: Mapping[str, NDArray[Any]], parts: Mapping[str, Keepable]) -> None:
    """Undo :func:`gathered`; errors as :meth:`Keepable.restore`."""
    for part, sums in parts.items():
        prefix = f"{part}/"
        # Only what belongs to it is looked up: arrays may be read from a file when they are.
        names = [name for name in arrays if name.startswith(prefix)]
        sums.restore({name.removeprefix(prefix): arrays[name] for name in names})


class CountedSums(ABC):
    """Sums with names, and how many clients are in them: what an aggregator of inputs keeps."""

    clients: int = 0

    @abstractmethod
    def parts(self) -> Mapping[str, Keepable]:
        """Return the sums by name."""

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return {"counts": numbers(self.clients), **gathered(self.parts())}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; errors as :meth:`Keepable.restore`."""
        (self.clients,) = (int(n) for n in arrays["counts"])
        scattered(arrays, self.parts())


def numbers(*values: int) -> NDArray[np.uint64]:
    """Return counts as an array."""
    return np.array(values, dtype=np.uint64)
