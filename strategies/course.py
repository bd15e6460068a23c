"""The course of every run: handshake, survey, rounds over chunks of blocks, clients' evaluations.

Flower's own `start` holds all replies of a round in memory and knows one kind of round. This one
streams: each reply is folded in and dropped. Where the run stands is put on the disk after each
exchange, and now and then within one, so that another process can go on. What is asked of clients
and what becomes of it is the method's (:mod:`fedprune.methods`).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from logging import INFO, WARNING
from typing import Any, ClassVar
from zipfile import BadZipFile

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedprune.config import RunConfig, for_round, to_yaml
from fedprune.errors import ConfigError, QuorumError, WireError
from fedprune.logs import bound, note
from fedprune.methods.collection import BlockStatistics
from fedprune.methods.exchange import (
    Aggregator,
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
    NothingPruned,
)
from fedprune.methods.masked import (
    MaskedAggregator,
    MaskedExchange,
    heard_alone,
    heard_next,
    planned,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.reconstruction import ReconstructExchange, Refinement, Step
from fedprune.methods.registry import Assignment, exchanges, get_method, main_exchange
from fedprune.methods.state import Keepable, gathered, scattered
from fedprune.methods.survey import SurveyExchange
from fedprune.pruning.groups import check_allocation
from fedprune.records import Order, request
from fedprune.results.ledger import Ledger
from fedprune.results.run_status import RunStatus
from fedprune.results.text import size_text
from fedprune.results.words import MUCH_NOISE, guarantee_sentences, noise_sentences
from fedprune.wire.changes import Change, encode_update
from strategies.cohort import Client, Cohort, gather, known_cohort
from strategies.evaluation import EVALUATE_LOCAL, OwnTexts, collect_local
from strategies.handshake import Handshake
from strategies.messages import (
    MESSAGE_BYTES,
    ExchangeClient,
    HeldExchange,
    block_chunks,
    forget,
    next_orders,
    window_for,
)
from strategies.progress import Course, announce, counting, paced, show
from strategies.secure import SecureSums, cohorts_of, plan_sums
from strategies.state import RunState, SavePace, Store, damaged_state

Open = Mapping[int, Aggregator[Any, Any]]
"""Block -> its running sums."""

_NOMINAL_CLIENTS = 255  # by which blocks are dealt out to messages before anybody is there


def _inner(aggregator: Aggregator[Any, Any]) -> Aggregator[Any, Any]:
    return aggregator.inner if isinstance(aggregator, MaskedAggregator) else aggregator


class FederatedPruning(Strategy):
    """A strategy that prunes block by block with the method that the configuration names.

    `config`: checked, sent to every node; later as it is now: `allocation` resolved after the
    survey, `sparsity` the round's; `wanted`: as it was asked for. `store`: takes each aggregated
    block, and where the run stands. `state`: of a run that goes on. `status`: what an operator can
    see; one that writes nothing unless it is replaced.
    """

    method_name: ClassVar[str] = ""

    _course: Course
    _pace: SavePace
    _assignment: Assignment
    _open: dict[int, Aggregator[Any, Any]]
    _main: tuple[RunConfig, BlockExchange] | None = None

    def __init__(
        self,
        config: RunConfig,
        model: PublicModel,
        store: Store,
        ledger: Ledger,
        state: RunState | None = None,
    ) -> None:
        if self.method_name not in ("", config.strategy.name):
            raise ConfigError(
                f"`strategy.name` must be '{self.method_name}' for {type(self).__name__}, got "
                f"'{config.strategy.name}'."
            )
        self.config = self.wanted = config
        self.store = store
        self.state = state or RunState()
        self.status = RunStatus()
        survey = exchanges(config).get("survey")
        if isinstance(survey, SurveyExchange):  # which may be over
            self.config = survey.settled(self.state.figures) or config
        self.model = model
        self.ledger = ledger
        self.cohort = Cohort([], self.ledger)
        self.method = get_method(config.strategy.name)
        if not self.exchange.prunes and config.evaluation.federated:
            raise ConfigError(
                f"`evaluation.federated` must be false with strategy={config.strategy.name}: its "
                "model is made when the clients are done. Leave it out."
            )
        if self.exchange.prunes:
            check_allocation(self.config, model.shapes)
        self.iterative = config.schedule.name == "iterative"
        per_message = 1 if self.iterative else config.schedule.blocks_per_message
        if self.exchange.together:
            per_message = model.num_blocks
        self._secure: SecureSums | None = None
        self._heard = ""  # of the blocks up to those that are open
        self._most = self._most_bytes(_NOMINAL_CLIENTS)
        self.chunks = block_chunks(model.num_blocks, per_message, self._most.__getitem__)

    @property
    def exchange(self) -> BlockExchange:
        """The exchange that is held about every block, by the configuration of now."""
        if self._main is None or self._main[0] is not self.config:  # it keeps its plan of noise
            self._main = self.config, main_exchange(self.config)
        return self._main[1]

    def sent(self, exchange: BlockExchange) -> BlockExchange:
        """Return an exchange as its answers travel: as it is, or under masks."""
        if self._secure is None:
            return exchange
        return MaskedExchange(exchange, self._secure.clients)

    def summary(self) -> None:
        """Log what will happen."""
        words, prunes = self.method.words, self.exchange.prunes
        announce(words.label, self.config, self.model.num_blocks, len(self.chunks), prunes)
        costs = self.exchange.announcement(self.model)
        refining = exchanges(self.config).get("reconstruct")
        for cost in (costs, refining.announcement(self.model) if refining else ""):
            if cost:
                log(INFO, "%s", cost)
        if self.config.privacy.secure:
            plain = self.exchange.total_bytes(self.model)
            text = "under masks every client will send %s a round (%s at most without)"
            log(INFO, text, size_text(sum(self._most)), size_text(plain))
            if self.config.evaluation.local_only:
                log(INFO, "under masks no client's own model is measured, nor who agrees with whom")

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

        Returns metrics by round; what was pruned went to the store. Raises ConfigError if the
        clients cannot do what is asked, before any of them is. Raises QuorumError if fewer than
        `strategy.min_clients` nodes remain. Blocks already aggregated are in the store.
        """
        self.summary()
        result = Result()
        self._course = Course(
            self.model.num_blocks, self.config.strategy.rounds, self.ledger, self.status
        )
        self._pace = SavePace()
        if self.state.over:
            self.cohort = known_cohort([], self.state, self.config, self.ledger)
            forget(grid, grid.get_node_ids(), self.state.job)  # none has said who it is
            return result
        self._gather(grid)
        if "survey" in exchanges(self.config):
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
        return self._chunk(self.chunks[server_round - 1], grid).requests()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Fold the replies for a chunk in as they arrive, then aggregate its blocks."""
        blocks, state = self.chunks[server_round - 1], self.state
        opened, chunk = dict(self._open), self._chunk(blocks, self._grid)
        chunk.fold(replies, opened, self._contributor, state, self._folded)
        self.cohort.check_quorum(len(self.cohort.active), self.config.strategy.min_clients)
        self._unmask(opened)
        self._open, state.heard = {}, self._heard
        for block in blocks:
            aggregator = _inner(opened.pop(block))
            done: BlockResult | BlockStatistics = aggregator.close()
            if isinstance(done, BlockStatistics):
                self.store.keep(done)
                continue
            self.store.add(state.round, done)
            if self.iterative and isinstance(aggregator, BlockAggregator):
                state.update = aggregator.update(done)
            if done.changes and "reconstruct" in exchanges(self.config):
                state.fitting = 0
        metrics = MetricRecord({"clients": len(state.folded)})
        state.end_chunk(client.partition for client in self.cohort.active)
        self._save()
        return None, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every active client for the perplexity of its own pruned model."""
        to = self.exchange_client(grid)
        content = request(to.config_yaml)
        nodes = [client.node_id for client in self.cohort.active]
        return (to.message(node_id, EVALUATE_LOCAL, content) for node_id in nodes)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Collect the clients' own perplexities; a missing one does not stop the run."""
        self.state.local |= collect_local(replies, self.cohort, self.state.step)
        return MetricRecord({"clients": len(self.state.local)})

    def before(self, block: int) -> Mapping[str, Change]:
        """Return what the round before made of a block; empty in the first."""
        number = self.state.round - 1
        return self.store.recall(number, block) if number else {}

    def bundle(self, node_id: int, order: Order) -> dict[str, bytes]:
        """Return the encoded changes that go with a node's order.

        The update of the block before, where the schedule is iterative; else what the round before
        made of the blocks to prune. With its first order under masks come the shares of the others'
        secrets.
        """
        shares = self._shares(node_id)
        if self.iterative:
            update = self.state.update
            before = {"update": update} if update is not None and order.blocks[0] else {}
            return shares | before | self._told(order)
        starts = {block: self._starts.get(block) for block in order.blocks}
        found = {f"start-{block:05d}": data for block, data in starts.items() if data is not None}
        return shares | found | self._told(order)

    def _told(self, order: Order) -> dict[str, bytes]:
        """Return what clients must know of the public model to answer."""
        exchange = self.exchange
        if order.exchange != exchange.name:
            exchange = exchanges(self.config)[order.exchange]
        said = {block: exchange.told(self.model, block) for block in order.blocks}
        return {f"public-{block:05d}": data for block, data in said.items() if data}

    def _shares(self, node_id: int) -> dict[str, bytes]:
        partition = next(c.partition for c in self.cohort.active if c.node_id == node_id)
        if self._secure is None or partition in self.state.handed:
            return {}
        return {"shares": self._secure.shares_for(partition)}

    def asked(self, blocks: range) -> dict[int, Order]:
        """Return node id -> what each client that has not answered yet is to do of these blocks."""
        if self.state.closed:
            return {}
        number = self.state.round
        # A node that fits a block once more keeps what it did of it.
        fits = "reconstruct" in exchanges(self.config)
        final = number == self.config.strategy.rounds and not fits
        waiting = [c for c in self.cohort.active if c.partition not in self.state.folded]
        assigned = self._assignment.blocks
        return next_orders(waiting, assigned, blocks, self.state.positions, final, number)

    def _chunk(self, blocks: range, grid: Grid) -> HeldExchange:
        """Return the exchange about some blocks, as it is held with who has not answered yet."""
        sent, orders = self.sent(self.exchange), self.asked(blocks)
        return HeldExchange(self.exchange_client(grid), sent, self.model, orders, self.bundle)

    def exchange_client(self, grid: Grid, longest: int | None = None) -> ExchangeClient:
        """Return how messages are sent now; ``longest``: the most bytes of one, if others."""
        return ExchangeClient(
            grid=grid,
            cohort=self.cohort,
            strategy=self.config.strategy,
            config_yaml=to_yaml(self.config),
            step=self.state.step,
            window=self.window()
            if longest is None
            else window_for(self.config.strategy.window, longest),
            job=self.state.job,
            status=self.status,
        )

    def window(self) -> int:
        """Return how many requests may be under way at once."""
        largest = max(sum(map(self._most.__getitem__, chunk)) for chunk in self.chunks)
        return window_for(self.config.strategy.window, max(largest, len(self.state.update or b"")))

    def _most_bytes(self, clients: int) -> list[int]:
        """Return block -> the most bytes of a client's reply about it, by the configuration."""
        if not self.config.privacy.secure:
            return [self.exchange.most_bytes(self.model, b) for b in range(self.model.num_blocks)]
        found = [0] * self.model.num_blocks
        for exchange in planned(self.config, self.model.num_blocks):
            if exchange.name == self.exchange.name:
                masked = MaskedExchange(exchange, clients)
                most = [masked.most_bytes(self.model, block) for block in range(len(found))]
                found = list(map(max, found, most))
        return found

    def _gather(self, grid: Grid) -> None:
        state, new = self.state, not self.state.clients
        with state.timings.measure("handshake"):
            show(self.status, "connect", 0, 1, "waiting for nodes")
            expected = len(state.active)
            handshake = Handshake(
                self.model, self.config, self.ledger, self.window(), state.job, expected
            )
            answered = counting(self.status, "handshake", "nodes have answered")
            sent = paced(self.status, "model", "segments of the model are on the nodes")
            met = handshake.run(grid, answered, sent)
            self.cohort = gather(met, state, self.config, self.ledger)
            if self.config.strategy.client_weights != "equal":
                weights = self.cohort.weights
                state.figures["client_weights"] = {
                    client.name: weights[client.node_id] for client in self.cohort.clients
                }
        self._promise()
        opened = [client for client in self.cohort.clients if client.partition in state.opened]
        self._open_round(state.round, opened)
        if new:
            self._save()
        self._grid = grid
        if self.config.privacy.secure:
            self._exchange_keys()

    def _exchange_keys(self) -> None:
        """Set the run's secure sums up, or go on with those that are."""
        state, config = self.state, self.config
        if state.secure is not None:
            try:
                self._secure = SecureSums.from_bytes(state.secure)
            except (KeyError, ValueError, WireError) as error:
                raise damaged_state(f"{type(error).__name__}: {error}") from error
            return
        with state.timings.measure("keys"):
            # Another name each time: keys of an attempt that was cut short serve no other.
            state.attempts += 1
            self._save()
            job, partitions = (
                f"{state.job}/{state.attempts}",
                [c.partition for c in self.cohort.active],
            )
            plan = plan_sums(config, self.model, job, len(partitions))
            least = max(one.cohorts for one in planned(config, self.model.num_blocks))
            cohorts = cohorts_of(config, partitions, least)
            what = "clients have sent keys, or shares of their secrets"
            to, report = self.exchange_client(self._grid), counting(self.status, "keys", what)
            self._secure = SecureSums.set_up(to, plan, cohorts, least, self.model, report)
            self.cohort.check_quorum(len(self.cohort.active), config.strategy.min_clients)
            state.secure = self._secure.to_bytes()
            state.figures["secure"] = self._secure.figures()
            state.active = [client.partition for client in self.cohort.active]
        self._save()

    def _promise(self) -> None:
        """Say, before anybody is asked anything, what the run guarantees about each sample."""
        clients = self.cohort.active
        samples = sum(client.report.samples for client in clients)
        promise = self.exchange.promise(self.model, samples, len(clients))
        if not promise:
            return
        self.state.figures["privacy"] = promise
        log(INFO, "%s", guarantee_sentences(promise))
        much = promise["relative_noise"] > MUCH_NOISE
        log(WARNING if much else INFO, "%s", noise_sentences(promise))

    def _open_round(self, number: int, clients: list[Client]) -> None:
        """Assign the blocks of a round; one that goes on in its middle is opened again."""
        reports = [client.report for client in clients]
        self._assignment = self.method.assign(self.config, self.model, reports, number)
        self._total = sum(map(self._weight, clients))
        if self._assignment.summary:
            log(INFO, "%s", self._assignment.summary)
        for name, figure in self._assignment.figures.items():
            self.state.figures.setdefault(name, [])[number - 1 :] = [figure]

    def _contributor(self, client: Client) -> Contributor:
        return Contributor(client.name, self._weight(client), client.report.tokens)

    def _unmask(self, opened: Open) -> None:
        """Open the sums of some blocks, where they are under masks."""
        if self._secure is None:
            return
        masked = [one for one in opened.values() if isinstance(one, MaskedAggregator)]
        to = self.exchange_client(self._grid)
        try:
            keep = partial(self._keep, opened)
            self._secure.open(to, masked, self._contributor, keep, self.status.answers)
        except WireError as error:
            raise QuorumError(
                f"the sum of {len(self.state.folded)} clients' answers is refused, and nobody can "
                f"see whose is wrong: {error} Run again with others."
            ) from error

    def _keep(self, opened: Open) -> None:
        """Put closed sums on the disk, before anybody is told who is in them."""
        masked = [one for one in opened.values() if isinstance(one, MaskedAggregator)]
        self.state.closed = all(one.closed for one in masked)
        self.store.save(self.state, gathered({str(block): one for block, one in opened.items()}))

    def _weight(self, client: Client) -> int:
        return self.cohort.weights[client.node_id] * self._assignment.weights.get(
            client.partition, 1
        )

    def _survey(self, grid: Grid) -> None:
        """Ask every client about the dense model and go on as follows from that."""
        state, config = self.state, self.config
        with state.timings.measure("survey"):
            exchange = exchanges(config)["survey"]
            if not isinstance(exchange, SurveyExchange):
                raise TypeError(f"a survey needs a SurveyExchange, got {exchange}.")
            blocks = tuple(range(self.model.num_blocks))
            tasks = {block: BlockTask(self.model, block) for block in blocks}
            sums = {
                block: self._sums(exchange, task, heard_alone(exchange.told(self.model, block)))
                for block, task in tasks.items()
            }
            self._open, sent = dict(sums), self.sent(exchange)
            if state.closed:
                self._restore()
            else:
                state.folded.clear()
                state.step += 1
            order = Order(blocks, 0, False, MESSAGE_BYTES, exchange.name)
            active = [] if state.closed else self.cohort.active
            orders = {client.node_id: order for client in active}
            client = self.exchange_client(grid)
            held = HeldExchange(
                client, sent, self.model, orders, lambda n, o: self._shares(n) | self._told(o)
            )
            report = counting(self.status, "survey", "clients measure the dense model")
            replies = held.replies(held.requests(), report)
            held.fold(replies, sums, self._contributor, state, self._took_part)
            self.cohort.check_quorum(len(state.folded), config.strategy.min_clients)
            self._unmask(sums)
            state.end_exchange()
            follows = exchange.settle([sums[block].close() for block in blocks])
            state.figures |= follows
            for what, figures in follows.items():
                log(INFO, "%s: %s", what, " ".join(f"{one}" for one in figures.items()))
            self.config = exchange.settled(state.figures) or config
        state.active = [client.partition for client in self.cohort.active]
        self._save()

    def _took_part(self, client: Client, _order: Order) -> None:
        self.state.folded.append(client.partition)
        if self._secure is not None and client.partition not in self.state.handed:
            self.state.handed.append(client.partition)

    def _rounds(self, grid: Grid, result: Result) -> None:
        target, state = self.config, self.state
        for number in range(state.round, target.strategy.rounds + 1):
            self.config = for_round(target, number)
            if number > state.round:
                state.begin_round(number, [client.partition for client in self.cohort.active])
                self._open_round(number, self.cohort.active)
            while state.chunk < len(self.chunks) or state.fitting is not None:
                if state.fitting is None:
                    self._prune(grid, result)
                else:
                    self._fit(grid)

    def _prune(self, grid: Grid, result: Result) -> None:
        number, blocks = self.state.chunk + 1, self.chunks[self.state.chunk]
        note(block=f"{blocks.start}-{blocks.stop - 1}" if len(blocks) > 1 else blocks.start)
        self._open_chunk(self.exchange, blocks)
        if self.state.folded:
            self._restore()
        else:
            self.state.step += 1
        self._pace.reset()
        replies = self._chunk(blocks, grid).replies(
            self.configure_train(number, ArrayRecord(), ConfigRecord(), grid),
            self._course.pruning(blocks, self.state.round),
        )
        _, metrics = self.aggregate_train(number, replies)
        if metrics is not None:
            result.train_metrics_clientapp[self.state.step] = metrics

    def _fit(self, grid: Grid) -> None:
        """Fit the survivors of the block that was pruned last, exchange after exchange."""
        state, block = self.state, self.chunks[self.state.chunk - 1].start
        note(block=block)
        exchange = exchanges(self.config)["reconstruct"]
        if not isinstance(exchange, ReconstructExchange):
            raise TypeError(f"survivors are fitted by a ReconstructExchange, got {exchange}.")
        weights = {name: self.model.weight(block, name) for name in self.model.shapes[block]}
        fit = Refinement(exchange, weights, self.store.recall(state.round, block))
        self._open = {}
        if state.fitting:
            self._restored({"fit": fit})
        while True:
            step = self._held(grid, exchange.at(fit.step), block, fit.changes())
            if not fit.advance(step):
                break
            state.fitting, state.active = fit.step, [one.partition for one in self.cohort.active]
            self.store.save(state, gathered({"fit": fit}))
        best, told = fit.best(), state.figures.get("reconstruct", [])
        self.store.add(state.round, BlockResult(block, best, 0, 0), refined=True)
        if fit.moved:
            state.update = encode_update(best)
        state.figures["reconstruct"] = [
            *(one for one in told if one["block"] != block),
            fit.figures(block),
        ]
        state.fitting, state.active = None, [one.partition for one in self.cohort.active]
        self._save()

    def _held(
        self, grid: Grid, exchange: ReconstructExchange, block: int, changes: Mapping[str, Change]
    ) -> Step:
        """Hold one exchange about a block as it is now, and return what it comes to."""
        state, data = self.state, encode_update(changes)
        state.step += 1
        task = BlockTask(self.model, block, state.round, changes, self._total, state.figures)
        sums = exchange.aggregator(task)
        most, name = exchange.most_bytes(self.model, block), f"start-{block:05d}"
        client = self.exchange_client(grid, max(most, len(data)))
        order = Order(
            (block,), block, False, MESSAGE_BYTES, exchange.name, state.round, exchange.step
        )
        orders = {
            one.node_id: order
            for one in self.cohort.active
            if state.positions.get(one.partition) == block
        }

        held = HeldExchange(client, exchange, self.model, orders, lambda node, order: {name: data})
        what = "clients tell which way survivors are to go"
        replies = held.replies(held.requests(), counting(self.status, "reconstruct", what))
        used = held.fold(replies, {block: sums}, self._contributor, state)
        self.cohort.check_quorum(len(used), self.config.strategy.min_clients)
        return sums.close()

    def _open_chunk(self, exchange: BlockExchange, blocks: range) -> None:
        """Start the sums of some blocks, and encode once for all what clients start from."""
        state, heard = self.state, self.state.heard
        before = {block: self.before(block) for block in blocks}
        self._starts = {
            block: encode_update(changes) for block, changes in before.items() if changes
        }
        self._open = {}
        for block in blocks:
            total = self._total if self._secure is None else self._secure.clients
            task = BlockTask(self.model, block, state.round, before[block], total, state.figures)
            # Of a block of which nothing is pruned only who answered is of interest.
            empty = exchange.prunes and not self.model.shapes[block]
            update = state.update if block else None
            start = update if self.iterative else self._starts.get(block)
            told = exchange.told(self.model, block)
            for said in (start, told) if exchange.prunes else ():
                heard = heard_next(heard, said) if said else heard
            known = heard if exchange.prunes else heard_alone(told)
            opened = NothingPruned(exchange, task) if empty else self._sums(exchange, task, known)
            if exchange.prunes and not isinstance(_inner(opened), BlockAggregator):
                raise TypeError(f"an exchange that prunes needs a BlockAggregator, got {opened}.")
            self._open[block] = opened
        self._heard = heard

    def _sums(
        self, exchange: BlockExchange, task: BlockTask, heard: str = ""
    ) -> Aggregator[Any, Any]:
        """Return empty sums for a block, under masks where the run's are."""
        if self._secure is None:
            return exchange.aggregator(task)
        return self._secure.masked(exchange, task, self.cohort.clients, heard)

    def _folded(self, client: Client, order: Order) -> None:
        self._took_part(client, order)
        # A client stays at its block until it hears what became of it.
        self.state.positions[client.partition] = order.blocks[-1] + (0 if self.iterative else 1)
        if self._pace.due:
            with self._pace.saving():
                parts = {str(block): sums for block, sums in self._open.items()}
                self.store.save(self.state, gathered(parts))

    def _restore(self) -> None:
        self._restored({str(block): sums for block, sums in self._open.items()})

    def _restored(self, parts: Mapping[str, Keepable]) -> None:
        try:
            scattered(self.store.partial_state(), parts)
        except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise damaged_state(f"{type(error).__name__}: {error}") from error

    def _compare(self, grid: Grid, result: Result) -> None:
        """Let the clients measure models, where that is asked for and there are any."""
        state = self.state
        if not self.exchange.prunes:
            return
        secure = self.config.privacy.secure  # then nothing of a single client is asked for
        if self.config.evaluation.local_only and not state.local and not secure:
            with state.timings.measure("local"):
                self._evaluate(grid, result)
            self._save()
        if self.config.evaluation.federated:
            with state.timings.measure("federated"):
                state.step += 1
                recall = partial(self.store.recall, state.round)
                own = OwnTexts(self.exchange_client(grid), self.model, self.config, recall)
                state.own_texts = own.measure()

    def _evaluate(self, grid: Grid, result: Result) -> None:
        self.state.step += 1
        step = self.state.step
        messages = self.configure_evaluate(step, ArrayRecord(), ConfigRecord(), grid)
        client = self.exchange_client(grid)
        report = counting(self.status, "evaluate", "clients measure their own models")
        replies = client.replies(messages, "evaluate", report)
        metrics = self.aggregate_evaluate(step, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[step] = metrics

    def _save(self) -> None:
        self.store.save(self.state, {})
