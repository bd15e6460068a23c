"""Pool what clients know of one input.

Any statistic adds up; sums of squares do so by tokens, by clients, or by what stands out in each.
All three add float32 numbers or exact sums without rounding, so that the order in which clients
arrive does not show.

The coordinate median of clients' mean squares, which a few clients do not move far, is that of Yin
et al., Byzantine-robust distributed learning, ICML 2018 (arXiv 1803.01498), Definition 1. One
client that scales its sums decides over a plain sum. Against fewer than half of all clients each
column's median stays between what honest clients sent. The price: it is no sum. The server keeps
what each client sent of a block, and the result is not that of all texts in one place. Where nobody
sees a client's answer it is the median of the means of cohorts, which holds against bad clients in
fewer than half of the cohorts.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.errors import ConfigError, QuorumError, WireError
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, Words, pair, roomy
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.statistics import ColumnStatistics, Statistic, StatisticKind
from fedprune.wire.sums import BITS, LIMIT, ExactSums, InputSums

_LARGEST = np.nextafter(np.float32(LIMIT), np.float32(0))

Pooling = Literal["tokens", "clients", "scaled"]


class StatisticPool:
    """A statistic of one input, of any kind, added up over clients.

    `kind`: reads what clients send, and adds it up.
    """

    def __init__(self, kind: StatisticKind[Any], width: int) -> None:
        self._kind = kind
        self._width = width
        self._total: Statistic | None = None

    def read(self, arrays: Mapping[str, NDArray[Any]], tokens: int) -> Statistic:
        """Return a client's statistic for :meth:`add`; WireError if it cannot be one."""
        if tokens < 0:
            raise WireError(f"A statistic is of zero tokens or more, got {tokens}.")
        found: Statistic = self._kind.read(arrays, self._width, tokens)
        return found if tokens else self._example(0)  # whatever is said of none does not count

    def add(self, found: Statistic) -> None:
        """Add a client's statistic; one of no tokens changes nothing."""
        if self._total is None or not self._total.tokens:
            self._total = found
        elif found.tokens:
            self._total = self._kind.add(self._total, found)

    @property
    def seen(self) -> int:
        """The tokens of all clients."""
        return self._total.tokens if self._total is not None else 0

    def layout(self, width: int) -> Layout:
        """Return the words that a client's statistic is; TypeError unless the kind is exact."""
        if not self._kind.exact:
            raise TypeError(f"'{self._kind.name}' is no sum of integers.")
        arrays = self._kind.arrays(self._example())
        words = {name: WordSpec(array.size, 64) for name, array in arrays.items()}
        return {**words, "tokens": WordSpec(1, 64)}

    def words(self, found: Statistic, clients: int) -> Words:
        """Return a client's statistic as words; `WireError` if the sum of so many could overflow.

        Numbers that add up keep a sign, and room for all clients.
        """
        known = found if found.tokens else self._example(0)
        arrays = {**self._kind.arrays(known), "tokens": np.array([known.tokens])}
        return {
            name: roomy(array, clients, f"{self._kind.name}.{name}")
            for name, array in arrays.items()
        }

    def read_total(self, total: Mapping[str, NDArray[Any]]) -> Statistic:
        """Return the statistic of sums of words, for :meth:`add`; WireError if it cannot be one."""
        arrays = self._kind.arrays(self._example())
        (tokens,) = (int(n) for n in total["tokens"].view(np.int64))
        sums = {name: total[name].view(np.int64).reshape(arrays[name].shape) for name in arrays}
        return self.read(sums, tokens)

    def _example(self, tokens: int = 1) -> Statistic:
        """Return the statistic of inputs that are zero."""
        empty = self._kind.start(self._width)
        if tokens:
            empty.add(torch.zeros(tokens, self._width))
        found: Statistic = empty.close()
        return found

    def result(self) -> Statistic:
        """Return the statistic of all clients' tokens.

        Raises QuorumError if no client was added.
        """
        if self._total is None:
            raise QuorumError("No client sent a statistic of this input: there is nothing to pool.")
        return self._total

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        if self._total is None:
            return {}
        return {**self._kind.arrays(self._total), "tokens": numbers(self._total.tokens)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError, ValueError or WireError if that is another's."""
        if arrays:
            (tokens,) = (int(n) for n in arrays["tokens"])
            rest = {name: arrays[name] for name in arrays if name != "tokens"}
            self._total = self.read(rest, tokens)


class SumsPool:
    """Running sums of squares of one input over clients.

    'tokens' adds them up as they are: exactly the sums of all clients' texts in one place.
    'clients' adds each client's mean squares, so that a client counts the same whatever its
    tokens. 'scaled' adds its mean squares as multiples of their own mean over columns, so that no
    client counts more for larger activations either.

    `mode`: `strategy.pooling`. A client without a token, of an expert for instance, never counts.
    `seen`: tokens of all clients, whatever the mode. Raises ConfigError if the mode is another.
    """

    def __init__(self, mode: str) -> None:
        if mode not in get_args(Pooling):
            raise ConfigError(
                f"`strategy.pooling` must be one of 'tokens', 'clients', 'scaled', got '{mode}'."
            )
        self.mode = mode
        self._linears: tuple[str, ...] = ()
        self._sums: ExactSums | None = None
        self._tokens = 0
        self.seen = 0

    def add(self, sums: InputSums) -> None:
        """Add one client's sums, of the same input as those before."""
        pooled = self._exact() if self._linears else ExactSums(sums.sums.size)
        if self.mode == "tokens":
            pooled.merge(sums.sums)
        elif sums.tokens:
            pooled.add(mean_squares(sums, scaled=self.mode == "scaled"))
        self._linears, self._sums = sums.linears, pooled
        self._tokens += sums.tokens if self.mode == "tokens" else min(sums.tokens, 1)
        self.seen += sums.tokens

    @staticmethod
    def layout(width: int) -> Layout:
        """Return the words that a client's sums of so many columns are."""
        return {"sums": WordSpec(width, BITS), "counts": WordSpec(2, 64)}

    def words(self, sums: InputSums, clients: int) -> Words:
        """Return a client's sums as they are pooled; `WireError` if so many could overflow."""
        own = SumsPool(self.mode)
        own.add(sums)
        high, low = own._exact().words()
        if int(high.max(initial=0)) >= (1 << 64) // clients - 1:
            raise WireError(
                f"the sums of the input of {' '.join(sums.linears)} are too large to be added up "
                f"over {clients} clients."
            )
        return {"sums": pair(high, low), "counts": numbers(own._tokens, own.seen)}

    def add_total(self, linears: tuple[str, ...], total: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums of clients' words in place of their sums; nothing was added before."""
        self._tokens, self.seen = (int(n) for n in total["counts"])
        self._linears = linears
        low, high = total["sums"].T
        self._sums = ExactSums.from_words(high.copy(), low.copy())

    def total(self) -> float:
        """Return the sum over the columns of what was added, rounded."""
        return float(self._exact().to_float64().sum())

    def _exact(self) -> ExactSums:
        if self._sums is None:
            raise QuorumError("No client sent sums of this input, so there is nothing to pool.")
        return self._sums

    def result(self) -> tuple[NDArray[np.float32], int]:
        """Return the pooled sums, float32 of shape (d_in,), and the tokens that they stand for.

        Unless pooled by tokens each client stands for one. Where no client had a token both are
        zero. Raises QuorumError if no client was added.
        """
        return self._exact().to_float32(), self._tokens

    def statistic(self) -> ColumnStatistics:
        """Return :meth:`result` as a statistic, with the sums before they were rounded."""
        sums, tokens = self.result()
        return ColumnStatistics(torch.from_numpy(sums), tokens, self._sums)

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        found = {"counts": numbers(self._tokens, self.seen)}
        if self._sums is None:
            return found
        high, low = self._sums.words()
        linears = np.frombuffer("\0".join(self._linears).encode(), dtype=np.uint8)
        return {**found, "high": high, "low": low, "linears": linears}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is not a pool's."""
        self._tokens, self.seen = (int(n) for n in arrays["counts"])
        if "linears" in arrays:
            self._linears = tuple(arrays["linears"].tobytes().decode().split("\0"))
            self._sums = ExactSums.from_words(arrays["high"], arrays["low"])


def weighed_sums(weighed: Iterable[tuple[InputSums, float]]) -> ColumnStatistics:
    """Return the sum of clients' sums of one input, each multiplied by a factor, in float64.

    With factors of 1 it is pooling by tokens, to the bit.
    """
    known = list(weighed)
    if all(factor == 1.0 for _, factor in known):
        pool = SumsPool("tokens")
        for sums, _ in known:
            pool.add(sums)
        return pool.statistic()
    parts = np.stack([factor * sums.sums.to_float64() for sums, factor in known])
    squares = np.minimum(parts.sum(axis=0), _LARGEST).astype(np.float32)
    return ColumnStatistics(torch.from_numpy(squares), sum(sums.tokens for sums, _ in known))


def mean_squares(sums: InputSums, scaled: bool) -> NDArray[np.float32]:
    """Return a client's mean square of each column, or their proportion to the columns' mean."""
    squares = sums.sums.to_float64()
    scale = squares.mean() if scaled else sums.tokens
    if not scale:  # all inputs are zero: their proportions are unknown
        return np.zeros(squares.size, dtype=np.float32)
    # Above this exact sums take nothing; they saturate likewise.
    return np.minimum(squares / scale, _LARGEST).astype(np.float32)


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
        """Add one client's sums, of the same input as those before."""
        self._width, self._linears = sums.sums.size, sums.linears
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
