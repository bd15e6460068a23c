"""The coordinate median of clients' mean squares: what a few clients claim does not move it far.

Yin et al., Byzantine-robust distributed learning, ICML 2018 (arXiv 1803.01498), Definition 1. One
client that scales its sums decides over a plain sum. Against fewer than half of all clients each
column's median stays between what honest clients sent. The price: it is no sum. The server keeps
what each client sent of a block, and the result is not that of all texts in one place. Where nobody
sees a client's answer it is the median of the means of cohorts, which holds against bad clients in
fewer than half of the cohorts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.state import Arrays
from fedprune.methods.sums import SumsPool, mean_squares
from fedprune.wire.sums import ExactSums, InputSums


class MedianPool(SumsPool):
    """The mean squares of one input, of each client or of each of several cohorts.

    Every client counts the same, whatever its tokens; one without any does not count. Of an even
    number the mean of the two in the middle is taken, in float64. The order of arrival does not
    show.
    """

    def __init__(self) -> None:
        super().__init__("clients")
        self._rows: list[NDArray[np.float32]] = []
        self._width = 0

    def add(self, sums: InputSums) -> None:
        """Add one client's sums; WireError if they are of another input than those before."""
        self._width = self._width or sums.sums.size
        self._check_input(sums, self._width)
        self._linears = sums.linears
        if sums.tokens:
            self._rows.append(mean_squares(sums, scaled=False))
        self._tokens = min(len(self._rows), 1)
        self.seen += sums.tokens
        self._sums = None  # made when somebody asks

    def add_cohort(self, sums: SumsPool) -> None:
        """Add the mean of what several clients know, each of which counts the same in it.

        ``sums``: of 'clients'.
        """
        squares, clients = sums._exact().to_float64(), sums._tokens
        self._width, self._linears = squares.size, sums._linears
        if clients:
            self._rows.append((squares / clients).astype(np.float32))
        self._tokens = min(len(self._rows), 1)
        self.seen += sums.seen
        self._sums = None

    def _exact(self) -> ExactSums:
        if self._sums is None and self._linears:
            self._sums = ExactSums(self._width)
            if self._rows:
                middle = np.median(np.stack(self._rows).astype(np.float64), axis=0)
                self._sums.add(middle.astype(np.float32))
        return super()._exact()

    def state(self) -> Arrays:
        """Return what clients sent as arrays."""
        if self._linears:
            self._exact()
        return super().state() | ({"rows": np.stack(self._rows)} if self._rows else {})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is not a pool's."""
        super().restore(arrays)
        self._width = arrays["low"].size if "low" in arrays else 0
        self._rows = list(arrays["rows"]) if "rows" in arrays else []
