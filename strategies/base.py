"""The course of every run: handshake, survey, rounds over chunks of blocks, clients' evaluations.

Flower's own `start` holds all replies of a round in memory and knows one kind of round. This one
streams: each reply is folded in and dropped. Where the run stands is put on the disk after each
exchange, and now and then within one, so that another process can go on.
"""

from collections.abc import Callable, Iterable
from functools import partial
from zipfile import BadZipFile

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedprune.config import for_round
from fedprune.logs import bound, note
from fedprune.records import Order, request
from strategies.federated import OwnTexts
from strategies.folding import Reading
from strategies.frame import Frame
from strategies.gathering import gather, known_cohort
from strategies.handshake import Client, Handshake
from strategies.local import EVALUATE_LOCAL, collect_local
from strategies.post import forget
from strategies.progress import Course, evaluating, greeting, sending, show
from strategies.run_state import damaged_state
from strategies.saving import SavePace
from strategies.survey import survey


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
