"""What a server says became of a block: read with care, since it makes the next inputs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from client_app import model, texts
from client_app.node import Seat
from client_app.scratch import Scratch
from fedprune.config import RunConfig
from fedprune.disk import is_refusal
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.logs import note
from fedprune.methods.moments import InputPlan, plan_inputs
from fedprune.methods.sketches import eigen_sketch, nystrom_sketch
from fedprune.models.device import Limits, pick_device
from fedprune.pruning.blocks import BlockWalk, prune_block, prune_on
from fedprune.pruning.groups import MaskSpec, block_specs, check_mask, result_spec
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import (
    ColumnStatistics,
    MomentStatistics,
    Statistic,
    shared_inputs,
)
from fedprune.pruning.wanda import WithWandaFallback
from fedprune.records import (
    FORMS,
    MASKS,
    SUMS,
    WEIGHTS,
    Order,
    PruneReply,
    fetched_record,
    prune_record,
    split_record,
)
from fedprune.results.environment import peak_device_bytes, peak_rss_bytes
from fedprune.wire.changes import (
    Change,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    mask_of,
)
from fedprune.wire.masks import BitMask, encode_masks
from fedprune.wire.moments import Columns, InputMoments, Sketch, Triangle, encode_moments
from fedprune.wire.sums import InputSums, PooledSums, decode_pooled, encode_sums, is_pooled


def check_order(
    config: RunConfig, order: Order, num_blocks: int, bundle: Mapping[str, bytes]
) -> None:
    """Refuse an order that the schedule does not make.

    Parameters
    ----------
    config : RunConfig
        `schedule` says whether blocks come one by one, each with an update of the one before.
    order : Order
        What is asked for.
    num_blocks : int
        Blocks of the model.
    bundle : Mapping[str, bytes]
        What came with it.

    Raises
    ------
    ReplyRefusedError
        Saying what was expected.
    """
    first, final = order.blocks[0], order.blocks[-1]
    if final >= num_blocks:
        raise ReplyRefusedError(
            f"the model has blocks 0-{num_blocks - 1}, asked for {first}-{final}."
        )
    iterative = config.schedule.name == "iterative" and not order.survey
    if iterative and len(order.blocks) > 1:
        raise ReplyRefusedError(
            f"the iterative schedule asks for one block a message, got {len(order.blocks)}."
        )
    expected = iterative and first > 0
    if expected != ("update" in bundle) or (iterative and order.resume != max(0, first - 1)):
        raise ReplyRefusedError(
            f"a request for block {first} with schedule={config.schedule.name} must "
            f"{'bring the update of the block before' if expected else 'bring no update'}."
        )


@dataclass(frozen=True)
class Place:
    """A block of this node's model, as far as an update of it must fit.

    Attributes
    ----------
    block, num_blocks : int
        Its index, and how many the model has.
    weights : Mapping[str, Tensor]
        Name of the linear -> dense weight, shape (d_out, d_in).
    """

    block: int
    num_blocks: int
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, walk: BlockWalk) -> "Place":
        """Return the block where a walk stands."""
        return cls(walk.position, walk.position + walk.blocks_left, walk.weights())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name of the linear -> (d_out, d_in)."""
        return {name: (len(weight), weight.shape[1]) for name, weight in self.weights.items()}


def read_start(place: Place, data: bytes) -> dict[str, Change]:
    """Decode what an earlier round made of a block.

    Raises
    ------
    ReplyRefusedError
        If it is damaged or not this block's.
    """
    try:
        return decode_update(data, place.shapes)
    except WireError as error:
        raise ReplyRefusedError(f"the start of block {place.block}: {error}") from None


def read_update(config: RunConfig, place: Place, data: bytes) -> dict[str, Change]:
    """Decode the update of a block and check it.

    Parameters
    ----------
    config : RunConfig
        What the server was to aim at: sparsity, pattern, group, scaling.
    place : Place
        The block that the update is for.
    data : bytes
        What arrived: changes, or pooled statistics that they follow from.

    Raises
    ------
    ReplyRefusedError
        If it is damaged or is not what the configuration asks of the server.
    """
    spec = result_spec(config, place.block, place.num_blocks)
    try:
        if is_pooled(data):
            return _rebuilt(config, place, decode_pooled(data, place.shapes), spec)
        return _checked(config, data, place.shapes, spec if config.strategy.expansion else None)
    except WireError as error:
        raise ReplyRefusedError(f"the update of block {place.block}: {error}") from None


