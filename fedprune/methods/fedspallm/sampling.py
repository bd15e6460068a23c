"""Which blocks each client prunes in a round, when it cannot prune all of them: layer sampling.

The paper (arXiv 2410.14852) lets every client prune a random subset of the layers, as many as its
resources allow. Independent subsets leave blocks that nobody prunes; a stratified draw does not.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.errors import ConfigError, listing
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Assignment, Participant
from fedprune.seeds import derive_seed

Draw = Literal["stratified", "independent"]

_PRECISION = 1000  # a rounded inverse weight is off by less than the reciprocal, relatively
_MAX_WEIGHT = 1 << 20


def draw_layers(
    eligible: Sequence[Collection[int]],
    counts: Sequence[int],
    num_blocks: int,
    coverage: int,
    seed: int,
    how: Draw,
) -> list[tuple[int, ...]]:
    """Return the blocks that each client prunes, ascending.

    'stratified': the blocks stand in a queue in random order; clients, in random order, each take
    the first ones that they may prune, which go back to its end. Where all may prune all blocks,
    clients take consecutive runs of one random cycle: each of L blocks is drawn with probability
    k_i / L by client i, and by floor(K / L) or ceil(K / L) clients, K = sum of k_i. Where not,
    clients then exchange blocks until every block has `coverage` clients; this is always found if
    it is possible, but probabilities are no longer exactly k_i / L.

    'independent': each client draws its blocks uniformly without replacement, whatever the others
    drew; blocks may stay without a client (see `uncovered_probability`).

    `eligible`: for each client the blocks that it may prune. `counts`: for each client how many
    blocks it prunes; all eligible ones if they are fewer. `coverage`: clients that must be able to
    prune each block; with 'stratified', that do. Raises ConfigError if a block cannot have
    `coverage` clients, whatever is drawn.
    """
    allowed = [sorted(blocks) for blocks in eligible]
    _check_eligible(allowed, num_blocks, coverage)
    sizes = [min(k, len(blocks)) for k, blocks in zip(counts, allowed, strict=True)]
    generator = np.random.default_rng(seed)
    if how == "independent":
        drawn = [
            set(generator.choice(blocks, size=size, replace=False).tolist()) if size else set()
            for blocks, size in zip(allowed, sizes, strict=True)
        ]
    else:
        drawn = assign_blocks([set(blocks) for blocks in allowed], sizes, num_blocks, generator)
        repair(drawn, [set(blocks) for blocks in allowed], num_blocks, coverage)
    return [tuple(sorted(blocks)) for blocks in drawn]


def layer_counts(fractions: Sequence[float], num_blocks: int) -> list[int]:
    """Return how many of the blocks each fraction is: rounded, halves up, and at least 1."""
    half = Fraction(1, 2)
    return [
        max(math.floor(num_blocks * Fraction(str(float(fraction))) + half), 1)
        for fraction in fractions
    ]


def resource_fractions(speeds: Sequence[float], mean_fraction: float) -> list[float]:
    """Return a share of the blocks for each client, proportional to its speed, with a mean.

    Shares above 1 are cut, and what is cut goes to the others, so that the mean holds.
    """
    shares = [1.0] * len(speeds)
    order = sorted(range(len(speeds)), key=lambda i: speeds[i], reverse=True)
    room = mean_fraction * len(speeds)
    for place, fastest in enumerate(order):  # the fastest of the rest: is its share cut?
        scale = room / math.fsum(speeds[i] for i in order[place:])
        if scale * speeds[fastest] <= 1:
            for i in order[place:]:
                shares[i] = scale * speeds[i]
            break
        room -= 1
    return shares


def uncovered_probability(counts: Sequence[int], num_blocks: int) -> float:
    """Return the probability that a block has no client, with independent draws.

    prod_i (1 - k_i / L), where client i draws k_i of L blocks.
    """
    return math.prod(1 - count / num_blocks for count in counts)


def inverse_weights(counts: Sequence[int]) -> list[int]:
    """Return weights that make up for unequal probabilities of being drawn.

    A client that prunes k_i of the blocks is drawn for each with probability proportional to k_i;
    weights proportional to 1 / k_i (Horvitz and Thompson, 1952) give all clients the same expected
    influence. They are the smallest whole numbers that are proportional to within a thousandth.

    `counts`: blocks of each client, at least 1. Raises ConfigError if they differ so much that a
    weight would reach 2**20.
    """
    distinct = np.unique(np.array(counts, dtype=np.int64))
    if distinct.size == 0:
        return []
    low, high = int(distinct[0]), int(distinct[-1])
    # From this largest weight on, even the smallest is above half of _PRECISION.
    limit = _PRECISION // 2 * high // low + 2
    if limit >= _MAX_WEIGHT:
        raise ConfigError(
            f"`strategy.layer_weights=inverse` needs blocks per client that differ less than "
            f"2,000-fold, got {low} to {high}. Use `strategy.layer_weights=equal`."
        )
    largest = np.arange(1, limit + 1)
    fits = np.ones(limit, dtype=np.bool_)
    for count in distinct.tolist():
        error = _nearest(largest * low, count) * count - largest * low
        fits &= _PRECISION * np.abs(error) < largest * low
    scale = largest[np.argmax(fits)]
    return [int(_nearest(scale * low, count)) for count in counts]


def _nearest(numerator: NDArray[np.int64], denominator: int) -> NDArray[np.int64]:
    """Return the quotient rounded, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _check_eligible(allowed: Sequence[Sequence[int]], num_blocks: int, coverage: int) -> None:
    able = [0] * num_blocks
    for blocks in allowed:
        for block in blocks:
            able[block] += 1
    short = [block for block, clients in enumerate(able) if clients < coverage]
    if short:
        raise ConfigError(
            f"`strategy.coverage` {coverage} needs as many clients that can prune each of "
            f"{num_blocks} blocks, but {named(short)} only {'have' if short[1:] else 'has'} "
            f"{listed([able[block] for block in short])}. Lower `strategy.coverage`, or let more "
            "clients, or such with more memory, take part."
        )


