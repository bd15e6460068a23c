"""Who works on which blocks next, and where each client goes on from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedprune.records import Order
from strategies.handshake import Client
from strategies.plan import MESSAGE_BYTES


@dataclass
class OrderBook:
    """The orders of one round over all blocks.

    Parameters
    ----------
    iterative : bool
        Whether a client stays at its block until it hears what became of it.
    positions : dict[int, int]
        Partition -> the block where its client goes on; changed by :meth:`note`.
    """

    iterative: bool
    positions: dict[int, int]

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
                resume = self.positions.get(client.partition, 0)
                last = final and mine[-1] == own[-1]
                found[client.node_id] = Order(mine, resume, last, MESSAGE_BYTES)
        return found

    def note(self, client: Client, order: Order) -> None:
        """Remember where a client stands that followed its order."""
        self.positions[client.partition] = order.blocks[-1] + (0 if self.iterative else 1)
