"""Which blocks each client prunes in a round, by what it can do."""

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.methods.layer_sampling import (
    draw_layers,
    inverse_weights,
    layer_counts,
    resource_fractions,
    uncovered_probability,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Assignment, Participant
from fedprune.seeds import derive_seed

# Beside its weights a block needs room for statistics, their factors and a reply.
_MEMORY_FACTOR = 3


def sample_blocks(
    clients: Sequence[Participant], config: RunConfig, model: PublicModel, number: int
) -> Assignment:
    """Draw the blocks of every client for one round.

    `clients`: who takes part, in the order of their partitions. `config`: `strategy.layer_*`,
    `strategy.coverage` and `seed`. `number`: the round, from 1; each draws anew. Raises ConfigError
    if a block cannot be covered.
    """
    strategy, total = config.strategy, model.num_blocks
    counts = layer_counts(_fractions(clients, config), total)
    measured = strategy.layer_resources == "measured"
    drawn = draw_layers(
        eligible=[_eligible(client, model) if measured else range(total) for client in clients],
        counts=counts,
        num_blocks=total,
        coverage=strategy.coverage,
        seed=derive_seed(config.seed, "layers", number),
        how="independent" if strategy.layer_draw == "independent" else "stratified",
    )
    inverse = inverse_weights(counts) if strategy.layer_weights == "inverse" else [1] * len(clients)
    reporters = [sum(block in chosen for chosen in drawn) for block in range(total)]
    share = sum(reporters) / (total * max(1, len(clients)))
    figures = {
        "clients": {client.name: list(own) for client, own in zip(clients, drawn, strict=True)},
        "reporters": reporters,
        "least_reporters": min(reporters),
        "uncovered_probability": uncovered_probability(counts, total),
        "share": share,
        "bytes_saved": 1 - share,
    }
    partitions = [client.partition_id for client in clients]
    return Assignment(
        blocks=dict(zip(partitions, drawn, strict=True)),
        weights=dict(zip(partitions, inverse, strict=True)),
        summary=f"round {number}: a client prunes {share:.0%} of the blocks, every block is pruned "
        f"by {min(reporters)} or more",
        figures={"layer_sampling": figures},
    )


def _fractions(clients: Sequence[Participant], config: RunConfig) -> list[float]:
    strategy = config.strategy
    fractions = [strategy.layer_fraction] * len(clients)
    if strategy.layer_resources == "measured":
        speeds = [float(max(1, client.megaflops)) for client in clients]
        fractions = resource_fractions(speeds, strategy.layer_fraction)
    # What a node's operator says goes before what the server would like.
    return [
        client.layer_permille / 1000 if client.layer_permille else fraction
        for client, fraction in zip(clients, fractions, strict=True)
    ]


def _eligible(client: Participant, model: PublicModel) -> list[int]:
    """Return the blocks that fit into a client's free memory; all where it did not tell."""
    free = client.free_bytes
    needed = {
        block: _MEMORY_FACTOR * model.weight_bytes(block) for block in range(model.num_blocks)
    }
    return [block for block, size in needed.items() if not free or size <= free]
