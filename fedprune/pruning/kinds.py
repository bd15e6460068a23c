"""Every statistic by name, of linears' inputs and of whole blocks: what can be collected."""

from collections.abc import Mapping
from typing import Any

from fedprune.errors import ConfigError
from fedprune.plugins import STATISTICS, plugin_names
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.cosines import Cosines
from fedprune.pruning.experts import ExpertSums
from fedprune.pruning.statistics import KINDS, StatisticKind, get_kind

BLOCK_KINDS: Mapping[str, BlockKind] = {kind.name: kind for kind in (Cosines(), ExpertSums())}
"""The kinds of whole blocks that are part of this package, by name."""


def kind_names() -> tuple[str, ...]:
    """Return the names of all kinds that can be asked for here."""
    alone = (name for name, kind in KINDS.items() if not kind.paired)
    return tuple(dict.fromkeys((*alone, *BLOCK_KINDS, *plugin_names(STATISTICS))))


def find_kind(name: str) -> StatisticKind[Any] | BlockKind:
    """Return a kind of statistic of inputs or of blocks by name.

    Raises ConfigError if there is none of this name.
    """
    if name in BLOCK_KINDS:
        return BLOCK_KINDS[name]
    if name in KINDS:  # packages are not looked for, which takes a while
        return KINDS[name]
    if name not in kind_names():
        known = ", ".join(f"'{one}'" for one in kind_names())
        raise ConfigError(f"There is no statistic '{name}', only {known}.")
    return get_kind(name)
