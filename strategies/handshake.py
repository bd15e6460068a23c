"""Ask every node who it is, and take only those that hold the same model and run the same code."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from logging import INFO, WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import RunConfig, to_yaml
from fedprune.errors import QuorumError, ReplyRefusedError
from fedprune.flower.replies import SHORT_REPLY_BYTES, ReplyLimits
from fedprune.methods.public_model import PublicModel
from fedprune.records import NodeReport, read_report, request
from fedprune.results.ledger import Entry, Ledger
from fedprune.results.text import size_text
from strategies.cohort import Client, Partitions
from strategies.delivery import PHASE, Delivery, Sent
from strategies.exchange import Again, Outcome, exchange
from strategies.messages import MESSAGE_BYTES, window_for

HANDSHAKE = "query.handshake"
_POLL_SECONDS = 0.1
_SAMPLE_BYTES = 32  # a sample's name, and what separates it from the next


@dataclass
class Handshake:
    """Collects nodes until all that are expected have answered."""

    model: PublicModel  # what every node must match
    config: RunConfig  # the run's, sent with the request
    ledger: Ledger  # gets one entry a node
    window: int  # requests under way at once (`strategy.window`)
    job: str  # the run's key, the group of every message
    # nodes to wait for where they are more than `strategy.min_clients`: those of a run that goes on
    expected: int = 0

    def run(
        self,
        grid: Grid,
        answered: Callable[[int, int], None],
        sent: Sent = lambda held, total: None,
    ) -> list[Client]:
        """Return the clients that take part, in the order of their partitions.

        `answered`: told after each answer: how many have answered, and of how many. `sent`: told of
        segments of the model, where nodes get it from here. Raises QuorumError if fewer than
        `strategy.min_clients` nodes connect in time or pass.
        """
        least = self.config.strategy.min_clients
        deadline = time.monotonic() + self.config.strategy.wait
        asked: set[int] = set()
        clients: dict[int, Client] = {}
        lacking: dict[int, NodeReport] = {}
        said, number = Partitions(), count(1)

        def admit(outcome: Outcome) -> None:
            report = self._admit(outcome, clients, lacking)
            if report is not None:
                said.note(report)
            expected = max(least, self.expected, said.most)
            answered(next(number), max(expected, len(asked)))

        while True:
            # Looked at before the nodes: who connects in time while others answer, or are sent
            # the model, is asked as well.
            last = time.monotonic() > deadline
            # A list of nodes may be empty or partial while nodes are still connecting.
            fresh = sorted(set(grid.get_node_ids()) - asked)
            asked.update(fresh)
            lacking.clear()
            self._ask(grid, fresh, admit)
            self._bring_model(grid, lacking, clients, sent)
            expected = max(least, self.expected, said.most)
            if len(asked) >= expected or last:
                break
            time.sleep(_POLL_SECONDS)
        said.warn()
        self._check_quorum(len(asked), len(clients))
        return [clients[partition] for partition in sorted(clients)]

    def _ask(self, grid: Grid, node_ids: Iterable[int], ended: Callable[[Outcome], object]) -> None:
        offer, strategy = self.model.offer, self.config.strategy
        values = {"model": offer.manifest.digest} if offer else {}
        content = request(to_yaml(self.config), None, **values)
        messages = (
            Message(content, node_id, HANDSHAKE, ttl=strategy.timeout, group_id=self.job)
            for node_id in node_ids
        )
        again = Again(rejoin=strategy.rejoin)
        gate = ReplyLimits(
            SHORT_REPLY_BYTES + _SAMPLE_BYTES * self.config.pruner.num_calibration_samples,
            lambda strays: self.ledger.add_strays(0, "handshake", strays),
        )
        waiting, window = strategy.timeout, self.window
        for _ in exchange(
            grid, messages, window=window, timeout=waiting, ended=ended, again=again, gate=gate
        ):
            pass

    def _bring_model(
        self,
        grid: Grid,
        lacking: Mapping[int, NodeReport],
        clients: dict[int, Client],
        sent: Sent,
    ) -> None:
        """Send the model to nodes that lack it, and ask those that have it then once more."""
        offer = self.model.offer
        if offer is None or not lacking:
            return
        log(
            INFO,
            "sending the model to %d nodes: %s in %d files, %d segments each",
            len(lacking),
            size_text(offer.manifest.size),
            len(offer.manifest.files),
            len(offer.manifest.segments),
        )
        timeout, rejoin = self.config.strategy.timeout, self.config.strategy.rejoin
        window = window_for(None, MESSAGE_BYTES)
        delivery = Delivery(offer, timeout, window, self.job, rejoin, self.ledger, sent)

        def sent_to(outcome: Outcome) -> None:
            self._enter(PHASE, lacking[outcome.node_id].name, outcome, outcome.problem)

        whole = delivery.run(grid, lacking, sent_to)
        self._ask(grid, whole, lambda outcome: self._admit(outcome, clients, {}))

    def _enter(self, phase: str, name: str, outcome: Outcome, problem: str) -> None:
        self.ledger.add(
            Entry(
                round=0,
                phase=phase,
                client=name,
                bytes_down=outcome.bytes_down,
                bytes_up=outcome.bytes_up,
                round_trip_seconds=outcome.seconds,
                refused=problem,
            )
        )
        if problem:
            log(WARNING, "%s is refused: %s", name, problem, extra={"node": name})

    def _admit(
        self, outcome: Outcome, clients: dict[int, Client], lacking: dict[int, NodeReport]
    ) -> NodeReport | None:
        report, problem = None, outcome.problem
        if outcome.reply is not None:
            try:
                report = read_report(outcome.reply)
                problem = self._problem(report, clients)
            except ReplyRefusedError as error:
                problem = str(error)
        name = report.name if report else f"node {outcome.node_id}"
        self._enter("handshake", name, outcome, problem)
        if report is not None and report.warnings:
            log(WARNING, "%s: %s", name, report.warnings, extra={"node": name})
        if problem or report is None:
            return report
        if report.lacks_model:
            lacking[outcome.node_id] = report
        else:
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
        if report.code_hash != self.model.code_hash:
            return (
                f"it runs other sources of fedprune: {report.code_hash[:16]} there, "
                f"{self.model.code_hash[:16]} here. Start Flower from a folder without a "
                "'client_app' package and use the same release everywhere."
            )
        if report.lacks_model:
            return "" if self.model.offer else "it lacks the model, which is not sent from here."
        for what, theirs, ours in (
            ("weights", report.weights_hash, self.model.weights_hash),
            ("configuration", report.config_hash, self.model.config_hash),
        ):
            if theirs != ours:
                return (
                    f"its model's {what} differ: fingerprint {theirs[:16]} there, {ours[:16]} here "
                    f"(there: {report.versions}). Point `model.path`, or 'model-path' in the "
                    "node's --node-config, at the same model and revision."
                )
        return ""

    def _check_quorum(self, asked: int, accepted: int) -> None:
        least, wait = self.config.strategy.min_clients, self.config.strategy.wait
        if accepted >= least:
            return
        if asked == 0:
            raise QuorumError(
                f"no node connected within {wait:g} s (`strategy.wait`). In a simulation ask "
                "for at least one with --federation-config 'num-supernodes=2'; in a deployment "
                "start the SuperNodes first."
            )
        advice = "Start more of them, wait longer (`strategy.wait`), or ask for fewer."
        if accepted < asked:
            advice = f"Latest refusals: {self.ledger.reasons()}"
        raise QuorumError(
            f"{accepted} of {asked} nodes can take part, `strategy.min_clients` asks for "
            f"{least}. {advice}"
        )
