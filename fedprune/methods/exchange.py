"""What is asked of clients about a block, and how their answers become one: the contract.

An exchange is one question to every client. Its client half stands with a walk at a block and says
what is known there (:meth:`BlockExchange.answer`); its server half is an :class:`Aggregator`, which
checks each answer, adds it to running sums and closes them to what becomes of the block. Neither
half knows of Flower. A method is made of exchanges, and so is a survey of the dense model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.agreement import BlockSample
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import decode_samples, encode_samples, token_inputs
from fedprune.methods.state import Arrays, CountedSums, Keepable
from fedprune.methods.word_sums import Layout, Words
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.blocks import BlockWalk, StandIn
from fedprune.pruning.groups import BlockSpec, block_spec, check_mask
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.statistics import (
    ColumnKind,
    ColumnSums,
    Statistic,
    StatisticKind,
)
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import Units
from fedprune.pruning.wanda import able_pruner
from fedprune.wire.changes import (
    Change,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    mask_of,
)
from fedprune.wire.masks import BitMask

A = TypeVar("A")
R = TypeVar("R")


Summed = ColumnKind | BlockKind
"""A statistic to which noise can be added: of columns, or a block's that is measured."""


def can_have_noise(kind: StatisticKind[Any] | BlockKind) -> TypeGuard[Summed]:
    """Whether what a sample adds to a statistic is a few numbers that are never negative."""
    return isinstance(kind, ColumnKind) or (isinstance(kind, BlockKind) and kind.measured)


