"""Ask every node who it is, and take only those that hold the same model and run the same code."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import RunConfig, to_yaml
from fedprune.errors import QuorumError, ReplyRefusedError
from fedprune.records import NodeReport, read_report, request
from fedprune.reporting.ledger import Entry, Ledger
from strategies.exchange import Outcome, exchange
from strategies.plan import Plan

HANDSHAKE = "query.handshake"
_POLL_SECONDS = 0.1


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
class Handshake:
    """Collects nodes until all that are expected have answered.

    Parameters
    ----------
    plan : Plan
        What every node must match.
    config_yaml : str
        The run's configuration, sent with the request.
    ledger : Ledger
        Gets one entry a node.
    min_clients : int
        Fewest clients to go on with (`strategy.min_clients`).
    wait : float
        Seconds to wait for nodes to connect (`strategy.wait`).
    timeout : float
        Seconds a node has to answer (`strategy.timeout`).
    window : int
        Requests under way at once (`strategy.window`).
    job : str
        The run's key, the group of every message.
    expected : int
        Nodes to wait for where they are more than ``min_clients``: those of a run that goes on.
    """

    plan: Plan
    config_yaml: str
    ledger: Ledger
    min_clients: int
    wait: float
    timeout: float
    window: int
    job: str
    expected: int = 0

    @classmethod
    def of(  # noqa: PLR0913 - the class among them
        cls, config: RunConfig, plan: Plan, ledger: Ledger, window: int, job: str, expected: int
    ) -> "Handshake":
        """Return the handshake that a configuration asks for."""
        strategy = config.strategy
        return cls(
            plan=plan,
            config_yaml=to_yaml(config),
            ledger=ledger,
            min_clients=strategy.min_clients,
            wait=strategy.wait,
            timeout=strategy.timeout,
            window=window,
            job=job,
            expected=expected,
        )

    def run(self, grid: Grid, answered: Callable[[int, int], None]) -> list[Client]:
        """Return the clients that take part, in the order of their partitions.

        Parameters
        ----------
        grid : Grid
            Flower's connection to the nodes.
        answered : Callable[[int, int], None]
            Told after each answer: how many have answered, and of how many.

        Raises
        ------
        QuorumError
            If fewer than ``min_clients`` nodes connect in time or pass.
        """
        deadline = time.monotonic() + self.wait
        asked: set[int] = set()
        clients: dict[int, Client] = {}
        expected = max(self.min_clients, self.expected)
        while True:
            # A list of nodes may be empty or partial while nodes are still connecting.
            fresh = sorted(set(grid.get_node_ids()) - asked)
            asked.update(fresh)
            for number, outcome in enumerate(self._ask(grid, fresh), start=1):
                report = self._admit(outcome, clients)
                expected = max(expected, report.num_partitions if report else 0)
                answered(len(asked) - len(fresh) + number, max(expected, len(asked)))
            if len(asked) >= expected or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        self._check_quorum(len(asked), len(clients))
        return [clients[partition] for partition in sorted(clients)]

    def _ask(self, grid: Grid, node_ids: Iterable[int]) -> Iterable[Outcome]:
        content = request(self.config_yaml)
        messages = (
            Message(content, node_id, HANDSHAKE, ttl=self.timeout, group_id=self.job)
            for node_id in node_ids
        )
        return exchange(grid, messages, window=self.window, timeout=self.timeout)

    def _admit(self, outcome: Outcome, clients: dict[int, Client]) -> NodeReport | None:
        report, problem = None, outcome.problem
        if outcome.reply is not None:
            try:
                report = read_report(outcome.reply)
                problem = self._problem(report, clients)
            except ReplyRefusedError as error:
                problem = str(error)
        name = report.name if report else f"node {outcome.node_id}"
        self.ledger.add(
            Entry(
                round=0,
                phase="handshake",
                client=name,
                bytes_down=outcome.bytes_down,
                bytes_up=outcome.bytes_up,
                round_trip_seconds=outcome.seconds,
                refused=problem,
            )
        )
        if problem:
            log(WARNING, "%s is refused: %s", name, problem)
        elif report is not None:
            clients[report.partition_id] = Client(outcome.node_id, report)
        return report

    def _problem(self, report: NodeReport, clients: dict[int, Client]) -> str:
        if report.problem:
            return report.problem
        if report.partition_id in clients:
            return (
                f"{clients[report.partition_id].name} already holds this partition. Give every "
                "node its own `partition-id` in --node-config."
            )
        if report.code_hash != self.plan.code_hash:
            return (
                f"it runs other sources of fedprune: {report.code_hash[:16]} there, "
                f"{self.plan.code_hash[:16]} here. Start Flower from a folder without a "
                "'client_app' package and use the same release everywhere."
            )
        for what, theirs, ours in (
            ("weights", report.weights_hash, self.plan.weights_hash),
            ("configuration", report.config_hash, self.plan.config_hash),
        ):
            if theirs != ours:
                return (
                    f"its model's {what} differ: fingerprint {theirs[:16]} there, {ours[:16]} here "
                    f"(there: {report.versions}). Point `model.path`, or 'model-path' in the "
                    "node's --node-config, at the same model and revision."
                )
        return ""

    def _check_quorum(self, asked: int, accepted: int) -> None:
        if accepted >= self.min_clients:
            return
        if asked == 0:
            raise QuorumError(
                f"no node connected within {self.wait:g} s (`strategy.wait`). In a simulation ask "
                "for at least one with --federation-config 'num-supernodes=2'; in a deployment "
                "start the SuperNodes first."
            )
        advice = "Start more of them, wait longer (`strategy.wait`), or ask for fewer."
        if accepted < asked:
            advice = f"Latest refusals: {self.ledger.reasons()}"
        raise QuorumError(
            f"{accepted} of {asked} nodes can take part, `strategy.min_clients` asks for "
            f"{self.min_clients}. {advice}"
        )