def read_final(
    config: RunConfig, shapes: Sequence[Mapping[str, tuple[int, int]]], block: int, data: bytes
) -> dict[str, Change]:
    """Decode what finally became of a block and check it.

    Parameters
    ----------
    config : RunConfig
        What the server was to aim at, as in :func:`read_update`.
    shapes : Sequence[Mapping[str, tuple[int, int]]]
        For each block of this node's model: name of the linear -> (d_out, d_in).
    block : int
        Its index.
    data : bytes
        What arrived.

    Raises
    ------
    ReplyRefusedError
        If it is damaged or is not what the configuration asks of the server.
    """
    # After several rounds a block may be as an earlier, less sparse one left it.
    exact = config.strategy.expansion and config.strategy.rounds == 1
    spec = result_spec(config, block, len(shapes)) if exact else None
    try:
        return _checked(config, data, shapes[block], spec)
    except WireError as error:
        raise ReplyRefusedError(f"what became of block {block}: {error}") from None


def _checked(
    config: RunConfig,
    data: bytes,
    shapes: Mapping[str, tuple[int, int]],
    spec: MaskSpec | None,
) -> dict[str, Change]:
    updates = decode_update(data, shapes)
    for name, update in updates.items():
        if spec is not None:
            check_mask(mask_of(update), spec, name)
        _check_scaling(update, name, config.strategy.scaling)
    return updates


def _check_scaling(update: Change, name: str, expected: bool) -> None:
    scaled = isinstance(update, LinearUpdate) and update.keeps is not None
    if scaled != expected:
        raise WireError(
            f"linear '{name}': survivors must "
            f"{'' if expected else 'not '}be scaled (`strategy.scaling`)."
        )


def _rebuilt(
    config: RunConfig, place: Place, groups: list[PooledSums], spec: MaskSpec
) -> dict[str, Change]:
    """Prune on the pooled statistics as the server did; the masks must be the server's."""
    pruner = make_pruner(config.pruner)
    changes: dict[str, Change] = {}
    for group in groups:
        statistics = ColumnStatistics(group.tensor(), group.tokens)
        for name, checksum in zip(group.linears, group.checksums, strict=True):
            mask = mask_of(pruner.prune(place.weights[name], statistics, spec))
            if mask.checksum != checksum:
                raise WireError(
                    f"linear '{name}': the server's statistics give another mask on this node "
                    "than on the server's device. Set `strategy.downlink=masks`."
                )
            changes[name] = mask
    return changes


def input_moments(
    config: RunConfig,
    block: int,
    statistics: Mapping[str, Statistic],
    shapes: Mapping[str, tuple[int, int]],
) -> list[InputMoments]:
    """Return what this node tells of each distinct input of a block.

    Parameters
    ----------
    config : RunConfig
        `strategy.moments` and what goes with it.
    block : int
        Index of the block.
    statistics : Mapping[str, MomentStatistics]
        Name of the linear -> what was recorded; shared inputs share the object.
    shapes : Mapping[str, tuple[int, int]]
        Name of the linear -> (d_out, d_in).
    """
    shared = dict(shared_inputs(statistics))
    plans = plan_inputs(config, block, list(shared), shapes)
    found = []
    for plan in plans:
        known = shared[plan.linears]
        found.append(InputMoments(plan.linears, known.tokens, _body(plan, known)))
    return found


def _body(plan: InputPlan, known: Statistic) -> Triangle | Sketch | Columns:
    if isinstance(known, ColumnStatistics):
        return Columns(known.sum_squares.cpu().numpy())
    if not isinstance(known, MomentStatistics):
        raise RuntimeError("second moments or sums of squares were recorded.")
    moments = known.moments.cpu()
    if plan.form == "eigen":
        return eigen_sketch(moments, plan.rank)
    if plan.form == "nystrom":
        return nystrom_sketch(moments, plan.rank, plan.seed)
    return Triangle.from_matrix(moments.numpy(), "float16" if plan.form == "float16" else "float32")


@dataclass(frozen=True)
class Answer:
    """A block's bytes, and what became of it on this node."""

    payload: bytes
    changes: Mapping[str, Change]