@dataclass(frozen=True)
class Pooled:
    """What all clients together know of a block."""

    # kind -> linears that share an input -> its statistic
    inputs: Mapping[str, Mapping[tuple[str, ...], ColumnSums]]
    # kind of the whole block -> its arrays
    block: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a client says of a block, and what became of the block on this client by itself."""

    payload: bytes
    changes: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockPlace:
    """A block of a client's model, as far as what the server says of it must fit."""

    # block, num_blocks: its index, and how many the model has
    block: int
    num_blocks: int
    weights: Mapping[str, Tensor]  # name of the linear -> dense weight, shape (d_out, d_in)

    @classmethod
    def of(cls, walk: BlockWalk) -> "BlockPlace":
        """Return the block where a walk stands."""
        return cls(walk.position, walk.position + walk.blocks_left, walk.weights())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name of the linear -> (d_out, d_in)."""
        return {name: (len(weight), weight.shape[1]) for name, weight in self.weights.items()}


@dataclass(frozen=True)
class BlockResult:
    """One aggregated block."""

    block: int  # its index
    # name of the linear -> what becomes of it; empty where nobody reported the block
    changes: Mapping[str, Change]
    voters: int  # clients whose answers were counted
    # how many clients of equal weight they stand for; ``voters`` where all weigh the same
    effective_voters: float
    # name of the linear -> weights by prune votes, from none to all
    # (:meth:`fedprune.methods.votes.VoteCounter.histogram`); empty without votes
    histograms: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    # a few bits of every client's mask and of the result; None without votes
    sample: BlockSample | None = None
    # name of the linear -> tokens of all clients together that reached it, where that is known: of
    # votes only that there were none
    tokens: Mapping[str, int] = field(default_factory=dict)
    # name of the linear -> ``voters`` and ``effective_voters`` of it, where not all had anything to
    # say of it
    heard: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def voted(
        cls,
        block: int,
        changes: Mapping[str, Change],
        heard: Mapping[str, tuple[int, float]],
        histograms: Mapping[str, NDArray[np.int64]],
        sample: BlockSample,
    ) -> "BlockResult":
        """Return a block of whose linears not all clients may have said something.

        `heard`: name of the linear -> how many clients were counted, and how many of equal weight
        they stand for; of an expert that nobody's tokens reached none.
        """
        voters, effective = max(heard.values())
        return cls(
            block,
            changes,
            voters,
            effective,
            histograms,
            sample,
            tokens={name: 0 for name, (clients, _) in heard.items() if not clients},
            heard={name: one for name, one in heard.items() if one != (voters, effective)},
        )

    @property
    def masks(self) -> dict[str, BitMask]:
        """Name of the linear -> global mask."""
        return {name: mask_of(change) for name, change in self.changes.items()}


@dataclass(frozen=True)
class Contributor:
    """Whose answer it is."""

    name: str  # what results call the client by
    weight: int = 1  # how often it counts
    tokens: int = 0  # the calibration tokens that it promised in the handshake; 0 if nobody knows


@dataclass(frozen=True)
class BlockTask:
    """What the server aggregates."""

    model: PublicModel  # shapes and public weights
    block: int  # the block that was asked about
    round: int = 1  # the round over all blocks, from 1
    # what the round before made of the block; empty in the first
    before: Mapping[str, Change] = field(default_factory=dict)
    total_weight: int = 1  # the sum of the weights of all clients of the round
    # what the results tell of the method; an aggregator may put plain JSON values into it
    figures: dict[str, Any] = field(default_factory=dict)


class Aggregator(ABC, Generic[A, R]):
    """The running sums of one question; memory does not grow with the clients."""

    # whether the sums are elementwise sums of integers, whatever the order, so that they can be
    # taken under secure aggregation. Then there are :meth:`layout`, :meth:`words` and
    # :meth:`add_total`, and adding clients one by one comes to the same as adding their total.
    sums_integers: bool = False

    def layout(self, clients: int) -> Layout:
        """Return the words that a client's answer is, where so many clients' are added up."""
        raise TypeError(f"{type(self).__name__} has no sums of integers.")

    def words(self, answer: A, client: Contributor, clients: int) -> Words:
        """Return a checked answer as the words of :meth:`layout`; called beside the texts.

        Parameters
        ----------
        answer : object
            What :meth:`check` returned.
        client : Contributor
            Whose it is.
        clients : int
            How many clients' words are added up at most.

        Raises
        ------
        WireError
            If a number is so large that the sum of so many like it would overflow.
        """
        raise TypeError(f"{type(self).__name__} has no sums of integers.")

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Add the sums of some clients' words in place of their answers.

        Nothing was added before, or the sums of other cohorts (`BlockExchange.cohorts`).

        Parameters
        ----------
        total : Mapping[str, NDArray]
            Name -> sums of words, modulo two to the power of their bits, as :meth:`layout` says.
        clients : Sequence[Contributor]
            Whose sums they are.

        Raises
        ------
        WireError
            If such clients' answers cannot come to that. Nothing is added then.
        """
        raise TypeError(f"{type(self).__name__} has no sums of integers.")

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        """Add what so many clients know together, in place of their answers.

        Only where the exchange says of which statistics (`BlockExchange.summed`).
        """
        raise TypeError(f"{type(self).__name__} takes no statistics of several clients.")

    @abstractmethod
    def check(self, payload: bytes, client: Contributor) -> A:
        """Decode and check one client's answer; nothing is added.

        Raises
        ------
        WireError
            If it is malformed, or not what the configuration asks for.
        """

    @abstractmethod
    def add(self, answer: A, client: Contributor) -> None:
        """Add a checked answer."""

    @abstractmethod
    def close(self) -> R:
        """Return what the answers come to."""

    @abstractmethod
    def state(self) -> Arrays:
        """Return all that was added so far, as :meth:`restore` takes it."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another one's."""


