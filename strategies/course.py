"""What a strategy is: its chunks, its orders, and what subclasses say of how replies are folded."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from zipfile import BadZipFile

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedprune.config import RunConfig, for_round, resolved_allocation, to_yaml
from fedprune.logs import bound, note
from fedprune.methods.state import Arrays
from fedprune.pruning.groups import block_specs
from fedprune.records import FORMS, Order, PruneReply, request
from fedprune.results.ledger import Ledger
from fedprune.results.run_status import RunStatus
from fedprune.wire.changes import Change, encode_update
from strategies.cohort import Client, Cohort, gather, known_cohort
from strategies.evaluation import EVALUATE_LOCAL, OwnTexts, collect_local
from strategies.handshake import Handshake
from strategies.messages import OrderBook, Post, Reading, forget
from strategies.plan import Plan
from strategies.progress import Course, announce, evaluating, greeting, sending, show
from strategies.state import BlockResult, RunState, SavePace, Store, damaged_state
from strategies.survey import survey


class Frame(Strategy):
    """What all strategies have in common, and what each says of itself.

    Parameters
    ----------
    config : RunConfig
        The checked configuration, sent to every node.
    plan : Plan
        The public model's shapes, hashes and weights.
    store : Store
        Takes each aggregated block, and where the run stands.
    ledger : Ledger
        Gets an entry for every request and reply.
    state : RunState, optional
        Where a run that goes on stands; a new run's by default.

    Attributes
    ----------
    form : str
        The format of the replies.
    config : RunConfig
        The configuration now: `allocation` is resolved after the survey, `sparsity` is the
        round's.
    cohort : Cohort
        The clients; empty before the handshake.
    state : RunState
        Where the run stands, and what the results tell of it.
    status : RunStatus
        What an operator can see; one that writes nothing unless it is replaced.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        store: Store,
        ledger: Ledger,
        state: RunState | None = None,
    ) -> None:
        self.config = config
        self.form = FORMS[config.strategy.name]
        self.store = store
        self.state = state or RunState()
        self.status = RunStatus()
        if "allocation" in self.state.figures:  # of a survey that is over
            known = self.state.figures["allocation"]["sparsities"]
            self.config = resolved_allocation(config, known)
        self.plan = plan
        self.ledger = ledger
        self.cohort = Cohort([], self.ledger)
        if config.allocation.name != "owl":  # which follows from a survey of the clients
            block_specs(config, range(len(plan.shapes)), len(plan.shapes))
        self.iterative = config.schedule.name == "iterative"
        per_message = 1 if self.iterative else config.schedule.blocks_per_message
        self.chunks = plan.chunks(per_message, self.block_bytes)

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

    def votes(self) -> Arrays | None:
        """Return the sums of the open chunk, as :meth:`restore` takes them.

        None, the default, saves nothing: a run that goes on asks for the whole chunk again.
        """
        return None

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on with the sums of a chunk that has just been opened; KeyError or ValueError."""
        raise ValueError("this strategy saves no sums.")

    def open_round(self, number: int, clients: Sequence[Client]) -> None:
        """Prepare for a round over all blocks, 1 to `strategy.rounds`, with these clients.

        A run that goes on in the middle of a round opens it again, with the same clients.
        """

    def assigned(self, client: Client) -> Iterable[int]:
        """Return the blocks that a client works on in this round."""
        return range(len(self.plan.shapes))

    def bundle(self, order: Order) -> dict[str, bytes]:
        """Return the encoded changes that go with an order."""
        update = self.state.update
        return {"update": update} if update is not None and order.blocks[0] else {}

    def before(self, block: int) -> Mapping[str, Change]:
        """Return what the round before made of a block; empty in the first."""
        number = self.state.round - 1
        return self.store.recall(number, block) if number else {}

    def encode(self, done: BlockResult) -> bytes:
        """Return what clients are told of an aggregated block, where the schedule is iterative."""
        return encode_update(done.changes)

    def asked(self, blocks: range) -> dict[int, Order]:
        """Return node id -> what each client that has not answered yet is to do of these blocks."""
        final = self.state.round == self.config.strategy.rounds
        waiting = [c for c in self.cohort.active if c.partition not in self.state.folded]
        return self.book.orders(waiting, self.assigned, blocks, final)

    def post(self, grid: Grid) -> Post:
        """Return how messages are sent now."""
        return Post(
            grid=grid,
            cohort=self.cohort,
            strategy=self.config.strategy,
            config_yaml=to_yaml(self.config),
            step=self.state.step,
            window=self.window(),
            job=self.state.job,
            status=self.status,
        )

    def summary(self) -> None:
        """Log what will happen."""
        announce(type(self).__name__, self.config, len(self.plan.shapes), len(self.chunks))

    @property
    def book(self) -> OrderBook:
        """Who goes on where."""
        return OrderBook(self.iterative, self.state.positions)

    def window(self) -> int:
        """Return how many requests may be under way at once."""
        largest = max(sum(map(self.block_bytes, chunk)) for chunk in self.chunks)
        largest = max(largest, len(self.state.update or b""))
        return self.plan.window(self.config.strategy.window, largest)


class FederatedPruning(Frame):
    """A strategy that prunes block by block and streams replies; parameters as :class:`Frame`."""

    _course: Course
    _pace: SavePace

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
        """Run handshake, survey, the rounds, and the clients' evaluations if asked for.

        With a state, what is done is not done again.

        The arguments after ``grid`` are Flower's and not used: no arrays leave the server, the
        number of rounds follows from the model, time-outs from the configuration.

        Returns
        -------
        Result
            Metrics by round; what was pruned went to the store.

        Raises
        ------
        ConfigError
            If the clients cannot do what is asked, before any of them is.
        QuorumError
            If fewer than `strategy.min_clients` nodes remain. Blocks already aggregated are in
            the store.
        """
        self.summary()
        result = Result()
        self._course = Course(
            len(self.plan.shapes), self.config.strategy.rounds, self.ledger, self.status
        )
        self._pace = SavePace()
        if self.state.over:
            self.cohort = known_cohort([], self.state, self.config, self.ledger)
            forget(grid, grid.get_node_ids(), self.state.job)  # none has said who it is
            return result
        self._gather(grid)
        if self.config.allocation.name == "owl":
            self._survey(grid)
        with self.state.timings.measure("prune"), bound():
            self._rounds(grid, result)
        self._compare(grid, result)
        self.state.over = True
        self._save()
        nodes = [client.node_id for client in self.cohort.clients if client.node_id >= 0]
        forget(grid, nodes, self.state.job)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build the requests for a chunk of blocks, counted from 1, to every client it is for.

        What is too long to go with them is delivered first.
        """
        orders, post = self.asked(self.chunks[server_round - 1]), self.post(grid)
        return post.requests(orders, self.bundle, post.deliver(orders, self.bundle))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Fold the replies for a chunk in as they arrive, then aggregate its blocks."""
        blocks, state = self.chunks[server_round - 1], self.state
        reading = Reading(self.cohort, state.step, "prune", self.form, self.block_bytes)
        reading.fold_all(replies, self.asked(blocks), self.fold, self._folded)
        self.cohort.check_quorum(len(self.cohort.active), self.config.strategy.min_clients)
        for done in self.close_chunk():
            self.store.add(state.round, done)
            if self.iterative:
                state.update = self.encode(done)
        metrics = MetricRecord({"clients": len(state.folded)})
        state.end_chunk(client.partition for client in self.cohort.active)
        self._save()
        return None, metrics

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
        self.state.local |= collect_local(replies, self.cohort, self.state.step)
        return MetricRecord({"clients": len(self.state.local)})

    def _gather(self, grid: Grid) -> None:
        state, new = self.state, not self.state.clients
        with state.timings.measure("handshake"):
            show(self.status, "connect", 0, 1, "waiting for nodes")
            expected = len(state.active)
            handshake = Handshake.of(
                self.config, self.plan, self.ledger, self.window(), state.job, expected
            )
            met = handshake.run(grid, greeting(self.status), sending(self.status))
            self.cohort = gather(met, state, self.config, self.ledger)
        opened = [client for client in self.cohort.clients if client.partition in state.opened]
        self.open_round(state.round, opened)
        if new:
            self._save()

    def _survey(self, grid: Grid) -> None:
        with self.state.timings.measure("survey"):
            self.state.step += 1
            self.config = survey(self.post(grid), self.config, self.plan, self.state.figures)
        self.state.active = [client.partition for client in self.cohort.active]
        self._save()

    def _rounds(self, grid: Grid, result: Result) -> None:
        target, state = self.config, self.state
        for number in range(state.round, target.strategy.rounds + 1):
            self.config = for_round(target, number)
            if number > state.round:
                state.begin_round(number, [client.partition for client in self.cohort.active])
                self.open_round(number, self.cohort.active)
            while state.chunk < len(self.chunks):
                self._prune(grid, result)

    def _prune(self, grid: Grid, result: Result) -> None:
        number, blocks = self.state.chunk + 1, self.chunks[self.state.chunk]
        note(block=f"{blocks.start}-{blocks.stop - 1}" if len(blocks) > 1 else blocks.start)
        self.open_chunk(blocks)
        if self.state.folded:
            self._restore()
        else:
            self.state.step += 1
        self._pace.reset()
        most = sum(map(self.block_bytes, blocks))
        post, asked = self.post(grid), self.asked(blocks)
        replies = post.replies(
            self.configure_train(number, ArrayRecord(), ConfigRecord(), grid),
            "prune",
            report=self._course.pruning(blocks, self.state.round),
            joiner=post.joiner(asked, self.form, most),
            again=post.again(asked, self.bundle),
        )
        _, metrics = self.aggregate_train(number, replies)
        if metrics is not None:
            result.train_metrics_clientapp[self.state.step] = metrics

    def _folded(self, client: Client, order: Order) -> None:
        self.state.folded.append(client.partition)
        self.book.note(client, order)
        if self._pace.due:
            with self._pace.saving():
                votes = self.votes()
                if votes is not None:
                    self.store.save(self.state, votes)

    def _restore(self) -> None:
        try:
            self.restore(self.store.votes())
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise damaged_state(f"{type(error).__name__}: {error}") from error

    def _compare(self, grid: Grid, result: Result) -> None:
        """Let the clients measure models, where that is asked for."""
        state = self.state
        if self.config.evaluation.local_only and not state.local:
            with state.timings.measure("local"):
                self._evaluate(grid, result)
            self._save()
        if self.config.evaluation.federated:
            with state.timings.measure("federated"):
                state.step += 1
                recall = partial(self.store.recall, state.round)
                own = OwnTexts(self.post(grid), self.plan, self.config, recall)
                state.own_texts = own.measure()

    def _evaluate(self, grid: Grid, result: Result) -> None:
        self.state.step += 1
        step = self.state.step
        messages = self.configure_evaluate(step, ArrayRecord(), ConfigRecord(), grid)
        replies = self.post(grid).replies(messages, "evaluate", report=evaluating(self.status))
        metrics = self.aggregate_evaluate(step, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[step] = metrics

    def _save(self) -> None:
        self.store.save(self.state, {})
