"""The clients that still take part, and the bookkeeping of their replies."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log

from fedprune.errors import QuorumError
from fedprune.results.ledger import Entry, Ledger
from strategies.handshake import Client
from strategies.outcome import Outcome


@dataclass
class Cohort:
    """Who takes part in a run.

    Parameters
    ----------
    clients : list of Client
        Those that passed the handshake, in the order of their partitions.
    ledger : Ledger
        Gets one entry a reply, used or refused.
    weights : Mapping[int, int]
        Node id -> for how many votes its mask counts.
    """

    clients: list[Client]
    ledger: Ledger
    weights: Mapping[int, int] = field(default_factory=dict)
    _active: dict[int, Client] = field(init=False)
    _outcomes: dict[int, Outcome] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Start with everyone."""
        self._active = {client.node_id: client for client in self.clients}

    @property
    def active(self) -> list[Client]:
        """The clients that are still asked, in the order of their partitions."""
        return list(self._active.values())

    def sender(self, message: Message) -> Client | None:
        """Return the client that a reply comes from, None for a stranger or one left out."""
        client = self._active.get(message.metadata.src_node_id)
        if client is None:
            log(WARNING, "a reply from a node that takes no part is ignored")
        return client

    def note(self, outcome: Outcome) -> None:
        """Keep sizes and times of a client's latest reply, not the reply, for its ledger entry."""
        self._outcomes[outcome.node_id] = replace(outcome, reply=None)

    def entry(self, client: Client, server_round: int, phase: str, refused: str = "") -> Entry:
        """Return the ledger entry of a client's latest reply."""
        outcome = self._outcomes.get(client.node_id)
        return Entry(
            round=server_round,
            phase=phase,
            client=client.name,
            bytes_down=outcome.bytes_down if outcome else 0,
            bytes_up=outcome.bytes_up if outcome else 0,
            round_trip_seconds=outcome.seconds if outcome else 0.0,
            refused=refused,
        )

    def refuse(self, client: Client, server_round: int, phase: str, problem: str) -> None:
        """Count a reply that is not used."""
        text = "%s: reply refused in round %d: %s"
        log(WARNING, text, client.name, server_round, problem, extra={"node": client.name})
        self.ledger.add(self.entry(client, server_round, phase, problem))

    def leave_out(self, client: Client) -> None:
        """Ask a client no more in this run."""
        self._active.pop(client.node_id, None)

    def check_quorum(self, used: int, least: int) -> None:
        """Stop the run if too few replies were usable.

        Raises
        ------
        QuorumError
            If ``used`` is below ``least`` (`strategy.min_clients`).
        """
        if used < least:
            raise QuorumError(
                f"{used} clients gave a usable reply, `strategy.min_clients` asks for {least}. "
                "Blocks aggregated so far are kept in the run's folder. Latest refusals: "
                f"{self.ledger.reasons()}"
            )