class BlockAggregator(Aggregator[A, BlockResult]):
    """Makes one block of the answers about it."""

    def __init__(self, exchange: "BlockExchange", task: BlockTask) -> None:
        self.exchange = exchange
        self.task = task

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Name of the block's linears -> (d_out, d_in)."""
        return self.task.model.shapes[self.task.block]

    @property
    def units(self) -> Units | None:
        """What can go altogether in the block, where the pruner removes that."""
        return self.task.model.units

    def weight(self, name: str) -> Tensor:
        """Return the public weight of one of the block's linears, (d_out, d_in)."""
        return self.task.model.weight(self.task.block, name)

    def pruned_on(
        self,
        known: Iterable[tuple[Sequence[str], Statistic]],
        pruner: Pruner,
        clients: int,
        tokens: Mapping[str, int],
    ) -> BlockResult:
        """Return the block as a pruner makes it on pooled statistics.

        Parameters
        ----------
        known : Iterable[tuple[Sequence[str], Statistic]]
            Linears that share an input, and what is known of it; taken one by one, so that each
            can be forgotten before the next is made.
        pruner : Pruner
            Turns each weight and its statistics into a change.
        clients : int
            How many clients the statistics are of.
        tokens : Mapping[str, int]
            Name of the linear -> tokens of all clients that reached it.

        Raises
        ------
        ModelError
            If a linear cannot be pruned; says which.
        """
        block, changes, units = self.task.block, dict[str, Change](), self.units
        structured = unit_pruner(pruner)
        if structured is not None and units is not None:
            ((_, statistics),) = known
            weights = {name: self.weight(name) for name in self.shapes}
            spec = self.exchange.result_spec(block, self.task.model.num_blocks)
            try:
                changes = structured.prune_units(weights, statistics, units, spec.sparsity)
            except ModelError as error:
                raise ModelError(f"block {block}: {error}") from error
            return BlockResult(block, changes, clients, clients)
        outputs = self.task.model.output_moments(block)
        for linears, statistics in known:
            changes |= self.pruned(linears, statistics, pruner, outputs)
        ordered = {name: changes[name] for name in self.shapes}
        return BlockResult(block, ordered, clients, clients, tokens=tokens)

    def pruned(
        self,
        linears: Sequence[str],
        statistic: Statistic,
        pruner: Pruner,
        outputs: Mapping[str, Tensor],
    ) -> dict[str, Change]:
        """Return what a pruner makes of linears that share an input; errors as `pruned_on`.

        ``outputs`` are the moments of those linears' outputs that are known.
        """
        block, changes = self.task.block, dict[str, Change]()
        spec = self.exchange.result_spec(block, self.task.model.num_blocks)
        for name in linears:
            weight, where = self.weight(name), f"block {block}, linear '{name}'"
            with able_pruner(pruner, statistic, outputs.get(name), where) as (able, stats):
                changes[name] = able.prune(weight, stats, spec.of(name))
        return changes

    def update(self, result: BlockResult) -> bytes:
        """Encode what clients are told of the block, where the schedule is iterative."""
        return encode_update(result.changes)


class NothingPruned(CountedSums, BlockAggregator[None]):
    """Counts the answers about a block that has nothing to prune, whatever the method."""

    def check(self, payload: bytes, client: Contributor) -> None:
        """Take any answer: it is within its size, and nothing is read of it."""

    def add(self, answer: None, client: Contributor) -> None:
        """Count a client."""
        self.clients += 1

    def close(self) -> BlockResult:
        """Return a block without changes."""
        return BlockResult(self.task.block, {}, self.clients, self.clients)

    def parts(self) -> dict[str, Keepable]:
        """Return no sums."""
        return {}


