"""The frame of every strategy: handshake, rounds over chunks of blocks, local evaluation.

Flower's own `start` holds all replies of a round in memory and knows one kind of round. This one
streams: each reply is folded in and dropped. Subclasses say how a chunk's replies are folded.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedprune.config import RunConfig, to_yaml
from fedprune.errors import ReplyRefusedError
from fedprune.records import LocalResult, read_local, request
from fedprune.reporting.laps import lap
from fedprune.reporting.ledger import Entry, Ledger
from fedprune.wire.update import encode_update
from strategies.block import BlockResult
from strategies.cohort import Cohort
from strategies.exchange import exchange
from strategies.handshake import Client, Handshake
from strategies.participation import client_weights, take_part
from strategies.plan import Plan
from strategies.progress import evaluating, pruning, show

PRUNE = "train.prune"
EVALUATE_LOCAL = "evaluate.local"


class FederatedPruning(Strategy):
    """A strategy that prunes block by block and streams replies.

    Parameters
    ----------
    config : RunConfig
        The checked configuration, sent to every node.
    plan : Plan
        The public model's shapes, hashes and weights.
    on_block : Callable[[BlockResult], None]
        Told of each aggregated block; it must put it on disk, since nothing here keeps it.
    ledger : Ledger
        Gets an entry for every request and reply.

    Attributes
    ----------
    cohort : Cohort
        The clients; empty before the handshake.
    local : dict[str, LocalResult]
        Client's name -> what it measured on its own pruned model.
    seconds : dict[str, float]
        How long "handshake", "prune" and "local" took.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        on_block: Callable[[BlockResult], None],
        ledger: Ledger,
    ) -> None:
        self.config = config
        self.plan = plan
        self.ledger = ledger
        self.cohort = Cohort([], self.ledger)
        self.local: dict[str, LocalResult] = {}
        self.seconds: dict[str, float] = {}
        self._iterative = config.schedule.name == "iterative"
        self.chunks = plan.chunks(1 if self._iterative else config.schedule.blocks_per_message)
        self._update: bytes | None = None  # the block before, where clients hear of it
        self._on_block = on_block
        self._config_yaml = to_yaml(config)

    @abstractmethod
    def open_chunk(self, blocks: range) -> None:
        """Prepare to fold the replies for ``blocks``."""

    @abstractmethod
    def fold(self, message: Message, entry: Entry) -> Entry:
        """Fold one reply in and return its ledger entry, completed.

        Raises
        ------
        ReplyRefusedError
            If the reply is wrong in any way; then nothing of it has been folded.
        """

    @abstractmethod
    def close_chunk(self) -> Iterator[BlockResult]:
        """Yield the aggregated blocks of the chunk, one at a time."""

    def start(  # noqa: PLR0913 - Flower's signature
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run handshake, one round a chunk of blocks, and the local evaluation if asked for.

        The arguments after ``grid`` are Flower's and not used: no arrays leave the server, the
        number of rounds follows from the model, time-outs from the configuration.

        Returns
        -------
        Result
            Metrics by round; what was pruned went to ``on_block``.

        Raises
        ------
        QuorumError
            If fewer than `strategy.min_clients` nodes remain. Blocks already aggregated have
            been handed to ``on_block``.
        """
        self.summary()
        result = Result()
        with lap(self.seconds, "handshake"):
            clients = take_part(self._handshake(grid), self.config)
            self.cohort = Cohort(clients, self.ledger, client_weights(clients, self.config))
        log(INFO, "taking part: %s", ", ".join(client.name for client in clients))
        with lap(self.seconds, "prune"):
            self._prune(grid, result)
        if self.config.evaluation.local_only:
            with lap(self.seconds, "local"):
                self._evaluate(grid, result)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build this round's requests: the next chunk of blocks, to every active client.

        With the iterative schedule they bring what became of the block before.
        """
        blocks = self.chunks[server_round - 1]
        return self._requests(
            PRUNE, server_round, self._update, start=blocks.start, stop=blocks.stop
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Fold a round's replies in as they arrive, then aggregate its blocks."""
        used: set[int] = set()
        for message in replies:
            client = self.cohort.sender(message)
            if client is None:
                continue
            if client.node_id in used:
                problem = "it has already answered this round."
                self.cohort.refuse(client, server_round, "prune", problem)
                continue
            try:
                entry = self.fold(message, self.cohort.entry(client, server_round, "prune"))
            except ReplyRefusedError as error:
                self.cohort.refuse(client, server_round, "prune", str(error))
                self.cohort.leave_out(client)
            else:
                used.add(client.node_id)
                self.ledger.add(entry)
        self.cohort.check_quorum(len(used), self.config.strategy.min_clients)
        for done in self.close_chunk():
            self._on_block(done)
            if self._iterative:
                self._update = encode_update(done.updates, self.config.pruner.pattern)
        return None, MetricRecord({"clients": len(used)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every active client for the perplexity of its own pruned model."""
        return self._requests(EVALUATE_LOCAL, server_round)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Collect the clients' own perplexities; a missing one does not stop the run."""
        for message in replies:
            client = self.cohort.sender(message)
            if client is None:
                continue
            try:
                self.local[client.name] = read_local(message)
            except ReplyRefusedError as error:
                self.cohort.refuse(client, server_round, "evaluate", str(error))
            else:
                self.ledger.add(self.cohort.entry(client, server_round, "evaluate"))
        return MetricRecord({"clients": len(self.local)})

    def summary(self) -> None:
        """Log what will happen."""
        config = self.config
        log(
            INFO,
            "%s, %s: %s to sparsity %g (%s), %d blocks in %d messages each, at least %d clients",
            type(self).__name__,
            config.schedule.name,
            config.pruner.name,
            config.sparsity,
            config.pruner.pattern,
            len(self.plan.shapes),
            len(self.chunks),
            config.strategy.min_clients,
        )

    def _prune(self, grid: Grid, result: Result) -> None:
        for number, blocks in enumerate(self.chunks, start=1):
            self.open_chunk(blocks)
            messages = self.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
            replies = self._replies(
                grid, messages, number, pruning(blocks, len(self.plan.shapes), self.ledger)
            )
            _, metrics = self.aggregate_train(number, replies)
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics

    def _evaluate(self, grid: Grid, result: Result) -> None:
        number = len(self.chunks) + 1
        messages = self.configure_evaluate(number, ArrayRecord(), ConfigRecord(), grid)
        replies = self._replies(grid, messages, number, evaluating)
        metrics = self.aggregate_evaluate(number, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[number] = metrics

    def _handshake(self, grid: Grid) -> list[Client]:
        strategy = self.config.strategy
        handshake = Handshake(
            plan=self.plan,
            config_yaml=self._config_yaml,
            ledger=self.ledger,
            min_clients=strategy.min_clients,
            wait=strategy.wait,
            timeout=strategy.timeout,
            window=self._window(),
        )
        show("connect", 0, 1, "waiting for nodes")
        clients = handshake.run(
            grid, lambda done, total: show("handshake", done, total, "nodes have answered")
        )
        return clients

    def _window(self) -> int:
        largest = max(sum(map(self.plan.block_bytes, chunk)) for chunk in self.chunks)
        largest = max(largest, len(self._update or b""))
        return self.plan.window(self.config.strategy.window, largest)

    def _requests(
        self, kind: str, server_round: int, update: bytes | None = None, **values: int
    ) -> Iterator[Message]:
        timeout, group = self.config.strategy.timeout, f"round-{server_round}"
        for client in self.cohort.active:
            content = request(self._config_yaml, update, server_round=server_round, **values)
            yield Message(content, client.node_id, kind, ttl=timeout, group_id=group)

    def _replies(
        self,
        grid: Grid,
        messages: Iterable[Message],
        server_round: int,
        report: Callable[[int, int], None],
    ) -> Iterator[Message]:
        asked = {client.node_id: client for client in self.cohort.active}
        phase = "prune" if server_round <= len(self.chunks) else "evaluate"
        outcomes = exchange(
            grid, messages, window=self._window(), timeout=self.config.strategy.timeout
        )
        report(0, len(asked))
        for answered, outcome in enumerate(outcomes, start=1):
            self.cohort.note(outcome)
            if outcome.reply is not None:
                yield outcome.reply
            else:
                client = asked[outcome.node_id]
                self.cohort.refuse(client, server_round, phase, outcome.problem)
                self.cohort.leave_out(client)
            report(answered, len(asked))