@dataclass(frozen=True)
class Respondent:
    """Makes the answers of one order.

    Parameters
    ----------
    config : RunConfig
        The run's configuration.
    survey : bool
        Whether only sums are asked for.
    alone : bool
        Whether the walk goes on with this node's own pruned blocks.
    """

    config: RunConfig
    survey: bool
    alone: bool

    @property
    def form(self) -> str:
        """The format of the payloads."""
        return SUMS if self.survey else FORMS[self.config.strategy.name]

    def answer(self, walk: BlockWalk, spec: MaskSpec | None) -> Answer:
        """Return the answer for the block where a walk stands; the walk stays there.

        ``spec`` is what a pruned block must look like; None where the block is only surveyed.
        """
        if spec is None:
            return Answer(_encoded_sums(walk.collect("columns")), {})
        pruner = make_pruner(self.config.pruner)
        if self.form == MASKS:
            return self._masks(prune_block(walk, pruner, spec))
        if self.form == WEIGHTS:
            return self._weights(walk, prune_block(walk, pruner, spec))
        if self.form == SUMS:
            return self._sums(walk, pruner, spec)
        return self._moments(walk, pruner, spec)

    def _masks(self, changes: Mapping[str, Change]) -> Answer:
        masks = {name: mask_of(change) for name, change in changes.items()}
        return Answer(encode_masks(masks), changes)

    def _weights(self, walk: BlockWalk, changes: Mapping[str, Change]) -> Answer:
        weights = walk.weights()
        sparse: dict[str, Change] = {
            name: SparseWeight.from_dense(weights[name], change)
            if isinstance(change, BitMask)
            else change
            for name, change in changes.items()
        }
        return Answer(encode_update(sparse), changes)

    def _sums(self, walk: BlockWalk, pruner: Pruner, spec: MaskSpec) -> Answer:
        statistics = walk.collect("columns")
        return Answer(_encoded_sums(statistics), self._own(walk, statistics, pruner, spec))

    def _moments(self, walk: BlockWalk, pruner: Pruner, spec: MaskSpec) -> Answer:
        statistics = walk.collect("moments", self.config.strategy.max_width)
        groups = input_moments(self.config, walk.position, statistics, Place.of(walk).shapes)
        return Answer(encode_moments(groups), self._own(walk, statistics, pruner, spec))

    def _own(
        self,
        walk: BlockWalk,
        statistics: Mapping[str, Statistic],
        pruner: Pruner,
        spec: MaskSpec,
    ) -> Mapping[str, Change]:
        return prune_on(walk, statistics, WithWandaFallback(pruner), spec) if self.alone else {}


def _encoded_sums(statistics: Mapping[str, Statistic]) -> bytes:
    return encode_sums([_exact(names, found) for names, found in shared_inputs(statistics)])


def _exact(linears: tuple[str, ...], statistics: Statistic) -> InputSums:
    if not isinstance(statistics, ColumnStatistics) or statistics.exact is None:
        raise RuntimeError("sums are sent as they were recorded.")
    return InputSums(linears, statistics.exact, statistics.tokens)


def prune(
    config: RunConfig,
    seat: Seat,
    order: Order,
    bundle: Mapping[str, bytes],
    ahead: Mapping[str, int],
) -> RecordDict:
    """Work on the blocks of an order, going on from where this node's last one stopped.

    Parameters
    ----------
    config : RunConfig
        The run's configuration as the server sent it.
    seat : Seat
        This node.
    order : Order
        Which blocks, and where to go on from.
    bundle : Mapping[str, bytes]
        Encoded changes: ``update`` of the block before where the schedule is iterative,
        ``start-NNNNN`` of blocks that were pruned in an earlier round.
    ahead : Mapping[str, int]
        Name -> bytes of those that were delivered before.

    Returns
    -------
    RecordDict
        The reply's content; the first parcel of it if it is long.

    Raises
    ------
    FedpruneError
        If the request is wrong or the work fails. The node then forgets this run, since the
        server asks it no more; not where its disk is full: with room again it can go on.
    """
    scratch = Scratch(seat.scratch)
    with scratch.alone():
        try:
            return _reply(config, seat, order, {**scratch.read_inbox(ahead), **bundle})
        except Exception as error:
            if not is_refusal(error):
                scratch.remove()
            raise


def _reply(config: RunConfig, seat: Seat, order: Order, bundle: Mapping[str, bytes]) -> RecordDict:
    started, scratch = time.monotonic(), Scratch(seat.scratch)
    respondent = _respondent(config, order)
    scratch.go_on_from(order.resume)
    encoded, samples = _work(config, seat, order, bundle, respondent)
    total = sum(map(len, encoded.values()))
    whole = total <= order.parcel_bytes
    reply = PruneReply(
        blocks=encoded if whole else {},
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(),
        num_examples=samples,
    )
    content = prune_record(reply, respondent.form)
    if not whole:
        data = b"".join(encoded.values())
        sizes = {block: len(part) for block, part in encoded.items()}
        scratch.save_outbox(data)
        split_record(content, data[: order.parcel_bytes], sizes, respondent.form)
    return content


