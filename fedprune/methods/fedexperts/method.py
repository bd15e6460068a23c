"""FedExperts: clients send sums of what each expert gives, the server drops the least useful.

REAP (Lasby et al., arXiv 2510.13999) ranks the experts of a mixture by two sums over tokens, and
sums add up over clients without rounding: so a federation drops the experts that one machine with
all the texts would drop, after one message on the dense model. What comes out is a smaller model of
the same architecture.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.pattern import pruned_count
from fedprune.errors import ConfigError
from fedprune.methods.collection import Collection
from fedprune.methods.fedexperts.pooling import (
    DROPPED,
    EXCESS,
    LOST,
    SCORES,
    pooled_experts,
)
from fedprune.methods.fedexperts.ranking import (
    SHARE_BITS,
    drop_lowest,
    expert_scores,
    grouped,
    ranked_by,
)
from fedprune.methods.registry import Method, Solution, Words
from fedprune.methods.state import Arrays
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import LoadedModel
from fedprune.models.mixture import Mixture, find_mixture, without_experts
from fedprune.pruning.experts import TOKENS, ExpertSums, experts_per_token
from fedprune.results.text import percent

_KIND = ExpertSums.name


class ExpertsCollection(Collection):
    """Ask every client for the sums of the experts of the dense model."""

    def __init__(self, config: RunConfig) -> None:
        told = (ranked_by(config.strategy.ranking), TOKENS)
        kind = ExpertSums(told)
        super().__init__(config, [kind])
        self.parts = {_KIND: pooled_experts(config, kind)}


class FedExperts(Method):
    """Drops the experts that all clients' texts need least."""

    name = "fedexperts"
    words = Words(
        label="FedExperts",
        does="clients send what each expert gives to their texts, the server drops the experts "
        "that give least",
        sends="for each expert the number of tokens routed to it, and sums over them of the "
        "router's weight, of the norm of its output and of the product of both",
        tells="How often a client's texts use which expert shows what they are about. Reports and "
        "results have the sums of all clients only.",
    )

    with_noise = ""

    def exchange(self, config: RunConfig) -> ExpertsCollection:
        return ExpertsCollection(config)

    def check_model(self, config: RunConfig, loaded: LoadedModel) -> None:
        """Refuse, before anybody is asked, what could not be exported or would not run."""
        mixture = find_mixture(loaded)
        drop = _checked_drop(config, mixture, experts_per_token(loaded))
        some = _kept(mixture, drop_lowest([0] * mixture.count, _groups(mixture), drop))
        without_experts(loaded, dict.fromkeys(mixture.experts, some))

    def solve(
        self, config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder
    ) -> Solution:
        """Drop the lowest ranked experts of each block, by what was collected."""
        self.check_model(config, loaded)
        statistics.require(_KIND, f"strategy={self.name}")
        mixture = find_mixture(loaded)
        dropped, figures = dict[int, list[int]](), []
        for block in mixture.experts:
            arrays = statistics.block(block, _KIND)
            dropped[block] = _dropped(config, statistics, mixture, arrays)
            figures.append(_figures(block, arrays, dropped[block]))
        keep = {block: _kept(mixture, gone) for block, gone in dropped.items()}
        header, rows = _table(mixture, figures)
        gone = len(next(iter(dropped.values())))
        return Solution(
            reshape=without_experts(loaded, keep),
            figures={
                "experts": {"count": mixture.count, "groups": mixture.groups, "blocks": figures}
            },
            summary=f"{gone} of {mixture.count} experts removed from each of {len(keep)} blocks",
            header=header,
            rows=rows,
        )


METHOD = FedExperts()


def _groups(mixture: Mixture) -> list[range]:
    return grouped(mixture.count, mixture.groups)


def _kept(mixture: Mixture, dropped: Sequence[int]) -> tuple[int, ...]:
    return tuple(expert for expert in range(mixture.count) if expert not in set(dropped))


def _checked_drop(config: RunConfig, mixture: Mixture, top_k: int) -> int:
    """Return how many experts of each group go; ``ConfigError`` if none or too many."""
    size, sparsity = mixture.count // mixture.groups, config.sparsity
    drop = pruned_count(size, sparsity)
    if drop == 0:
        raise ConfigError(
            f"`sparsity` {sparsity:g} drops none of the {size} experts of a "
            f"{'group' if mixture.groups > 1 else 'block'}: it must be at least {1 / size:g}, one "
            f"of them. Set sparsity={1 / size:g}."
        )
    most, asked = mixture.most_dropped(top_k), drop * mixture.groups
    if asked > most:
        way = f"Set sparsity={most / mixture.count:g}." if most else "Prune weights instead."
        each = f" in {mixture.groups} groups of which {mixture.open_groups} are open to a token"
        raise ConfigError(
            f"`sparsity` {sparsity:g} drops {asked} of {mixture.count} experts, but a token is "
            f"sent to {top_k}{each if mixture.groups > 1 else ''}: at most {most} can go. {way}"
        )
    return drop


def _dropped(
    config: RunConfig,
    statistics: StatisticsFolder,
    mixture: Mixture,
    arrays: Arrays,
) -> list[int]:
    """Return the experts of a block that go."""
    groups, strategy = _groups(mixture), config.strategy
    drop = pruned_count(len(groups[0]), config.sparsity)
    if strategy.pooling == "tokens":
        return drop_lowest(expert_scores(arrays, strategy.ranking), groups, drop)
    collected = statistics.manifest.config.strategy
    made_for = (collected.pooling, getattr(collected, "ranking", None))
    wanted = (strategy.pooling, strategy.ranking)
    gone = arrays.get(DROPPED, ())
    if made_for != wanted or (DROPPED in arrays and len(gone) != drop * mixture.groups):
        raise ConfigError(
            f"`strategy.pooling` '{strategy.pooling}' weighs clients one by one, and '"
            f"{statistics.path}' has the sums of all: it was made with pooling={made_for[0]}"
            f"{f', ranking={made_for[1]}' if made_for[1] else ''} for another choice. Set "
            "strategy.pooling=tokens, or ask the clients again (fedprune run)."
        )
    if SCORES in arrays:
        return drop_lowest(arrays[SCORES].tolist(), groups, drop)
    return [int(expert) for expert in gone]


def _figures(block: int, arrays: Arrays, dropped: Sequence[int]) -> dict[str, Any]:
    """Return what the results tell of a block: of all clients together, never of one."""
    tokens = [int(n) for n in arrays[TOKENS]]
    told: dict[str, Any] = {"block": block, "dropped": list(dropped), "tokens": tokens}
    for name, key in ((LOST, "worst_client_loss"), (EXCESS, "worst_client_excess")):
        if name in arrays:
            told[key] = float(Fraction(int(arrays[name][0]), 2**SHARE_BITS))
    return told


def _table(
    mixture: Mixture, figures: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return a line a block: which experts went, and what they did for the texts of all."""
    header = ["Block", "Experts removed", "Tokens sent to them", "Experts without a token"]
    if "worst_client_loss" in figures[0]:
        header += ["Most that a client loses", "Of it more than it must"]
    rows = []
    for told in figures:
        tokens, gone = told["tokens"], told["dropped"]
        share = sum(tokens[expert] for expert in gone) / max(1, sum(tokens))
        row = [str(told["block"]), ", ".join(map(str, gone)), percent(share)]
        row.append(f"{tokens.count(0)} of {mixture.count}")
        row += [
            percent(told[key])
            for key in ("worst_client_loss", "worst_client_excess")
            if key in told
        ]
        rows.append(tuple(row))
    return tuple(header), tuple(rows)
