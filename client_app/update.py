"""What a server says became of the block before: read with care, since it makes the next inputs."""

from collections.abc import Mapping

from fedprune.config import RunConfig, block_sparsity
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.pruning.check import check_mask
from fedprune.pruning.spec import MaskSpec
from fedprune.wire.update import LinearUpdate, decode_update


def check_request(config: RunConfig, blocks: range, num_blocks: int, update: bytes | None) -> None:
    """Refuse a request that the schedule does not make.

    Parameters
    ----------
    config : RunConfig
        `schedule` says whether blocks come one by one, each with an update of the one before.
    blocks : range
        Blocks asked for.
    num_blocks : int
        Blocks of the model.
    update : bytes or None
        The encoded update of the block before.

    Raises
    ------
    ReplyRefusedError
        Saying what was expected.
    """
    if not 0 <= blocks.start < blocks.stop <= num_blocks:
        raise ReplyRefusedError(
            f"the model has blocks 0-{num_blocks - 1}, asked for {blocks.start}-{blocks.stop - 1}."
        )
    iterative = config.schedule.name == "iterative"
    if iterative and len(blocks) > 1:
        raise ReplyRefusedError(
            f"the iterative schedule asks for one block a message, got {len(blocks)}."
        )
    expected = iterative and blocks.start > 0
    if expected != (update is not None):
        raise ReplyRefusedError(
            f"a request for block {blocks.start} with schedule={config.schedule.name} must "
            f"{'bring the update of the block before' if expected else 'bring no update'}."
        )


def read_update(
    config: RunConfig,
    block: int,
    shapes: tuple[Mapping[str, tuple[int, int]], ...],
    data: bytes,
) -> dict[str, LinearUpdate]:
    """Decode the update of a block and check it against model and configuration.

    Parameters
    ----------
    config : RunConfig
        What the server was to aim at: sparsity, pattern, group, scaling.
    block : int
        The block it is for.
    shapes : tuple of Mapping
        For each block of this node's model: name of the linear -> (d_out, d_in).
    data : bytes
        What arrived.

    Raises
    ------
    ReplyRefusedError
        If it is damaged or is not what the configuration asks of the server.
    """
    sparsity = block_sparsity(config, block, len(shapes))
    spec = MaskSpec(sparsity, config.pruner.pattern, config.strategy.group)
    try:
        updates = decode_update(data, shapes[block])
        for name, update in updates.items():
            check_mask(update.mask, spec, name)
            if (update.keeps is not None) != config.strategy.scaling:
                raise WireError(
                    f"linear '{name}': survivors must "
                    f"{'' if config.strategy.scaling else 'not '}be scaled (`strategy.scaling`)."
                )
    except WireError as error:
        raise ReplyRefusedError(f"the update of block {block}: {error}") from None
    return updates
