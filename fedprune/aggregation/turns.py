"""Deal blocks out so that each gets enough clients: turns at a queue, then exchanges."""

from collections import deque
from collections.abc import Collection, Sequence

import numpy as np

from fedprune.errors import ConfigError

_WAYS_OUT = (
    "Raise `strategy.layer_fraction` or a node's 'layer-fraction', lower `strategy.coverage`, or "
    "let more clients take part."
)


def take_turns(
    allowed: Sequence[Collection[int]],
    sizes: Sequence[int],
    num_blocks: int,
    generator: np.random.Generator,
) -> list[set[int]]:
    """Let clients take blocks from the front of a queue, which go back to its end.

    Parameters
    ----------
    allowed : sequence of collection of int
        For each client the blocks that it may take.
    sizes : sequence of int
        For each client how many it takes, at most as many as it may.
    num_blocks : int
        Blocks in the queue, in random order.
    generator : numpy.random.Generator
        Draws the order of blocks and of clients.
    """
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
    """Exchange blocks, in place, until each has `coverage` clients.

    No client gets more or fewer blocks. What is exchanged is the fewest possible at a time.

    Raises
    ------
    ConfigError
        If no exchange helps: then no draw of these sizes covers the blocks named.
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
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return ", ".join(map(str, numbers[:8])) + more
