"""Collect replies that come in parcels, one node's at a time in each place of the window."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fedprune.errors import ReplyRefusedError
from fedprune.flower.replies import SHORT_REPLY_BYTES
from fedprune.records import joined, read_parcel, read_sizes
from strategies.outcome import Outcome


@dataclass
class _Collected:
    first: Message
    sizes: dict[int, int]
    parts: list[bytes]
    so_far: Outcome

    @property
    def missing(self) -> int:
        return sum(self.sizes.values()) - sum(map(len, self.parts))


@dataclass
class ParcelJoiner:
    """Asks for parcel after parcel and hands out one whole reply.

    Parameters
    ----------
    form : str
        The format of the replies.
    parcel_bytes : int
        Bytes of a parcel, the last one excepted.
    most_bytes : int
        The most bytes that a whole reply can have, known from the model.
    fetch : Callable[[int, int], Message]
        (node id, number of the parcel) -> the request for it.
    """

    form: str
    parcel_bytes: int
    most_bytes: int
    fetch: Callable[[int, int], Message]
    _collected: dict[int, _Collected] = field(default_factory=dict)

    @property
    def reply_bytes(self) -> int:
        """The most bytes of a message: of a parcel, or of a reply that fits into one."""
        return min(self.most_bytes, self.parcel_bytes) + SHORT_REPLY_BYTES

    def take(self, outcome: Outcome) -> Outcome | Message:
        """Return the outcome of the whole reply, or the request for its next parcel."""
        started = self._collected.pop(outcome.node_id, None)
        total = outcome.after(started.so_far if started else None)
        if outcome.reply is None:
            return total
        try:
            return self._next(outcome.reply, started, total)
        except ReplyRefusedError as error:
            return replace(total, reply=None, problem=str(error))

    def _next(
        self, reply: Message, started: _Collected | None, total: Outcome
    ) -> Outcome | Message:
        if started is None:
            sizes = read_sizes(reply)
            if sizes is None:
                return total
            if sum(sizes.values()) > self.most_bytes:
                raise ReplyRefusedError(
                    f"its reply can have {self.most_bytes} bytes at most, it announces "
                    f"{sum(sizes.values())}."
                )
            started = _Collected(reply, sizes, [], total)
        expected = min(self.parcel_bytes, started.missing)
        started.parts.append(read_parcel(reply, self.form, expected))
        started.so_far = total
        if started.missing:
            self._collected[total.node_id] = started
            return self.fetch(total.node_id, len(started.parts))
        joined(started.first, b"".join(started.parts), started.sizes, self.form)
        return replace(total, reply=started.first)
