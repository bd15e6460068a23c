"""How sparse each block becomes."""

from collections.abc import Sequence
from dataclasses import replace

from fedprune.config.rules import list_blocks, parse_blocks
from fedprune.config.schema import RunConfig
from fedprune.config.text import from_yaml, to_yaml
from fedprune.errors import ConfigError


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
        If `allocation.blocks` lists sparsities for another number of blocks, or if the allocation
        is one that clients' statistics decide and has not been resolved.
    """
    if config.allocation.name == "uniform":
        return config.sparsity
    if config.allocation.name == "owl":
        raise ConfigError(
            "`allocation.name` must be 'uniform' or 'per_block' once blocks are pruned, got 'owl': "
            "its sparsities are only known after the survey of the clients' statistics. Replace "
            "the configuration by `resolved_allocation` first, or set allocation=uniform."
        )
    listed = parse_blocks(config.allocation.blocks)
    if len(listed) != num_blocks:
        raise ConfigError(
            f"`allocation.blocks` must list {num_blocks} sparsities, one for each block of the "
            f"model, got {len(listed)}."
        )
    return listed[block]


def resolved_allocation(config: RunConfig, sparsities: Sequence[float]) -> RunConfig:
    """Return the configuration with a sparsity listed for each block.

    Parameters
    ----------
    config : RunConfig
        Usually one whose `allocation` depends on statistics.
    sparsities : sequence of float
        Share of zeros of each block; rounded to 6 decimals, so that every machine reads the same.

    Raises
    ------
    ConfigError
        If a sparsity is below 0 or not below 1, there are none or too many, or their mean is not
        `sparsity`.
    """
    listed = replace(config.allocation, name="per_block", blocks=list_blocks(sparsities))
    return from_yaml(to_yaml(replace(config, allocation=listed)))
