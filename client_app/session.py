"""What an order makes a node do: block by block, what the next order needs kept on its disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from flwr.app import RecordDict
from torch import Tensor

from client_app import model, texts
from client_app.node import Identity, NodeContext
from client_app.scratch import Scratch
from client_app.secure import SecureNode, is_secure
from fedprune.config import RunConfig
from fedprune.disk import is_refusal
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.logs import note
from fedprune.methods.exchange import Answer, BlockExchange, BlockPlace
from fedprune.methods.masked import FORM
from fedprune.methods.registry import exchanges
from fedprune.models.device import Limits, pick_device
from fedprune.privacy.attestation import ANSWER, answer_statement, digests_of
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec, block_spec
from fedprune.pruning.paired import PairedWalk
from fedprune.pruning.registry import make_pruner
from fedprune.records import Order, PruneReply, fetched_record, prune_record, split_record
from fedprune.results.environment import peak_device_bytes, peak_rss_bytes
from fedprune.wire.changes import Change, decode_update


def fetch(config: RunConfig, node: NodeContext, order: Order, number: int) -> RecordDict:
    """Return a later part of the reply to an order."""
    part = Scratch(node.scratch).segment(number, order.segment_bytes)
    form = FORM if is_secure(config, node) else asked_exchange(config, order).form
    return fetched_record(part, form)


def asked_exchange(config: RunConfig, order: Order) -> BlockExchange:
    """Return the exchange that an order is about.

    Raises ReplyRefusedError if the configuration, which the node's operator agreed to, does not ask
    for it.
    """
    found = exchanges(config)
    if order.exchange not in found:
        raise ReplyRefusedError(
            f"this job's configuration asks for {' and '.join(found)}, the order is about another "
            "exchange."
        )
    try:
        return found[order.exchange].at(order.step)
    except WireError as error:
        raise ReplyRefusedError(str(error)) from None


def is_iterative(config: RunConfig, exchange: BlockExchange) -> bool:
    """Whether blocks come one by one, each with what became of the one before."""
    return config.schedule.name == "iterative" and exchange.prunes


def carries_dense(config: RunConfig) -> bool:
    """Whether an exchange of this run compares with the dense model, block by block."""
    return any(exchange.carries_dense for exchange in exchanges(config).values())


def check_order(
    exchange: BlockExchange, order: Order, num_blocks: int, bundle: Mapping[str, bytes]
) -> None:
    """Refuse an order that the schedule does not make.

    Raises ReplyRefusedError saying what was expected.
    """
    first, final = order.blocks[0], order.blocks[-1]
    if final >= num_blocks:
        raise ReplyRefusedError(
            f"the model has blocks 0-{num_blocks - 1}, asked for {first}-{final}."
        )
    if order.round > exchange.config.strategy.rounds:
        raise ReplyRefusedError(
            f"this job has {exchange.config.strategy.rounds} rounds, asked for round {order.round}."
        )
    if exchange.refines:
        if order.blocks != (order.resume,) or set(bundle) != {f"start-{first:05d}"}:
            raise ReplyRefusedError(
                f"a request to fit block {first} must go on at that block alone and bring what it "
                "is, and nothing else."
            )
        return
    iterative = is_iterative(exchange.config, exchange)
    if iterative and len(order.blocks) > 1:
        raise ReplyRefusedError(
            f"the iterative schedule asks for one block a message, got {len(order.blocks)}."
        )
    expected = iterative and first > 0
    if expected != ("update" in bundle) or (iterative and order.resume != max(0, first - 1)):
        raise ReplyRefusedError(
            f"a request for block {first} with schedule={exchange.config.schedule.name} must "
            f"{'bring the update of the block before' if expected else 'bring no update'}."
        )


def read_start(place: BlockPlace, data: bytes) -> dict[str, Change]:
    """Decode what an earlier round made of a block; ReplyRefusedError if it is not this block's."""
    try:
        return decode_update(data, place.shapes)
    except WireError as error:
        raise ReplyRefusedError(f"the start of block {place.block}: {error}") from None


def read_update(exchange: BlockExchange, place: BlockPlace, data: bytes) -> dict[str, Change]:
    """Decode what the server says of a block; ReplyRefusedError if that was not asked of it."""
    try:
        return exchange.read_update(place, data)
    except WireError as error:
        raise ReplyRefusedError(f"the update of block {place.block}: {error}") from None


