"""FedStats' keys; ``conf/strategy/fedstats.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import samples_alone, serves_worst, told
from fedprune.config.schema import strategy_for
from fedprune.config.suggest import show


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
        yield from told(run, (_pruner, _samples_alone, self._pooling, serves_worst))

    def _pooling(self, run: RunConfig) -> Iterator[str]:
        if run.privacy.secure and self.pooling == "median":
            yield (
                "`strategy.pooling` must not be 'median' with `privacy.secure` true: a median is "
                "no sum. It takes each client's answer, or the sums of several cohorts, and there "
                "is one. Leave it out, or set privacy.secure=false."
            )


def _pruner(run: RunConfig) -> Iterator[str]:
    name = run.pruner.name
    if name not in FedStatsConfig.pruners:
        names = ", ".join(map(repr, FedStatsConfig.pruners))
        yield (
            f"`pruner.name` must be one of {names} with strategy=fedstats, which sums the norms "
            f"of inputs, got {show(name)}. Set pruner=wanda, or "
            f"strategy={strategy_for(name)}."
        )


_samples_alone = partial(samples_alone, way_out="Leave it out, or choose another strategy.")

CONFIG = FedStatsConfig
