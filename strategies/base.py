"""The frame of every strategy: handshake, survey, rounds over chunks of blocks, local evaluation.

Flower's own `start` holds all replies of a round in memory and knows one kind of round. This one
streams: each reply is folded in and dropped. Subclasses say how a chunk's replies are folded.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedprune.config import RunConfig, for_round, to_yaml
from fedprune.pruning.spec import block_specs
from fedprune.records import FORMS, LocalResult, Order, PruneReply, request
from fedprune.reporting.laps import lap
from fedprune.reporting.ledger import Ledger
from fedprune.wire.change import Change
from fedprune.wire.update import encode_update
from strategies.block import BlockResult
from strategies.cohort import Cohort
from strategies.folding import Reading
from strategies.handshake import Client, Handshake
from strategies.local import EVALUATE_LOCAL, collect_local
from strategies.orders import OrderBook
from strategies.participation import client_weights, take_part
from strategies.plan import Plan
from strategies.post import Post
from strategies.progress import announce, evaluating, greeting, pruning, show
from strategies.survey import survey


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
    recall : Callable[[int], Mapping[str, Change]]
        Block -> what was handed to ``on_block`` in the round before.

    Attributes
    ----------
    form : str
        The format of the replies.
    config : RunConfig
        The configuration now: `allocation` is resolved after the survey, `sparsity` is the
        round's.
    cohort : Cohort
        The clients; empty before the handshake.
    local : dict[str, LocalResult]
        Client's name -> what it measured on its own pruned model.
    seconds : dict[str, float]
        How long "handshake", "survey", "prune" and "local" took.
    figures : dict[str, object]
        What else the results shall tell of this strategy; plain JSON values.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        on_block: Callable[[BlockResult], None],
        ledger: Ledger,
        recall: Callable[[int], Mapping[str, Change]] = lambda block: {},
    ) -> None:
        self.config = config
        self.form = FORMS[config.strategy.name]
        self.recall = recall
        self.plan = plan
        self.ledger = ledger
        self.cohort = Cohort([], self.ledger)
        self.local: dict[str, LocalResult] = {}
        self.seconds: dict[str, float] = {}
        self.figures: dict[str, object] = {}
        if config.allocation.name != "owl":  # which follows from a survey of the clients
            block_specs(config, range(len(plan.shapes)), len(plan.shapes))
        self.iterative = config.schedule.name == "iterative"
        per_message = 1 if self.iterative else config.schedule.blocks_per_message
        self.chunks = plan.chunks(per_message, self.block_bytes)
        self._on_block = on_block
        self._update: bytes | None = None  # the block before, where clients hear of it
        self._book = OrderBook(self.iterative)
        self._step = 0  # one an exchange; the ledger's round
        self._round = 1

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a client's reply about a block can take."""
        return self.plan.mask_bytes(block)

    @abstractmethod
    def open_chunk(self, blocks: range) -> None:
        """Prepare to fold the replies for ``blocks``."""

    @abstractmethod
    def fold(self, reply: PruneReply, client: Client) -> None:
        """Fold one reply in.

        Raises
        ------
        ReplyRefusedError or WireError
            If the reply is wrong in any way; then nothing of it has been folded.
        """

    @abstractmethod
    def close_chunk(self) -> Iterator[BlockResult]:
        """Yield the aggregated blocks of the chunk, one at a time."""

    def open_round(self, number: int) -> None:
        """Prepare for a round over all blocks, 1 to `strategy.rounds`."""

    def assigned(self, client: Client) -> Iterable[int]:
        """Return the blocks that a client works on in this round."""
        return range(len(self.plan.shapes))

    def bundle(self, order: Order) -> dict[str, bytes]:
        """Return the encoded changes that go with an order."""
        return {"update": self._update} if self._update is not None and order.blocks[0] else {}

    def encode(self, done: BlockResult) -> bytes:
        """Return what clients are told of an aggregated block, where the schedule is iterative."""
        return encode_update(done.changes, self.config.pruner.pattern)

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
        """Run handshake, survey, the rounds, and the local evaluation if asked for.

        The arguments after ``grid`` are Flower's and not used: no arrays leave the server, the
        number of rounds follows from the model, time-outs from the configuration.

        Returns
        -------
        Result
            Metrics by round; what was pruned went to ``on_block``.

        Raises
        ------
        ConfigError
            If the clients cannot do what is asked, before any of them is.
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
        self.open_round(1)
        if self.config.allocation.name == "owl":
            with lap(self.seconds, "survey"):
                self._step += 1
                self.config = survey(self.post(grid), self.config, self.plan, self.figures)
        with lap(self.seconds, "prune"):
            self._rounds(grid, result)
        if self.config.evaluation.local_only:
            with lap(self.seconds, "local"):
                self._evaluate(grid, result)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build the requests for a chunk of blocks, counted from 1, to every client it is for.

        What is too long to go with them is delivered first.
        """
        orders, post = self.orders(self.chunks[server_round - 1]), self.post(grid)
        return post.requests(orders, post.deliver(orders, self.bundle))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Fold the replies for a chunk in as they arrive, then aggregate its blocks."""
        blocks = self.chunks[server_round - 1]
        asked = self.orders(blocks)
        reading = Reading(self.cohort, self._step, "prune", self.form, self.block_bytes)
        used = reading.fold_all(replies, asked, self.fold)
        self._book.note({node_id: asked[node_id] for node_id in used})
        self.cohort.check_quorum(len(self.cohort.active), self.config.strategy.min_clients)
        for done in self.close_chunk():
            self._on_block(done)
            if self.iterative:
                self._update = self.encode(done)
        return None, MetricRecord({"clients": len(used)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every active client for the perplexity of its own pruned model."""
        post = self.post(grid)
        content = request(post.config_yaml)
        return (post.message(client, EVALUATE_LOCAL, content) for client in self.cohort.active)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Collect the clients' own perplexities; a missing one does not stop the run."""
        self.local |= collect_local(replies, self.cohort, self._step)
        return MetricRecord({"clients": len(self.local)})

    def orders(self, blocks: range) -> dict[int, Order]:
        """Return node id -> what each active client that works on these blocks is to do."""
        final = self._round == self.config.strategy.rounds
        return self._book.orders(self.cohort.active, self.assigned, blocks, final)

    def post(self, grid: Grid) -> Post:
        """Return how messages are sent now."""
        return Post(
            grid=grid,
            cohort=self.cohort,
            strategy=self.config.strategy,
            config_yaml=to_yaml(self.config),
            step=self._step,
            window=self._window(),
        )

    def summary(self) -> None:
        """Log what will happen."""
        announce(type(self).__name__, self.config, len(self.plan.shapes), len(self.chunks))

    def _rounds(self, grid: Grid, result: Result) -> None:
        target = self.config
        for number in range(1, target.strategy.rounds + 1):
            self._round, self._book, self._update = number, OrderBook(self.iterative), None
            self.config = for_round(target, number)
            if number > 1:
                self.open_round(number)
            self._prune(grid, result)

    def _prune(self, grid: Grid, result: Result) -> None:
        total = len(self.plan.shapes)
        for number, blocks in enumerate(self.chunks, start=1):
            self._step += 1
            self.open_chunk(blocks)
            most = sum(map(self.block_bytes, blocks))
            post = self.post(grid)
            replies = post.replies(
                self.configure_train(number, ArrayRecord(), ConfigRecord(), grid),
                "prune",
                report=pruning(blocks, total, self.ledger),
                joiner=post.joiner(self.orders(blocks), self.form, most),
            )
            _, metrics = self.aggregate_train(number, replies)
            if metrics is not None:
                result.train_metrics_clientapp[self._step] = metrics

    def _evaluate(self, grid: Grid, result: Result) -> None:
        self._step += 1
        messages = self.configure_evaluate(self._step, ArrayRecord(), ConfigRecord(), grid)
        replies = self.post(grid).replies(messages, "evaluate", report=evaluating)
        metrics = self.aggregate_evaluate(self._step, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[self._step] = metrics

    def _handshake(self, grid: Grid) -> list[Client]:
        show("connect", 0, 1, "waiting for nodes")
        handshake = Handshake.of(self.config, self.plan, self.ledger, self._window())
        return handshake.run(grid, greeting)

    def _window(self) -> int:
        largest = max(sum(map(self.block_bytes, chunk)) for chunk in self.chunks)
        largest = max(largest, len(self._update or b""))
        return self.plan.window(self.config.strategy.window, largest)
