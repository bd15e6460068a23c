"""FedPrLLM's keys; ``conf/strategy/fedprllm.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator, Mapping
from typing import Literal

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import told
from fedprune.config.schema import Count, Group, strategy_for
from fedprune.config.suggest import show


class FedPrLLMConfig(StrategyConfig):
    """How clients' votes decide."""

    group: Group
    ties: Literal["magnitude", "index", "random"]
    client_weights: Literal["equal", "samples", "tokens"]
    most_weight: Count
    majority_floor: bool
    scaling: bool
    decode: bool

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield what decoded votes cannot go together with."""
        if self.decode:
            yield from told(run, (_decodable, _one_threshold, _not_masked))


def _decodable(run: RunConfig) -> Iterator[str]:
    values: Mapping[str, tuple[object, object]] = {
        "pruner.name": (run.pruner.name, "wanda"),
        "pruner.group": (run.pruner.group, "row"),
        "strategy.scaling": (run.strategy.scaling, False),
    }
    for key, (got, only) in values.items():
        if got != only:
            yield (
                f"`{key}` must be {show(only)} with `strategy.decode` true, which reads column "
                f"norms out of Wanda's masks row by row, got {show(got)}. Set "
                f"{key.removesuffix('.name')}={str(only).lower()}, or strategy.decode=false."
            )


def _one_threshold(run: RunConfig) -> Iterator[str]:
    if run.pruner.pattern.structured:
        yield (
            "`pruner.pattern` must be 'unstructured' with `strategy.decode` true, which needs one "
            f"threshold for a whole row, got {show(run.pruner.pattern)}. Set "
            "pruner.pattern=unstructured, or strategy.decode=false."
        )


def _not_masked(run: RunConfig) -> Iterator[str]:
    if run.privacy.secure:
        yield (
            "`strategy.decode` must be false with `privacy.secure` true, got true: it reads the "
            "norms out of each client's own mask, and there are sums of votes only. Set "
            f"strategy={strategy_for('wanda')}, which sums those norms, exactly and in a hundredth "
            "of the bytes."
        )


CONFIG = FedPrLLMConfig
