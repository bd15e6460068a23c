"""The most that second moments can tell in so many megabytes a client."""

from collections.abc import Callable
from logging import getLogger
from math import ceil, floor

from fedprune.config import RunConfig, replace
from fedprune.config.schema import strategy_for
from fedprune.errors import ConfigError

Size = Callable[[RunConfig], int]
"""Configuration -> most bytes of a client's answers; ConfigError where bits pay for no diagonal."""

# What is tried from `strategy.moments` on, best first: whole moments are exact, a sketch is not.
_WHOLE = {"float32": ("float32", "float16"), "float16": ("float16",)}
_STEPS = 10_000  # of a bit: configurations are read by people
_MOST_BITS = 32

_log = getLogger("flwr")


def fit_budget(config: RunConfig, size: Size) -> RunConfig:
    """Return a configuration whose answers keep within `strategy.budget_mb`.

    `config`: with a budget; `strategy.moments` is the form to begin with. `size`: tells the bytes
    of a configuration. The one returned has `strategy.moments` and `strategy.bits_per_weight` in
    place of the budget: whole moments where they fit, else sketches of as many bits a weight as the
    budget pays for, the same for every block. Raises ConfigError if the budget does not pay for the
    diagonals; says the least that does.
    """
    strategy = config.strategy
    budget = floor(strategy.budget_mb * 1e6)
    for moments in _WHOLE.get(strategy.moments, ()):
        found = _sized(config, moments, None)
        if size(found) <= budget:
            return _told(config, found, size)
    if strategy.target == "dense":  # of which a sketch leaves out what counts
        needed = size(_sized(config, "float16", None))
        raise ConfigError(
            f"`strategy.budget_mb` must be at least {_megabytes(needed):g} with "
            f"strategy.target=dense, which takes whole moments, got {strategy.budget_mb:g}. Raise "
            "it, or set strategy.target=pruned."
        )
    # Under masks only what is linear adds up.
    adds_up = strategy.moments == "nystrom" or config.privacy.secure
    sketch = "nystrom" if adds_up else "eigen"
    least, most = _fewest_bits(config, sketch, size), _MOST_BITS * _STEPS
    needed = size(_sized(config, sketch, least))
    if needed > budget:
        raise ConfigError(
            f"`strategy.budget_mb` must be at least {_megabytes(needed):g} to pay for the "
            f"diagonals of the second moments of this model, got {strategy.budget_mb:g}. Raise it, "
            f"or set strategy={strategy_for('wanda')}, which sends column sums alone: for "
            "pruner=wanda, or for a solver that takes the rest from public text."
        )
    while least < most:
        middle = (least + most + 1) // 2
        if size(_sized(config, sketch, middle)) <= budget:
            least = middle
        else:
            most = middle - 1
    return _told(config, _sized(config, sketch, least), size)


def _fewest_bits(config: RunConfig, sketch: str, size: Size) -> int:
    """Return the fewest steps of a bit a weight that pay for every block's diagonals."""
    low, high = 1, _MOST_BITS * _STEPS
    while low < high:
        middle = (low + high) // 2
        try:
            size(_sized(config, sketch, middle))
        except ConfigError:
            low = middle + 1
        else:
            high = middle
    return low


def _megabytes(size: int) -> float:
    """Return bytes as megabytes, rounded up to a hundredth."""
    return ceil(size / 1e4) / 100


def _sized(config: RunConfig, moments: str, steps: int | None) -> RunConfig:
    bits = None if steps is None else steps / _STEPS
    strategy = replace(config.strategy, moments=moments, bits_per_weight=bits, budget_mb=None)
    return replace(config, strategy=strategy)


def _told(config: RunConfig, found: RunConfig, size: Size) -> RunConfig:
    bits = found.strategy.bits_per_weight
    _log.info(
        "strategy.budget_mb=%g: strategy.moments=%s%s, at most %.2f MB a client",
        config.strategy.budget_mb,
        found.strategy.moments,
        "" if bits is None else f" strategy.bits_per_weight={bits:g}",
        size(found) / 1e6,
    )
    return found
