"""Which strategy runs a job: one of ours, or a plugin in its place."""

from fedprune.config import StrategyConfig
from fedprune.errors import ConfigError
from fedprune.plugins import STRATEGIES as PLUGINS
from fedprune.plugins import load_plugin
from strategies import FederatedPruning, FedHessian, FedPrLLM, FedSpaLLM, FedStats

STRATEGIES: dict[str, type[FederatedPruning]] = {
    "fedprllm": FedPrLLM,
    "fedspallm": FedSpaLLM,
    "fedstats": FedStats,
    "fedhessian": FedHessian,
}


def strategy_class(config: StrategyConfig) -> type[FederatedPruning]:
    """Return the class that makes one model of the clients' replies.

    Parameters
    ----------
    config : StrategyConfig
        `name` says what clients send; `plugin`, if any, is the entry point of the class.

    Raises
    ------
    ConfigError
        If the plugin is not installed or no strategy.
    """
    if config.plugin is None:
        return STRATEGIES[config.name]
    found = load_plugin(PLUGINS, config.plugin)
    if not isinstance(found, type) or not issubclass(found, FederatedPruning):
        raise ConfigError(
            f"`strategy.plugin` '{config.plugin}' must be a subclass of "
            f"strategies.FederatedPruning, got {found!r}. Mend the package that has it."
        )
    return found
