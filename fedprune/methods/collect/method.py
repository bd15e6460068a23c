"""Collect: one pass over the dense model, whose sums serve every solver afterwards.

What compressors want to know of private text is a sum over tokens, and on the dense model it does
not depend on what is made of it. A federation that sends these sums once can be solved from for
every sparsity, pattern, allocation and solver, at no further cost to its clients.
"""

from fedprune.config import RunConfig
from fedprune.methods.collection import Collection
from fedprune.methods.registry import Method, Solution, Words
from fedprune.methods.solving import prune_from
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import LoadedModel


class Collect(Method):
    """Gathers the statistics of `strategy.statistics`; models are made of them with `pruner`."""

    name = "collect"
    solves_at_once = False
    words = Words(
        label="Collect",
        does="clients send statistics of the dense model once, any number of models are made of "
        "them",
        sends="the statistics named in `strategy.statistics`: sums over its tokens of what enters "
        "each matrix, and numbers of tokens",
        tells="The sums are exact statistics of each client's texts; second moments, where they "
        "are collected, tell more and are to be treated like gradients.",
    )

    with_noise = "strategy.statistics=columns"

    def exchange(self, config: RunConfig) -> Collection:
        """Return the exchange that is held about every block."""
        return Collection(config, config.strategy.kinds)

    def solve(
        self, config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder
    ) -> Solution:
        """Prune every linear with `pruner` on what was collected of its input."""
        return prune_from(config, loaded, statistics)


METHOD = Collect()
