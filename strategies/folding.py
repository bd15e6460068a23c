"""Read, check and fold the replies of one chunk."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from flwr.app import Message

from fedprune.errors import ReplyRefusedError, WireError
from fedprune.records import Order, PruneReply, read_prune
from fedprune.reporting.ledger import Entry, Ledger
from strategies.cohort import Cohort
from strategies.handshake import Client


class Folder(Protocol):
    """What folding needs of a strategy."""

    form: str
    cohort: Cohort
    ledger: Ledger

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a reply about a block can take."""
        ...

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Fold one reply in, or refuse it whole."""
        ...

    def entry(self, client: Client, reply: PruneReply) -> Entry:
        """Return the ledger entry of a reply that was used."""
        ...


def fold_all(
    strategy: Folder, replies: Iterable[Message], orders: Mapping[int, Order], step: int
) -> set[int]:
    """Fold replies as they arrive; a client whose reply is refused is left out.

    Parameters
    ----------
    strategy : Folder
        Folds.
    replies : Iterable[Message]
        In the order of arrival.
    orders : Mapping[int, Order]
        Node id -> what it was asked for.
    step : int
        The ledger's round.

    Returns
    -------
    set of int
        The nodes whose replies were used.
    """
    used: set[int] = set()
    cohort = strategy.cohort
    for message in replies:
        client = cohort.sender(message)
        if client is None:
            continue
        order = orders.get(client.node_id)
        if order is None or client.node_id in used:
            problem = "it has already answered this round." if order else "it was not asked."
            cohort.refuse(client, step, "prune", problem)
            continue
        try:
            most = {block: strategy.block_bytes(block) for block in order.blocks}
            reply = read_prune(message, order.blocks, most, strategy.form)
            strategy.fold(reply, client)
        except (ReplyRefusedError, WireError) as error:
            cohort.refuse(client, step, "prune", str(error))
            cohort.leave_out(client)
        else:
            used.add(client.node_id)
            strategy.ledger.add(strategy.entry(client, reply))
    return used
