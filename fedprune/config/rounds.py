"""How sparse each round leaves the model, where there are several."""

from dataclasses import replace

from fedprune.config.rules import list_blocks, parse_blocks
from fedprune.config.schema import RunConfig


def round_sparsity(config: RunConfig, number: int) -> float:
    """Return the share of zeros that a round shall reach.

    Parameters
    ----------
    config : RunConfig
        `strategy.rounds` is the number of rounds, T, and `strategy.ramp` how the sparsity grows:
        'none' (always `sparsity`, s), 'linear' (s t/T) or 'cubic' (s (1 - (1 - t/T)^3)).
    number : int
        The round t, from 1 to T.

    Returns
    -------
    float
        Rounded to 6 decimals; in the last round `sparsity` itself.

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
    blocks = list_blocks([share * listed for listed in parse_blocks(config.allocation.blocks)])
    return replace(scaled, allocation=replace(config.allocation, blocks=blocks))


def _share(config: RunConfig, number: int) -> float:
    """Return the share of the final sparsity; exactly 1 in the last round."""
    rounds, ramp = config.strategy.rounds, config.strategy.ramp
    if not 1 <= number <= rounds:
        raise ValueError(f"A round must be a number from 1 to {rounds}, got {number}.")
    linear = number / rounds
    return {"none": 1.0, "linear": linear, "cubic": 1 - (1 - linear) ** 3}[ramp]
