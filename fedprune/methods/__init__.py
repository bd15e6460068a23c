"""The federated methods, one package each, and the aggregation maths that they share.

Importing this registers the configuration of each method, which is all that is imported: a
method's ``config`` module has its keys as ``CONFIG``. A package of somebody else's brings a method
by an entry point in the group ``fedprune.methods`` that names such a package; it is imported when
its strategy is asked for. Only what somebody has installed here can be named.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import cast

from fedprune.config import StrategyConfig, find_strategies, register_strategy
from fedprune.errors import ConfigError
from fedprune.plugins import METHODS, load_plugin, plugin_names


def config_type(package: str) -> type[StrategyConfig]:
    """Return the configuration type of the method in a package."""
    return cast(type[StrategyConfig], importlib.import_module(f"{package}.config").CONFIG)


def _of_plugin(name: str) -> type[StrategyConfig]:
    package = load_plugin(METHODS, name)
    if not isinstance(package, ModuleType):
        raise ConfigError(f"The plugin '{name}' is no method: its entry point names no package.")
    try:
        found = config_type(package.__name__)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The plugin '{name}' has no `config.CONFIG`: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, StrategyConfig)):
        raise ConfigError(f"`config.CONFIG` of the plugin '{name}' is no StrategyConfig.")
    return found


for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        register_strategy(_module.name, config_type(f"{__name__}.{_module.name}"))
find_strategies(lambda: plugin_names(METHODS), _of_plugin)