_WAYS_OUT = (
    "Raise `strategy.layer_fraction` or a node's 'layer-fraction', lower `strategy.coverage`, or "
    "let more clients take part."
)


def assign_blocks(
    allowed: Sequence[Collection[int]],
    sizes: Sequence[int],
    num_blocks: int,
    generator: np.random.Generator,
) -> list[set[int]]:
    """Let clients take as many blocks as they may from a queue's front; they go to its end."""
    queue = generator.permutation(num_blocks).tolist()
    drawn: list[set[int]] = [set() for _ in sizes]
    for client in generator.permutation(len(sizes)).tolist():
        taken = [block for block in queue if block in allowed[client]][: sizes[client]]
        drawn[client] = set(taken)
        queue = [block for block in queue if block not in drawn[client]] + taken
    return drawn


def repair(
    drawn: list[set[int]],
    allowed: Sequence[Collection[int]],
    num_blocks: int,
    coverage: int,
) -> None:
    """Exchange blocks in place, few at a time, until each has `coverage` clients.

    Raises ConfigError if no exchange helps: then no draw of these sizes covers the blocks named.
    """
    if sum(map(len, drawn)) < coverage * num_blocks:
        raise ConfigError(
            f"{len(drawn)} clients prune {sum(map(len, drawn))} blocks in all, too few for "
            f"`strategy.coverage` {coverage} of {num_blocks} blocks, {coverage * num_blocks}. "
            f"{_WAYS_OUT}"
        )
    covered = [sum(block in blocks for blocks in drawn) for block in range(num_blocks)]
    for block in range(num_blocks):
        while covered[block] < coverage:
            covered[block] += 1
            covered[_exchange(block, drawn, allowed, covered, coverage)] -= 1


def _exchange(
    wanting: int,
    drawn: list[set[int]],
    allowed: Sequence[Collection[int]],
    covered: Sequence[int],
    coverage: int,
) -> int:
    """Give a block to one more client; return the block that has one client less for it.

    A client takes the block for one of its own, which a second client takes, and so on, until one
    gives up a block that has more than `coverage` clients: the shortest such chain, found breadth
    first. If there is none, clients that could help any block reached already prune nothing else.
    """
    source: dict[int, tuple[int, int]] = {}  # block given up -> by which client, for which block
    waiting = deque([wanting])
    while waiting:
        block = waiting.popleft()
        for client, blocks in enumerate(drawn):
            if block in blocks or block not in allowed[client]:
                continue
            for given in sorted(blocks - source.keys() - {wanting}):
                source[given] = client, block
                if covered[given] > coverage:
                    _follow(given, wanting, drawn, source)
                    return given
                waiting.append(given)
    reached = sorted({wanting, *source})
    taken = sum(len(blocks.intersection(reached)) for blocks in drawn)
    raise ConfigError(
        f"`strategy.coverage` {coverage} of {named(reached)} needs {coverage * len(reached)} "
        f"blocks pruned, but the clients that can prune them take only {taken}. {_WAYS_OUT}"
    )


def _follow(
    given: int, wanting: int, drawn: list[set[int]], source: dict[int, tuple[int, int]]
) -> None:
    while given != wanting:
        client, taken = source[given]
        drawn[client].remove(given)
        drawn[client].add(taken)
        given = taken


def named(blocks: Sequence[int]) -> str:
    """Return blocks in words, at most eight of them."""
    return f"block{'s' if len(blocks) > 1 else ''} {listed(blocks)}"


def listed(numbers: Sequence[int]) -> str:
    """Return numbers with commas, at most eight of them."""
    return listing([str(number) for number in numbers], 8)


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
