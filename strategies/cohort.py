"""The clients that still take part, and the bookkeeping of their replies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from logging import INFO, WARNING
from math import ceil, gcd
from statistics import median_low

from flwr.app import Message
from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.errors import QuorumError
from fedprune.records import NodeReport
from fedprune.results.ledger import Entry, Ledger
from fedprune.seeds import derive_seed
from strategies.exchange import Outcome
from strategies.state import RunState


@dataclass(frozen=True)
class Client:
    """A node that takes part."""

    node_id: int
    report: NodeReport

    @property
    def name(self) -> str:
        """How messages and results call it."""
        return self.report.name

    @property
    def partition(self) -> int:
        """Its partition, which is the same in every process of a run."""
        return self.report.partition_id


@dataclass
class Cohort:
    """Who takes part in a run."""

    clients: list[Client]  # those that passed the handshake, in the order of their partitions
    ledger: Ledger  # gets one entry a reply, used or refused
    # node id -> for how many votes its mask counts
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

        Raises QuorumError if ``used`` is below ``least`` (`strategy.min_clients`).
        """
        if used < least:
            raise QuorumError(
                f"{used} clients gave a usable reply, `strategy.min_clients` asks for {least}. "
                "Blocks aggregated so far are kept in the run's folder. Latest refusals: "
                f"{self.ledger.reasons()}"
            )


_ABSENT = -1  # no node of Flower's has a number below 0


def gather(met: Sequence[Client], state: RunState, config: RunConfig, ledger: Ledger) -> Cohort:
    """Return the clients of a run, those that are still asked active.

    `state`: without clients a new run's, which gets them; else these take part and nobody else
    does. Raises QuorumError if fewer than `strategy.min_clients` come back.
    """
    if not state.clients:
        drawn = take_part(met, config)
        state.clients = [client.report for client in drawn]
        state.active = [client.partition for client in drawn]
        state.opened = list(state.active)
    cohort = known_cohort(met, state, config, ledger)
    for client in cohort.active:
        if client.node_id < 0:
            problem = "it has not come back with the same samples after the run was interrupted."
            cohort.refuse(client, 0, "handshake", problem)
            cohort.leave_out(client)
    log(INFO, "taking part: %s", ", ".join(client.name for client in cohort.active))
    cohort.check_quorum(len(cohort.active), config.strategy.min_clients)
    return cohort


def known_cohort(
    met: Sequence[Client], state: RunState, config: RunConfig, ledger: Ledger
) -> Cohort:
    """Return a state's clients, those with a node among ``met`` on it; parameters as above."""
    nodes = {client.partition: client for client in met}
    clients = [_returned(nodes.get(report.partition_id), report) for report in state.clients]
    cohort = Cohort(clients, ledger, client_weights(clients, config))
    for client in clients:
        if client.partition not in state.active:
            cohort.leave_out(client)
    return cohort


def _returned(met: Client | None, report: NodeReport) -> Client:
    """Return a client as it was, which decides about weights and draws, on its node of now."""
    if met is None or _samples(met.report) != _samples(report):
        return Client(_ABSENT - report.partition_id, report)
    return replace(met, report=report)


def _samples(report: NodeReport) -> tuple[int, int, str]:
    return report.samples, report.tokens, report.sample_ids


def take_part(clients: Sequence[Client], config: RunConfig) -> list[Client]:
    """Return `strategy.fraction` of the clients, rounded up, in their order.

    Never fewer than `strategy.min_clients` if there are as many. The seed and the partitions
    decide, not who answered first.
    """
    wanted = ceil(Fraction(str(config.strategy.fraction)) * len(clients))
    wanted = max(wanted, config.strategy.min_clients)

    def draw(client: Client) -> int:
        return derive_seed(config.seed, "participation", client.report.partition_id)

    drawn = {client.node_id for client in sorted(clients, key=draw)[:wanted]}
    return [client for client in clients if client.node_id in drawn]


def client_weights(clients: Sequence[Client], config: RunConfig) -> dict[int, int]:
    """Return node id -> for how many votes its mask counts, in the smallest whole numbers.

    What it counts by is what it says of itself. A client counts for no more samples than the
    configuration asks of it, and for no more than `strategy.most_weight` times the median client.
    """
    found = {client.node_id: _raw_weight(client, config) for client in clients}
    times = config.strategy.most_weight
    if found and times is not None and config.strategy.client_weights != "equal":
        most = times * median_low(found.values())
        for client in clients:
            told = found[client.node_id]
            if told > most:
                text = "%s counts for %d %s, not for %d: `strategy.most_weight` is %d"
                kind = config.strategy.client_weights
                log(WARNING, text, client.name, most, kind, told, times)
        found = {node_id: min(weight, most) for node_id, weight in found.items()}
    common = gcd(*found.values()) or 1
    return {node_id: weight // common for node_id, weight in found.items()}


def _raw_weight(client: Client, config: RunConfig) -> int:
    if config.strategy.client_weights == "equal":
        return 1
    samples = _clamped(client.report.samples, config.pruner.num_calibration_samples)
    if config.strategy.client_weights == "samples":
        return samples
    return _clamped(client.report.tokens, samples * config.pruner.seq_len)


def _clamped(value: int, most: int) -> int:
    return max(1, min(value, most))


@dataclass
class Partitions:
    """What nodes say in the handshake; those that say nothing of it do not count."""

    _said: list[tuple[str, int]] = field(default_factory=list)
    _counts: Counter[int] = field(default_factory=Counter)

    def note(self, report: NodeReport) -> None:
        """Take what a node says."""
        if report.num_partitions:
            self._said.append((report.name, report.num_partitions))
            self._counts[report.num_partitions] += 1

    @property
    def most(self) -> int:
        """The number that most nodes say, the smallest of several; 0 if none says any."""
        counts = self._counts
        return min(counts, key=lambda number: (-counts[number], number), default=0)

    def warn(self) -> None:
        """Log the nodes that say another number."""
        most = self.most
        for name, number in self._said:
            if number != most:
                log(
                    WARNING,
                    "%s says that there are %d partitions, but %d is what counts here: look at "
                    "`num-partitions` in its --node-config.",
                    name,
                    number,
                    most,
                    extra={"node": name},
                )
