"""How sparse each block becomes, and each round leaves the model."""

from collections.abc import Sequence

from fedprune.config.schema import RunConfig, replace
from fedprune.config.validation import from_yaml, to_yaml
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
    listed = config.allocation.listed
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
    listed = replace(config.allocation, name="per_block", blocks=_blocks(sparsities))
    return from_yaml(to_yaml(replace(config, allocation=listed)))


def round_sparsity(config: RunConfig, number: int) -> float:
    """Return the share of zeros that round ``number`` of 1 to T, `strategy.rounds`, shall reach.

    With `sparsity` s it grows by `strategy.ramp`: 'none' (always s), 'linear' (s t/T) or 'cubic'
    (s (1 - (1 - t/T)^3)); rounded to 6 decimals, in the last round s itself.

    Raises
    ------
    ValueError
        If there is no such round.
    """
    share = _share(config, number)
    return config.sparsity if share == 1 else round(config.sparsity * share, 6)


def for_round(config: RunConfig, number: int) -> RunConfig:
    """Return the configuration of one round: `sparsity` and listed sparsities scaled alike.

    Raises
    ------
    ValueError
        If there is no such round.
    """
    share = _share(config, number)
    if share == 1:
        return config
    scaled = replace(config, sparsity=round_sparsity(config, number))
    if config.allocation.name != "per_block":
        return scaled
    blocks = _blocks([share * listed for listed in config.allocation.listed])
    return replace(scaled, allocation=replace(config.allocation, blocks=blocks))


def _share(config: RunConfig, number: int) -> float:
    """Return the share of the final sparsity; exactly 1 in the last round."""
    rounds, ramp = config.strategy.rounds, config.strategy.ramp
    if not 1 <= number <= rounds:
        raise ValueError(f"A round must be a number from 1 to {rounds}, got {number}.")
    linear: float = number / rounds
    return {"none": 1.0, "linear": linear, "cubic": 1 - (1 - linear) ** 3}[ramp]


def _blocks(sparsities: Sequence[float]) -> str:
    """Return sparsities as `allocation.blocks` lists them, rounded to 6 decimals."""
    return ",".join(f"{round(sparsity, 6) + 0.0:.6f}" for sparsity in sparsities)
