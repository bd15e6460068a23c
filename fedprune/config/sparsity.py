"""How sparse each block and linear becomes, and each round leaves the model."""

from collections.abc import Mapping, Sequence

from fedprune.config.allocation import SURVEYED, allocation_of
from fedprune.config.schema import RunConfig, replace
from fedprune.config.validation import from_yaml, to_yaml
from fedprune.errors import ConfigError


def block_sparsity(config: RunConfig, block: int, num_blocks: int) -> float:
    """Return the share of zeros that the linears of one block shall have.

    Those that :func:`linear_sparsities` lists have their own.

    `config`: `allocation` says how `sparsity` is spread. Raises ConfigError if `allocation.blocks`
    lists sparsities for another number of blocks, or if the allocation is one that clients'
    statistics decide and has not been resolved.
    """
    chosen = allocation_of(config)
    if chosen in ("uniform", "per_linear"):
        return config.sparsity
    if chosen in SURVEYED:
        raise ConfigError(
            "`allocation.name` must be 'uniform', 'per_block' or 'per_linear' once blocks are "
            f"pruned, got '{chosen}': its sparsities are only known after the "
            "survey of the clients' statistics. Replace the configuration by "
            "`resolved_allocation` first, or set allocation=uniform."
        )
    listed = config.allocation.listed
    if len(listed) != num_blocks:
        raise ConfigError(
            f"`allocation.blocks` must list {num_blocks} sparsities, one for each block of the "
            f"model, got {len(listed)}."
        )
    return listed[block]


def linear_sparsities(config: RunConfig, block: int, num_blocks: int) -> dict[str, float]:
    """Return the share of zeros of a block's linears that have one of their own, by name.

    A ``*`` in a name stands for the number of each expert.

    `config`: its `allocation`. Raises ConfigError if `allocation.linears` lists sparsities for
    another number of blocks.
    """
    if config.allocation.name != "per_linear":
        return {}
    found = {}
    for name, listed in config.allocation.named.items():
        if len(listed) != num_blocks:
            raise ConfigError(
                f"`allocation.linears` must list {num_blocks} sparsities of '{name}', one for each "
                f"block of the model, got {len(listed)}."
            )
        share = listed[block]
        if share is not None:
            found[name] = share
    return found


def resolved_linears(config: RunConfig, sparsities: Sequence[Mapping[str, float]]) -> RunConfig:
    """Return the configuration with a sparsity listed for each linear.

    `config`: usually one whose `allocation` depends on statistics. `sparsities`: block -> name of
    the linear -> share of zeros; rounded to 6 decimals. A ``*`` in a name stands for the number of
    each expert. Raises ConfigError if a sparsity is below 0 or not below 1.
    """
    listed = replace(config.allocation, name="per_linear", linears=_linears(sparsities))
    return from_yaml(to_yaml(replace(config, allocation=listed)))


def resolved_allocation(config: RunConfig, sparsities: Sequence[float]) -> RunConfig:
    """Return the configuration with a sparsity listed for each block.

    `config`: usually one whose `allocation` depends on statistics. `sparsities`: share of zeros of
    each block; rounded to 6 decimals, so that every machine reads the same. Raises ConfigError if a
    sparsity is below 0 or not below 1, there are none or too many, or their mean is not `sparsity`.
    """
    listed = replace(config.allocation, name="per_block", blocks=_blocks(sparsities))
    return from_yaml(to_yaml(replace(config, allocation=listed)))


def round_sparsity(config: RunConfig, number: int) -> float:
    """Return the share of zeros that round ``number`` of 1 to T, `strategy.rounds`, shall reach.

    With `sparsity` s it grows by `strategy.ramp`: 'none' (always s), 'linear' (s t/T) or 'cubic'
    (s (1 - (1 - t/T)^3)); rounded to 6 decimals, in the last round s itself.

    Raises ValueError if there is no such round.
    """
    share = _share(config, number)
    return config.sparsity if share == 1 else round(config.sparsity * share, 6)


def for_round(config: RunConfig, number: int) -> RunConfig:
    """Return the configuration of one round: `sparsity` and listed sparsities scaled alike.

    Raises ValueError if there is no such round.
    """
    share = _share(config, number)
    if share == 1:
        return config
    scaled = replace(config, sparsity=round_sparsity(config, number))
    if config.allocation.name == "per_linear":
        named = config.allocation.named
        total = max(map(len, named.values()), default=0)
        parts = [
            {name: share * one for name, listed in named.items() if (one := listed[b]) is not None}
            for b in range(total)
        ]
        return replace(scaled, allocation=replace(config.allocation, linears=_linears(parts)))
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
    return ",".join(map(_written, sparsities))


def _linears(sparsities: Sequence[Mapping[str, float]]) -> str:
    """Return sparsities as `allocation.linears` lists them."""
    names = dict.fromkeys(name for block in sparsities for name in block)
    listed = {
        name: ",".join(_written(block[name]) if name in block else "-" for block in sparsities)
        for name in names
    }
    return ";".join(f"{name}={values}" for name, values in listed.items())


def _written(sparsity: float) -> str:
    return f"{round(sparsity, 6) + 0.0:.6f}"
