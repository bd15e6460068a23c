"""Who works on which blocks next, and where each node goes on from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedprune.records import Order
from strategies.handshake import Client
from strategies.plan import MESSAGE_BYTES


@dataclass
class OrderBook:
    """The orders of one round over all blocks.

    Parameters
    ----------
    iterative : bool
        Whether a node stays at its block until it hears what became of it.
    """

    iterative: bool
    _positions: dict[int, int] = field(default_factory=dict)

    def orders(
        self,
        clients: Sequence[Client],
        assigned: Callable[[Client], Iterable[int]],
        blocks: range,
        final: bool,
    ) -> dict[int, Order]:
        """Return node id -> what each client that works on these blocks is to do.

        Parameters
        ----------
        clients : Sequence[Client]
            Who still takes part.
        assigned : Callable[[Client], Iterable[int]]
            Client -> the blocks that it works on in this round.
        blocks : range
            The blocks whose turn it is.
        final : bool
            Whether this is the last round.
        """
        found = {}
        for client in clients:
            own = sorted(assigned(client))
            mine = tuple(block for block in own if block in blocks)
            if mine:
                resume = self._positions.get(client.node_id, 0)
                last = final and mine[-1] == own[-1]
                found[client.node_id] = Order(mine, resume, last, MESSAGE_BYTES)
        return found

    def note(self, done: Mapping[int, Order]) -> None:
        """Remember where the nodes stand that followed their orders."""
        for node_id, order in done.items():
            self._positions[node_id] = order.blocks[-1] + (0 if self.iterative else 1)
