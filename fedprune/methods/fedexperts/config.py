"""FedExperts' keys; ``conf/strategy/fedexperts.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from fedprune.config import RunConfig, StrategyConfig, allocation_of
from fedprune.config.relations import samples_alone, told
from fedprune.config.suggest import show


class FedExpertsConfig(StrategyConfig):
    """By what experts are ranked, and what several clients make of that."""

    ranking: Literal["reap", "frequency", "norm", "router_weight"]
    pooling: Literal[  # type: ignore[assignment]  # one way more than of other statistics
        "tokens", "clients", "scaled", "worst_client"
    ]

    pools = True
    allocates = False

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield what experts cannot be dropped by."""
        yield from told(
            run,
            (
                _schedule,
                _sparsity,
                _allocation,
                _pattern,
                _samples_alone,
                _own_texts,
                _selection,
                self._pooling,
            ),
        )

    def _pooling(self, run: RunConfig) -> Iterator[str]:
        if run.privacy.secure and self.pooling == "worst_client":
            yield (
                "`strategy.pooling` must not be 'worst_client' with `privacy.secure` true: it "
                "compares what each client by itself would lose, and there are sums only. Set "
                "strategy.pooling=clients, where each counts the same."
            )


def _schedule(run: RunConfig) -> Iterator[str]:
    if run.schedule.name != "one_shot":
        yield (
            "`schedule.name` must be 'one_shot' with strategy=fedexperts, which asks once about "
            f"the dense model, got {show(run.schedule.name)}. Leave it out."
        )


def _sparsity(run: RunConfig) -> Iterator[str]:
    if run.sparsity == 0:
        yield (
            "`sparsity` must be above 0 with strategy=fedexperts: it is the share of experts that "
            "go from each block. Set sparsity=0.25."
        )


def _allocation(run: RunConfig) -> Iterator[str]:
    if allocation_of(run) != "uniform":
        yield (
            "`allocation.name` must be 'uniform' with strategy=fedexperts, got "
            f"{show(run.allocation.name)}: a configuration of transformers holds one number of "
            "experts for all blocks, so that nothing could load a model with more in some. Leave "
            "it out."
        )


def _pattern(run: RunConfig) -> Iterator[str]:
    if run.pruner.pattern.structured:
        yield (
            "`pruner.pattern` must be 'unstructured' with strategy=fedexperts, which prunes no "
            f"single weights, got '{run.pruner.pattern}'. Leave it out; weights of what is left "
            "can be pruned in a run of their own."
        )


def _own_texts(run: RunConfig) -> Iterator[str]:
    if run.evaluation.federated:
        yield (
            "`evaluation.federated` must be false with strategy=fedexperts, got true: clients hear "
            "nothing of the smaller model, which is made when they are gone. Leave it out."
        )


def _selection(run: RunConfig) -> Iterator[str]:
    for key in ("targets", "ignore"):
        value = getattr(run.pruner, key)
        if value:
            yield (
                f"`pruner.{key}` must be empty with strategy=fedexperts, got {show(value)}: from "
                "each block as many experts go, or nothing could load the model. Leave it out."
            )


_samples_alone = partial(samples_alone, way_out="Leave it out, or choose another strategy.")

CONFIG = FedExpertsConfig
