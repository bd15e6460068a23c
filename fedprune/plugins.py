"""Pruners, statistics and methods of other packages, found by their entry points.

Only what somebody has installed here can be named: a server cannot make a node import anything
else.
"""

from importlib.metadata import EntryPoint, entry_points

from fedprune.errors import ConfigError

METHODS = "fedprune.methods"
"""Entry points that name a package with a module ``config``, see :mod:`fedprune.methods`."""

PRUNERS = "fedprune.pruners"
"""Entry points that name a class with the interface of :class:`fedprune.pruning.pruner.Pruner`."""

STATISTICS = "fedprune.statistics"
"""Entry points that name a :class:`fedprune.pruning.statistics.StatisticKind`."""


def plugin_names(group: str) -> tuple[str, ...]:
    """Return the names in a group of entry points, sorted."""
    return tuple(sorted(_found(group)))


def load_plugin(group: str, name: str) -> object:
    """Import and return what an entry point names.

    Raises ConfigError if there is no such entry point, or it cannot be imported.
    """
    found = _found(group)
    if name not in found:
        known = ", ".join(map(repr, sorted(found))) or "none"
        raise ConfigError(
            f"No installed package has an entry point '{name}' in '{group}'; there are: {known}. "
            "Install the package that has it, on the server and on every node that needs it."
        )
    try:
        loaded: object = found[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The plugin '{name}' ({found[name].value}) cannot be imported: {error}. "
            "Install its package again."
        ) from error
    return loaded


def _found(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