class BlockExchange(ABC):
    """One question to every client about some blocks; both halves have the configuration."""

    name: str = "prune"  # what requests and the ledger call it
    # what leaves a node, of :data:`fedprune.config.schema.PAYLOADS`; its operator allows it
    payload: str
    prunes: bool = True  # whether blocks are pruned; else the dense model is walked through
    shares_inputs: bool = False  # whether the server must know which linears share an input
    # whether a client is asked about all blocks in one message, since it keeps something from block
    # to block
    together: bool = False
    # whether it is about a block that has been pruned in the same run: a client then stands at it,
    # and its order brings what the block is
    refines: bool = False
    # whether a client's walk carries the dense model's hidden states beside its own
    # (:class:`fedprune.pruning.paired.PairedWalk`)
    carries_dense: bool = False
    # whether a client must not answer twice about a block, but say the same again: another answer
    # would have other noise in it
    once: bool = False
    # the statistics that are all a client sends, where noise can be added to each
    # (`privacy.epsilon`); then the aggregator has :meth:`Aggregator.add_pooled`. Empty otherwise.
    summed: tuple[Summed, ...] = ()
    # names of the statistics that are kept of every block, where they are
    collects: tuple[str, ...] = ()
    # of how many cohorts of clients at least it needs the sums where nobody sees an answer. If more
    # than 1, its aggregator adds what every :meth:`Aggregator.add_total` brings.
    cohorts: int = 1

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def form(self) -> str:
        """The format of the payloads, with its version."""
        return f"fedprune.{self.payload}.v2"

    def at(self, step: int) -> Self:
        """Go on to the exchange of this number about the same blocks, from 0.

        Raises
        ------
        WireError
            If there is none: most are held once.
        """
        if step:
            raise WireError(f"this exchange is held once, {step} more were asked for.")
        return self

    # ------------------------------------------------------------------------ beside the texts

    @abstractmethod
    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return what this client says of the block where a walk stands; the walk stays there.

        Parameters
        ----------
        walk : BlockWalk
            Carries this client's samples.
        spec : BlockSpec
            What a client's masks of the block must look like.
        local_prefix : bool
            Whether the walk goes on with this client's own pruned block, which the answer then
            brings.
        """

    def hear(self, walk: BlockWalk, data: bytes) -> None:
        """Take what :meth:`told` says of the block where a walk stands, before :meth:`answer`.

        Raises
        ------
        WireError
            If `privacy` wants public text in the first block, and this is none.
        """
        if walk.position == 0 and self.config.privacy.first_is_public:
            samples = decode_samples(data, len(walk.model.tokenizer))
            walk.stand_in = StandIn(tuple(samples), token_inputs(walk.model))

    @property
    def keeps_local_model(self) -> bool:
        """Whether a client's own changes of all blocks make its own pruned model as it goes."""
        return True

    def read_update(self, place: BlockPlace, data: bytes) -> dict[str, Change]:
        """Decode what clients are told of a block and check it.

        Raises
        ------
        WireError
            If it is damaged or not what the configuration asks of the server.
        """
        return self.read_result(place.shapes, place.block, place.num_blocks, data)

    def read_result(
        self, shapes: Mapping[str, tuple[int, int]], block: int, num_blocks: int, data: bytes
    ) -> dict[str, Change]:
        """Decode what became of a block and check it; errors as :meth:`read_update`."""
        changes = decode_update(data, shapes)
        self.check_result(changes, block, num_blocks)
        return changes

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        """Raise ``WireError`` unless changes are what the server was to make of a block."""
        spec = self.result_spec(block, num_blocks)
        for name, change in changes.items():
            check_mask(mask_of(change), spec.of(name), name)
            check_scaling(change, name, expected=False)

    # --------------------------------------------------------------------------- on the server

    def told(self, model: PublicModel, block: int) -> bytes:
        """Return what clients must know of the public model to answer; b"" if nothing."""
        if block or model.public is None:
            return b""
        return encode_samples(model.public.samples)

    @abstractmethod
    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's answer about a block can take."""

    def total_bytes(self, model: PublicModel) -> int:
        """Return the most bytes that a client's answers about all blocks can take."""
        return sum(self.most_bytes(model, block) for block in range(model.num_blocks))

    @abstractmethod
    def aggregator(self, task: BlockTask) -> Aggregator[Any, Any]:
        """Return empty sums for a block: a `BlockAggregator` where blocks are pruned."""

    def result_spec(self, block: int, num_blocks: int) -> BlockSpec:
        """Return what the server's masks of a block must look like."""
        return block_spec(self.config, block, num_blocks)

    def answer_of(
        self, changes: Mapping[str, Change], weight: Callable[[str], Tensor]
    ) -> Mapping[str, Any]:
        """Return as an aggregator's answer what a client made of a block.

        Parameters
        ----------
        changes : Mapping[str, Change]
            Name of the linear -> what became of it.
        weight : Callable[[str], Tensor]
            Name of the linear -> public weight.

        Raises
        ------
        ConfigError
            If the method's clients do not send such changes.
        """
        raise ConfigError(f"Clients of {self.config.strategy.name} send no changes of blocks.")

    def promise(self, model: PublicModel, samples: int, clients: int) -> dict[str, Any]:
        """Return what is guaranteed about each sample, for the results; empty if nothing is.

        Parameters
        ----------
        model : PublicModel
            The public model.
        samples, clients : int
            All samples of those who take part, and how many these are.
        """
        return {}

    def announcement(self, model: PublicModel) -> str:
        """Return a sentence for the log before anybody is asked; "" for none."""
        return ""


def check_scaling(change: Change, name: str, expected: bool) -> None:
    """Raise ``WireError`` unless survivors are scaled, or are not (`strategy.scaling`)."""
    if expected and isinstance(change, SparseWeight):  # scaled, and then fitted
        return
    scaled = isinstance(change, LinearUpdate) and change.keeps is not None
    if scaled != expected:
        raise WireError(
            f"linear '{name}': survivors must "
            f"{'' if expected else 'not '}be scaled (`strategy.scaling`)."
        )
