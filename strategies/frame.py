"""What a strategy is: its chunks, its orders, and what subclasses say of how replies are folded."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedprune.config import RunConfig, resolved_allocation, to_yaml
from fedprune.methods.state import Arrays
from fedprune.pruning.groups import block_specs
from fedprune.records import FORMS, Order, PruneReply
from fedprune.results.ledger import Ledger
from fedprune.results.run_status import RunStatus
from fedprune.wire.changes import Change, encode_update
from strategies.block import BlockResult
from strategies.cohort import Cohort
from strategies.handshake import Client
from strategies.orders import OrderBook
from strategies.plan import Plan
from strategies.post import Post
from strategies.progress import announce
from strategies.run_state import RunState, Store


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
        return encode_update(done.changes, self.config.pruner.pattern)

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
