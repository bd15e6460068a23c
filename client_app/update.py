"""What a server says became of a block: read with care, since it makes the next inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import MaskSpec, check_mask, result_spec
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.records import Order
from fedprune.wire.changes import Change, LinearUpdate, decode_update, mask_of
from fedprune.wire.sums import PooledSums, decode_pooled, is_pooled


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
