"""Which blocks each client prunes in a round, by what it can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedprune.config import RunConfig
from fedprune.methods.layer_sampling import (
    draw_layers,
    inverse_weights,
    layer_counts,
    resource_fractions,
    uncovered_probability,
)
from fedprune.seeds import derive_seed
from strategies.cohort import Client
from strategies.plan import Plan

# Beside its weights a block needs room for statistics, their factors and a reply.
_MEMORY_FACTOR = 3


@dataclass(frozen=True)
class Sampling:
    """The draw of one round.

    Attributes
    ----------
    blocks : Mapping[int, tuple of int]
        Node id -> the blocks that it prunes.
    weights : Mapping[int, int]
        Node id -> how often it counts in means.
    num_blocks : int
        Blocks of the model.
    uncovered : float
        Probability that a given block would stay uncovered if all drew on their own.
    """

    blocks: Mapping[int, tuple[int, ...]]
    weights: Mapping[int, int]
    num_blocks: int
    uncovered: float

    @property
    def reporters(self) -> list[int]:
        """How many clients prune each block."""
        return [
            sum(block in chosen for chosen in self.blocks.values())
            for block in range(self.num_blocks)
        ]

    @property
    def least_reporters(self) -> int:
        """How many clients prune the block that fewest prune."""
        return min(self.reporters)

    @property
    def share(self) -> float:
        """The share of all blocks that a client prunes, mean over clients."""
        return sum(self.reporters) / (self.num_blocks * max(1, len(self.blocks)))

    def figures(self, clients: Sequence[Client]) -> dict[str, object]:
        """Return the draw as plain JSON values."""
        return {
            "clients": {client.name: list(self.blocks[client.node_id]) for client in clients},
            "reporters": self.reporters,
            "least_reporters": self.least_reporters,
            "uncovered_probability": self.uncovered,
            "share": self.share,
            "bytes_saved": 1 - self.share,
        }


def sample_blocks(
    clients: Sequence[Client], config: RunConfig, plan: Plan, round_number: int
) -> Sampling:
    """Draw the blocks of every client for one round.

    Parameters
    ----------
    clients : Sequence[Client]
        Who takes part, in the order of their partitions.
    config : RunConfig
        `strategy.layer_*`, `strategy.coverage` and `seed`.
    plan : Plan
        The model's blocks.
    round_number : int
        From 1 on; each round draws anew.

    Raises
    ------
    ConfigError
        If a block cannot be covered.
    """
    strategy, total = config.strategy, len(plan.shapes)
    counts = layer_counts(_fractions(clients, config), total)
    measured = strategy.layer_resources == "measured"
    drawn = draw_layers(
        eligible=[_eligible(client, plan) if measured else range(total) for client in clients],
        counts=counts,
        num_blocks=total,
        coverage=strategy.coverage,
        seed=derive_seed(config.seed, "layers", round_number),
        how="independent" if strategy.layer_draw == "independent" else "stratified",
    )
    inverse = inverse_weights(counts) if strategy.layer_weights == "inverse" else [1] * len(clients)
    nodes = [client.node_id for client in clients]
    return Sampling(
        blocks=dict(zip(nodes, drawn, strict=True)),
        weights=dict(zip(nodes, inverse, strict=True)),
        num_blocks=total,
        uncovered=uncovered_probability(counts, total),
    )


def _fractions(clients: Sequence[Client], config: RunConfig) -> list[float]:
    strategy = config.strategy
    fractions = [strategy.layer_fraction] * len(clients)
    if strategy.layer_resources == "measured":
        speeds = [float(max(1, client.report.megaflops)) for client in clients]
        fractions = resource_fractions(speeds, strategy.layer_fraction)
    # What a node's operator says goes before what the server would like.
    return [
        client.report.layer_permille / 1000 if client.report.layer_permille else fraction
        for client, fraction in zip(clients, fractions, strict=True)
    ]


def _eligible(client: Client, plan: Plan) -> list[int]:
    """Return the blocks that fit into a client's free memory; all where it did not tell."""
    free = client.report.free_bytes
    needed = {block: _MEMORY_FACTOR * plan.weight_bytes(block) for block in range(len(plan.shapes))}
    return [block for block, size in needed.items() if not free or size <= free]
