"""Collect's keys; ``conf/strategy/collect.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import dense_model_only, samples_alone, sketches_add, told
from fedprune.config.schema import Count, Text, strategy_for
from fedprune.config.suggest import show


class CollectConfig(StrategyConfig):
    """Which statistics are gathered, and how second moments travel."""

    pooling: Literal[  # type: ignore[assignment]  # one way more, to say why there is none
        "tokens", "clients", "scaled", "worst"
    ]
    statistics: Text
    moments: Literal["float32", "float16", "eigen", "nystrom"]
    bits_per_weight: Annotated[float, Field(gt=0)] | None
    max_width: Count | None

    pools = True
    removes_units = True
    quantizes = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names in `statistics`, each once."""
        return tuple(dict.fromkeys(part.strip() for part in self.statistics.split(",")))

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield what a pass over the dense model rules out."""
        yield from told(
            run, (self._names, dense_model_only, samples_alone, self._pooling, sketches_add)
        )

    def _names(self, run: RunConfig) -> Iterator[str]:
        if "" in self.kinds:
            yield (
                "`strategy.statistics` must be names separated by commas, got "
                f"{show(self.statistics)}. Write strategy.statistics='columns,moments'."
            )

    def _pooling(self, run: RunConfig) -> Iterator[str]:
        if self.pooling == "worst":
            yield (
                "`strategy.pooling` must be 'tokens', 'clients' or 'scaled' with strategy=collect, "
                "got 'worst': a collection keeps sums of all clients, and who is served worst "
                "shows in each client's own. Set strategy.pooling=clients, or prune with the "
                f"clients: fedprune run strategy={strategy_for('alps')} pruner=alps "
                "strategy.pooling=worst."
            )
            return
        others = [kind for kind in self.kinds if kind not in ("columns", "moments")]
        if self.pooling != "tokens" and others:
            yield (
                "`strategy.pooling` must be 'tokens' where `strategy.statistics` has others than "
                f"columns and moments, got {show(self.pooling)} with '{','.join(others)}'. Leave "
                "one of them out."
            )


CONFIG = CollectConfig
