"""FedStats' keys; ``conf/strategy/fedstats.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import samples_alone, serves_worst, told
from fedprune.config.schema import (
    PRUNER_TYPES,
    SECOND_MOMENTS,
    MomentsPrunerConfig,
    StructuredConfig,
    strategy_for,
)
from fedprune.config.suggest import show

COHORTS = 3
"""The fewest of which a median is taken; that of two is their mean, which either decides."""


class FedStatsConfig(StrategyConfig):
    """How sums are pooled, and what clients of an iterative run get back."""

    pooling: Literal[  # type: ignore[assignment]  # two ways more than of other statistics
        "tokens", "clients", "scaled", "median", "worst"
    ]
    downlink: Literal["auto", "sums", "masks"]

    pools = True
    quantizes = True
    pruners = ("wanda", "ria", "rounding")

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield which pruners and batches need more than the sums."""
        rules = (_pruner, _samples_alone, self._pooling, self._downlink, serves_worst)
        yield from told(run, rules)

    def _downlink(self, run: RunConfig) -> Iterator[str]:
        if self.downlink == "sums" and isinstance(run.pruner, MomentsPrunerConfig):
            yield (
                f"`strategy.downlink` must not be 'sums' with pruner={run.pruner.name}: a client "
                "cannot make of sums what the server makes of them and of public text. Leave it "
                "out, or set pruner=wanda."
            )

    def _pooling(self, run: RunConfig) -> Iterator[str]:
        cohort, least = run.privacy.min_cohort, COHORTS * run.privacy.min_cohort
        if run.privacy.secure and self.pooling == "median" and self.min_clients < least:
            yield (
                f"`strategy.min_clients` must be at least {least} with `privacy.secure` true and "
                "`strategy.pooling` 'median', which is over the sums of cohorts: it takes "
                f"{COHORTS} of `privacy.min_cohort` {cohort} clients, got {self.min_clients}. Set "
                f"strategy.min_clients={least}, or leave `strategy.pooling` out."
            )
        if self.pooling == "worst" and isinstance(run.pruner, MomentsPrunerConfig):
            yield (
                f"`strategy.pooling` must not be 'worst' with pruner={run.pruner.name} and "
                "strategy=fedstats: what a client's sums leave out is public text's, and says "
                "nothing of who is served worst. Leave it out, or set pruner=wanda, or "
                f"strategy={strategy_for(run.pruner.name)}, which knows each client's moments."
            )


def _pruner(run: RunConfig) -> Iterator[str]:
    name = run.pruner.name
    solves = name in SECOND_MOMENTS and not isinstance(run.pruner, StructuredConfig)
    if not solves and name not in FedStatsConfig.pruners:
        solvers = (n for n in SECOND_MOMENTS if PRUNER_TYPES[n] is not StructuredConfig)
        names = ", ".join(map(repr, (*FedStatsConfig.pruners, *solvers)))
        yield (
            f"`pruner.name` must be one of {names} with strategy=fedstats, which sums the norms "
            f"of inputs, got {show(name)}. Set pruner=wanda, or "
            f"strategy={strategy_for(name)}."
        )


_samples_alone = partial(samples_alone, way_out="Leave it out, or choose another strategy.")

CONFIG = FedStatsConfig
