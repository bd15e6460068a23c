"""How sparse each block becomes."""

from fedprune.config.schema import RunConfig
from fedprune.errors import ConfigError


def parse_blocks(text: str) -> list[float]:
    """Return the sparsities that `allocation.blocks` lists."""
    return [float(part) for part in text.split(",")]


def block_sparsity(config: RunConfig, block: int, num_blocks: int) -> float:
    """Return the share of zeros that the linears of one block shall have.

    Parameters
    ----------
    config : RunConfig
        `allocation` says how `sparsity` is spread.
    block : int
        The block's index.
    num_blocks : int
        Blocks of the model.

    Raises
    ------
    ConfigError
        If `allocation.blocks` lists sparsities for another number of blocks.
    """
    if config.allocation.name == "uniform":
        return config.sparsity
    listed = parse_blocks(config.allocation.blocks)
    if len(listed) != num_blocks:
        raise ConfigError(
            f"`allocation.blocks` must list {num_blocks} sparsities, one for each block of the "
            f"model, got {len(listed)}."
        )
    return listed[block]