def keeps_local_model(config: RunConfig, exchange: BlockExchange) -> bool:
    """Whether a node's own changes of all blocks make its own pruned model as it goes."""
    return (
        config.evaluation.local_only
        and not config.privacy.secure
        and exchange.prunes
        and config.schedule.name != "iterative"
        and config.schedule.prefix == "local"
        and exchange.keeps_local_model
    )


@dataclass(frozen=True)
class Session:
    """A node's work on one order."""

    config: RunConfig  # the run's configuration as the server sent it
    node: NodeContext
    order: Order

    @cached_property
    def exchange(self) -> BlockExchange:
        """The exchange that the order is about."""
        return asked_exchange(self.config, self.order)

    @contextmanager
    def begun(
        self, bundle: Mapping[str, bytes], ahead: Mapping[str, int]
    ) -> Iterator[Mapping[str, bytes]]:
        """Give all that came with the order, and keep other processes out.

        `bundle`: encoded changes: ``update`` of the block before where the schedule is iterative,
        ``start-NNNNN`` of blocks that were pruned in an earlier round. `ahead`: name -> bytes of
        those that were delivered before. A node whose work fails is asked no more and forgets the
        run, unless its disk is full: with room again it can go on; or its answer must stay.
        """
        with self._scratch.exclusive():
            try:
                yield {**self._scratch.read_inbox(ahead), **bundle}
            except Exception as error:
                if not is_refusal(error) and not self.exchange.once:
                    self._scratch.remove()
                raise

    def answers(self, bundle: Mapping[str, bytes]) -> tuple[dict[int, bytes], int]:
        """Work on the blocks, going on from where the last order stopped.

        Returns the payloads by block, and how many samples made them; under masks what was sent
        before. Raises FedpruneError if the request is wrong or the work fails.
        """
        order, exchange, secure = self.order, self.exchange, self._secure
        kept = None if secure is None else secure.kept(order, bundle)
        if kept is not None:
            return kept
        walk, payloads = self._walk(bundle), dict[int, bytes]()
        for block in range(walk.position, order.blocks[-1] + 1):
            answer = Answer(b"")  # of blocks that are not asked about: they stay dense
            if block in order.blocks:
                spec = self._told(walk, bundle)
                said = self._scratch.load_answer(exchange.name, block) if exchange.once else None
                if said is None or exchange.together:
                    answer = exchange.answer(walk, spec, self._local_prefix)
                if said is not None:  # later blocks need what it keeps of this one, and no more
                    answer = Answer(said)
                elif exchange.once:
                    self._scratch.save_answer(exchange.name, block, answer.payload)
                if keeps_local_model(self.config, exchange):
                    self._scratch.save_changes(block, answer.changes)
                payloads[block] = answer.payload
            self._leave(walk, answer.changes if self._local_prefix else {})
        self._save_hidden(walk)
        if secure is not None:
            payloads = secure.hide(exchange, order, bundle, payloads, walk.num_samples)
        return payloads, walk.num_samples

    def record(self, payloads: Mapping[int, bytes], samples: int, seconds: float) -> RecordDict:
        """Return the reply's content, the first part of it if it is long."""
        size, form = self.order.segment_bytes, self.exchange.form if self._secure is None else FORM
        whole = sum(map(len, payloads.values())) <= size
        reply = PruneReply(
            blocks=dict(payloads) if whole else {},
            seconds=seconds,
            peak_rss_bytes=peak_rss_bytes(),
            peak_device_bytes=peak_device_bytes(),
            num_examples=samples,
            signature=self._signature(payloads),
        )
        content = prune_record(reply, form)
        if not whole:
            data = b"".join(payloads.values())
            sizes = {block: len(part) for block, part in payloads.items()}
            self._scratch.save_outbox(data)
            split_record(content, data[:size], sizes, form)
        return content

    @cached_property
    def _secure(self) -> SecureNode | None:
        """Its part in the run's secure sums, None where answers go as they are."""
        return SecureNode.of(self.config, self.node) if is_secure(self.config, self.node) else None

    def _signature(self, payloads: Mapping[int, bytes]) -> bytes:
        """Return its site's signature over what is sent, b"" where the site has no key."""
        key = Identity.of(self.node.settings).key
        if key is None:
            return b""
        statement = answer_statement(digests_of(payloads))
        return key.sign(statement, purpose=ANSWER, run=self.node.job)

    @property
    def _scratch(self) -> Scratch:
        return Scratch(self.node.scratch)

    @property
    def _iterative(self) -> bool:
        return is_iterative(self.config, self.exchange)

    @property
    def _local_prefix(self) -> bool:
        """Whether the walk goes on with this node's own pruned blocks."""
        local = self.config.schedule.prefix == "local"
        return self.exchange.prunes and not self._iterative and local

    def _walk(self, bundle: Mapping[str, bytes]) -> BlockWalk:
        """Return a walk that stands where the order goes on, told of the block before."""
        start, scratch = self.order.resume, self._scratch
        scratch.go_on_from(start)
        loaded = model.dense_model(self.config, self.node)
        check_order(self.exchange, self.order, len(loaded.layout.blocks), bundle)
        device, limits = pick_device(self.config.pruner.device), Limits.of(self.config.pruner)
        samples = scratch.load_samples() if start else self._samples()
        hidden = scratch.load_hidden(start) if start else None
        if carries_dense(self.config):
            dense = scratch.load_hidden(start, dense=True) if start else None
            walk: BlockWalk = PairedWalk(
                loaded, samples, device, hidden=hidden, dense=dense, start=start, limits=limits
            )
        else:
            walk = BlockWalk(loaded, samples, device, hidden=hidden, start=start, limits=limits)
        if "update" in bundle:
            # Read before anything runs; the hidden states kept are the inputs of its block.
            update = read_update(self.exchange, BlockPlace.of(walk), bundle["update"])
            self._advance(walk, update)
        return walk

    def _samples(self) -> list[Tensor]:
        """Return the calibration samples, drawn once a run."""
        if self._scratch.has_samples:
            return self._scratch.load_samples()
        samples = texts.tokens(self.config, self.node)
        if not self.order.last:
            self._scratch.save_samples(samples)
        return samples

    def _told(self, walk: BlockWalk, bundle: Mapping[str, bytes]) -> BlockSpec:
        """Tell a walk what the server says of its block; return what masks must look like there."""
        exchange, block = self.exchange, walk.position
        note(block=block)
        start = bundle.get(f"start-{block:05d}")
        if start is not None:
            walk.start_from(read_start(BlockPlace.of(walk), start))
        try:
            exchange.hear(walk, bundle.get(f"public-{block:05d}", b""))
        except WireError as error:
            raise ReplyRefusedError(f"the public text of block {block}: {error}") from None
        if not exchange.prunes:
            return BlockSpec(0.0, self.config.pruner.pattern, self.config.pruner.group)
        return block_spec(self.config, block, block + walk.blocks_left)

    def _leave(self, walk: BlockWalk, changes: Mapping[str, Change]) -> None:
        """Go on to the next block, unless the walk stays at the last one that is asked about."""
        if walk.position < self.order.blocks[-1] or not self._stays(walk):
            self._advance(walk, changes)

    def _advance(self, walk: BlockWalk, changes: Mapping[str, Change]) -> None:
        """Go on to the next block, running this one only where somebody needs what it returns."""
        looks = make_pruner(self.config.pruner).needs != "nothing" or carries_dense(self.config)
        if not self.exchange.prunes or looks:
            walk.advance(changes)
        else:
            walk.skip()

    def _stays(self, walk: BlockWalk) -> bool:
        """Whether a walk stays at the last block that is asked about: no other follows, or yet."""
        final = self.order.blocks[-1] == len(walk.model.layout.blocks) - 1
        return self.order.last or self._iterative or final

    def _save_hidden(self, walk: BlockWalk) -> None:
        """Keep what the next order goes on from, if there is one."""
        order, moved = self.order, not self._stays(walk)
        if not (order.last or self.exchange.refines) and (self._iterative or moved):
            self._scratch.save_hidden(walk.position, walk.hidden)
            if isinstance(walk, PairedWalk):
                self._scratch.save_hidden(walk.position, walk.dense_hidden, dense=True)