def fetch(config: RunConfig, seat: Seat, order: Order, number: int) -> RecordDict:
    """Return a later parcel of the reply to an order."""
    parcel = Scratch(seat.scratch).parcel(number, order.parcel_bytes)
    return fetched_record(parcel, _respondent(config, order).form)


def _respondent(config: RunConfig, order: Order) -> Respondent:
    alone = not order.survey and not iterative(config) and config.schedule.prefix == "local"
    return Respondent(config, order.survey, alone)


def iterative(config: RunConfig) -> bool:
    """Whether blocks come one by one, each with what became of the one before."""
    return config.schedule.name == "iterative"


def keeps_own(config: RunConfig) -> bool:
    """Whether a node's own changes of all blocks make its own pruned model as it goes."""
    strategy = config.strategy
    return (
        config.evaluation.local_only
        and not iterative(config)
        and config.schedule.prefix == "local"
        and strategy.rounds == 1
        and strategy.layer_fraction == 1
    )


def _work(
    config: RunConfig,
    seat: Seat,
    order: Order,
    bundle: Mapping[str, bytes],
    respondent: Respondent,
) -> tuple[dict[int, bytes], int]:
    """Return the encoded answers by block, and how many samples made them."""
    loaded = model.dense_model(config, seat)
    check_order(config, order, len(loaded.layout.blocks), bundle)
    walk = _walk(config, seat, order, bundle)
    scratch, encoded = Scratch(seat.scratch), {}
    for block, answer in _answers(config, walk, order, bundle, respondent):
        encoded[block] = answer.payload
        if keeps_own(config) and not order.survey:
            scratch.save_changes(block, answer.changes)
    if not order.last and not order.survey and (iterative(config) or walk.position not in encoded):
        scratch.save_hidden(walk.position, walk.hidden)
    return encoded, walk.num_samples


def _walk(config: RunConfig, seat: Seat, order: Order, bundle: Mapping[str, bytes]) -> BlockWalk:
    """Return a walk that stands where the order goes on, told what became of the block before."""
    loaded = model.dense_model(config, seat)
    scratch, device = Scratch(seat.scratch), pick_device(config.pruner.device)
    limits = Limits.of(config.pruner)
    if not order.resume:
        if scratch.has_samples:
            samples = scratch.load_samples()
        else:
            samples = texts.tokens(config, seat)
            if not order.last:
                scratch.save_samples(samples)
        walk = BlockWalk(loaded, samples, device, limits=limits)
    else:
        hidden = scratch.load_hidden(order.resume)
        walk = BlockWalk(
            loaded,
            scratch.load_samples(),
            device,
            hidden=hidden,
            start=order.resume,
            limits=limits,
        )
    if iterative(config) and "update" in bundle:
        # Read before anything runs; the hidden states kept are the inputs of the block it is for.
        changes = read_update(config, Place.of(walk), bundle["update"])
        _leave(config, walk, changes)
    return walk


def _answers(
    config: RunConfig,
    walk: BlockWalk,
    order: Order,
    bundle: Mapping[str, bytes],
    respondent: Respondent,
) -> Iterator[tuple[int, Answer]]:
    """Yield each ordered block's answer; blocks between them stay dense."""
    total = walk.position + walk.blocks_left
    specs = {} if order.survey else block_specs(config, range(total), total)
    while walk.position <= order.blocks[-1]:
        block, changes = walk.position, {}
        if block in order.blocks:
            note(block=block)
            start = bundle.get(f"start-{block:05d}")
            if start is not None:
                walk.start_from(read_start(Place.of(walk), start))
            answer = respondent.answer(walk, specs.get(block))
            changes = dict(answer.changes) if respondent.alone else {}
            yield block, answer
        finished = block == order.blocks[-1] and (order.last or order.survey)
        if finished or block == total - 1 or (iterative(config) and not order.survey):
            return
        _leave(config, walk, changes, order.survey)


def _leave(
    config: RunConfig, walk: BlockWalk, changes: Mapping[str, Change], survey: bool = False
) -> None:
    """Go on to the next block, running this one only where somebody needs what it returns."""
    if survey or make_pruner(config.pruner).needs != "nothing":
        walk.advance(changes)
    else:
        walk.skip()
