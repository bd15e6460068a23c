"""Where a run stands, how long it took, and what a strategy hands over for each block."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from numpy.typing import NDArray

from fedprune.errors import ConfigError
from fedprune.methods.collection import BlockStatistics
from fedprune.methods.exchange import BlockResult
from fedprune.records import LocalResult, NodeReport
from fedprune.wire.changes import Change


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


@dataclass
class RunState:
    """Where a run stands; changed by its strategy as it goes."""

    # the run's key, 32 hexadecimal digits, in every request: nodes find by it what they keep
    job: str = field(default_factory=lambda: secrets.token_hex(16))
    # who takes part; empty before the handshake
    clients: list[NodeReport] = field(default_factory=list)
    # the partitions that were still asked when the latest exchange that is over began anew
    active: list[int] = field(default_factory=list)
    # those that were when the round began; its draws follow from them
    opened: list[int] = field(default_factory=list)
    # partition -> the block where its client goes on
    positions: dict[int, int] = field(default_factory=dict)
    # round, chunk, step: the round over all blocks, from 1; how many of its chunks are aggregated;
    # the ledger's round
    round: int = 1
    chunk: int = 0
    step: int = 0
    # the partitions whose replies about the next chunk are counted
    folded: list[int] = field(default_factory=list)
    # what clients hear of the block before, where the schedule is iterative
    update: bytes | None = None
    # a hash of what clients heard of the blocks before the next chunk in this round
    heard: str = ""
    secure: bytes | None = None  # the keys and shares of the run's secure sums, where it has such
    attempts: int = 0  # how often keys were asked for; each time for a plan of another name
    # the partitions whose clients have the shares of the others' secrets
    handed: list[int] = field(default_factory=list)
    # whether it is fixed, and may have been told, who is in the sums of the next chunk
    closed: bool = False
    # how many exchanges were held to fit the block that was pruned last; None: none is fitted
    fitting: int | None = None
    # what else the results tell of the strategy; plain JSON values
    figures: dict[str, Any] = field(default_factory=dict)
    # client's name -> what it measured on its own pruned model
    local: dict[str, LocalResult] = field(default_factory=dict)
    # what clients measured of the final model on their own texts
    own_texts: dict[str, Any] = field(default_factory=dict)
    # a client's public key -> the answers that it signed: block -> SHA-256 of what it sent, and the
    # signature in hexadecimal digits
    signed: dict[str, list[Any]] = field(default_factory=dict)
    over: bool = False  # whether nothing more is asked of the nodes
    timings: Timings = field(default_factory=Timings)  # the run's seconds

    def begin_round(self, number: int, active: Iterable[int]) -> None:
        """Go on to a round over all blocks."""
        self.round, self.chunk, self.update, self.heard = number, 0, None, ""
        self.opened = list(active)
        self.positions.clear()

    def end_chunk(self, active: Iterable[int]) -> None:
        """Note that a chunk's blocks are aggregated, and who is asked for the next."""
        self.chunk += 1
        self.end_exchange()
        self.active = list(active)

    def end_exchange(self) -> None:
        """Note that all answers to an exchange have become what they come to."""
        self.folded.clear()
        self.closed = False

    def to_dict(self) -> dict[str, object]:
        """Return all but ``update`` and ``secure`` as plain JSON values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        del plain["update"], plain["secure"]
        return plain | {
            "clients": [asdict(report) for report in self.clients],
            "positions": {str(partition): block for partition, block in self.positions.items()},
            "local": {name: asdict(result) for name, result in self.local.items()},
            "timings": self.timings.seconds,
        }

    @classmethod
    def from_dict(
        cls, plain: Mapping[str, Any], update: bytes | None, secure: bytes | None = None
    ) -> "RunState":
        """Undo :meth:`to_dict`; KeyError, TypeError or ValueError if that made something else."""
        return cls(
            **{
                **plain,
                "clients": [NodeReport(**report) for report in plain["clients"]],
                "positions": {int(name): int(block) for name, block in plain["positions"].items()},
                "local": {name: LocalResult(**one) for name, one in plain["local"].items()},
                "timings": Timings(plain["timings"]),
            },
            update=update,
            secure=secure,
        )


def damaged_state(detail: str) -> ConfigError:
    """Return the error for what is kept of a run and cannot be gone on from."""
    return ConfigError(
        f"`resume`: what this run's folder keeps to go on with is damaged ({detail}). Start the "
        "run anew in another folder; blocks that were aggregated are in its folder `blocks`."
    )


class Store(Protocol):
    """Where a strategy puts what it must not lose; nothing of it is kept in memory."""

    def add(self, number: int, result: BlockResult, refined: bool = False) -> None:
        """Take an aggregated block of a round; the same block may come again after a kill.

        `refined`: it came before, and has other survivors now under the same masks.
        """
        ...

    def keep(self, statistics: BlockStatistics) -> None:
        """Take what was found out of a block of the dense model, as :meth:`add`."""
        ...

    def recall(self, number: int, block: int) -> Mapping[str, Change]:
        """Return what became of a block in a round; empty if no client reported it."""
        ...

    def save(self, state: RunState, partial: Mapping[str, NDArray[Any]]) -> None:
        """Put the state on the disk, and the sums of the chunk that is being folded."""
        ...

    def partial_state(self) -> Mapping[str, NDArray[Any]]:
        """Return the sums that were saved last."""
        ...


LEAST_SECONDS = 5.0
"""Time between two savings of sums, at least."""

_SHARE = 20  # the time between two is so many times what one takes


class SavePace:
    """Tells when sums are worth saving again.

    `clock`: seconds from any origin.
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
