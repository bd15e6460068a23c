"""Read, check and fold the replies to the orders of one exchange."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message

from fedprune.errors import ReplyRefusedError, WireError
from fedprune.records import Order, PruneReply, read_prune
from strategies.cohort import Cohort
from strategies.handshake import Client

Fold = Callable[[PruneReply, Client], None]
"""Folds one reply in, or refuses it whole."""


@dataclass(frozen=True)
class Reading:
    """What replies must be, and where they are noted.

    Parameters
    ----------
    cohort : Cohort
        Who takes part, and the ledger.
    step : int
        The ledger's round.
    phase : str
        The ledger's name for the exchange.
    form : str
        The format of the replies.
    block_bytes : Callable[[int], int]
        Block -> the most bytes that a reply about it can take.
    """

    cohort: Cohort
    step: int
    phase: str
    form: str
    block_bytes: Callable[[int], int]

    def fold_all(
        self,
        replies: Iterable[Message],
        orders: Mapping[int, Order],
        fold: Fold,
        folded: Callable[[Client, Order], None] = lambda client, order: None,
    ) -> set[int]:
        """Fold replies as they arrive; a client whose reply is refused is left out.

        Parameters
        ----------
        replies : Iterable[Message]
            In the order of arrival.
        orders : Mapping[int, Order]
            Node id -> what it was asked for.
        fold : Callable[[PruneReply, Client], None]
            Raises ReplyRefusedError or WireError where a reply is wrong.
        folded : Callable[[Client, Order], None]
            Told after each reply that was used.

        Returns
        -------
        set of int
            The nodes whose replies were used.
        """
        used: set[int] = set()
        for message in replies:
            client = self.cohort.sender(message)
            if client is None:
                continue
            order = orders.get(client.node_id)
            if order is None or client.node_id in used:
                problem = "it has already answered this round." if order else "it was not asked."
                self.cohort.refuse(client, self.step, self.phase, problem)
                continue
            try:
                most = {block: self.block_bytes(block) for block in order.blocks}
                reply = read_prune(message, order.blocks, most, self.form)
                fold(reply, client)
            except (ReplyRefusedError, WireError) as error:
                self.cohort.refuse(client, self.step, self.phase, str(error))
                self.cohort.leave_out(client)
            else:
                used.add(client.node_id)
                self._note(client, reply)
                folded(client, order)
        return used

    def _note(self, client: Client, reply: PruneReply) -> None:
        entry = self.cohort.entry(client, self.step, self.phase)
        memory = reply.peak_rss_bytes, reply.peak_device_bytes
        self.cohort.ledger.add(entry.worked(reply.seconds, *memory))
