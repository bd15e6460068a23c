"""FedSpaLLM's keys; ``conf/strategy/fedspallm.yaml`` has their defaults and what they mean."""

from collections.abc import Iterator
from typing import Literal

from fedprune.config import RunConfig, StrategyConfig
from fedprune.config.relations import told
from fedprune.config.schema import Count, Share
from fedprune.config.suggest import show


class FedSpaLLMConfig(StrategyConfig):
    """How survivors are averaged, over how many rounds, and who prunes which blocks."""

    ties: Literal["magnitude", "index", "random"]
    client_weights: Literal["equal", "samples", "tokens"]
    most_weight: Count
    average: Literal["l0", "fedavg"]
    expansion: bool
    rounding: Literal["ceil", "floor"]
    rounds: Count
    ramp: Literal["none", "linear", "cubic"]
    layer_fraction: Share
    layer_resources: Literal["equal", "measured"]
    layer_draw: Literal["stratified", "independent"]
    coverage: Count
    layer_weights: Literal["equal", "inverse"]

    def check(self, run: RunConfig) -> Iterator[str]:
        """Yield what rounds, layer sampling and coverage cannot go together with."""
        yield from told(run, (_ramp, _iterative, _coverage, _same_blocks))


def _ramp(run: RunConfig) -> Iterator[str]:
    ramp, pattern = run.strategy.ramp, run.pruner.pattern
    if ramp != "none" and pattern.structured:
        yield (
            f"`strategy.ramp` must be 'none' with `pruner.pattern` '{pattern}', which fixes the "
            f"sparsity of every round, got {show(ramp)}. Set pruner.pattern=unstructured, or "
            "strategy.ramp=none."
        )


def _iterative(run: RunConfig) -> Iterator[str]:
    if run.schedule.name != "iterative":
        return
    values = {"rounds": run.strategy.rounds, "layer_fraction": run.strategy.layer_fraction}
    for key, got in values.items():
        if got != 1:
            yield (
                f"`strategy.{key}` must be 1 with schedule=iterative, where every client "
                f"prunes every block once, got {show(got)}. Set schedule=one_shot, or "
                f"strategy.{key}=1."
            )


def _coverage(run: RunConfig) -> Iterator[str]:
    coverage, clients = run.strategy.coverage, run.strategy.min_clients
    if coverage > clients:
        yield (
            f"`strategy.coverage` must be at most `strategy.min_clients` {clients}, got "
            f"{coverage}. Set strategy.min_clients={coverage} or strategy.coverage={clients}."
        )


def _same_blocks(run: RunConfig) -> Iterator[str]:
    share = run.strategy.layer_fraction
    if run.privacy.secure and share != 1:
        yield (
            "`strategy.layer_fraction` must be 1 with `privacy.secure` true, where every client's "
            f"masks cancel those of the others in every sum, got {share:g}. Leave it out."
        )


CONFIG = FedSpaLLMConfig
