"""Which blocks go: those that change what they are given least."""

from collections.abc import Sequence

from fedprune.config.pattern import pruned_count
from fedprune.errors import ConfigError


def removed_count(remove: int | None, share: float, num_blocks: int, first: int) -> int:
    """Return how many blocks go.

    `remove`: `strategy.remove`; None: a share of them. `share`: `sparsity`, at least 0 and below 1.
    `first`: the first that may go: 1 where the one before is needed, else 0. Raises ConfigError if
    none would go, or too few would remain.
    """
    count = pruned_count(num_blocks, share) if remove is None else remove
    if count < 1:
        raise ConfigError(
            f"`sparsity` {share:g} removes none of the model's {num_blocks} blocks. Set "
            f"strategy.remove=1, or sparsity={1 / num_blocks:.3g} or more."
        )
    most = num_blocks - max(first, 1)
    if count > most:
        named = "`strategy.remove`" if remove is not None else f"`sparsity` {share:g} of all blocks"
        kept = "the first block stays, the map is put into it" if first else "one must remain"
        raise ConfigError(
            f"{named} must be at most {most} of the model's {num_blocks} blocks, since {kept}, got "
            f"{count}. Lower it."
        )
    return count


def most_alike(influence: Sequence[float], count: int, first: int) -> tuple[int, ...]:
    """Return the blocks of least influence, ascending; of equal ones the later go first.

    `influence`: block -> one minus the mean cosine between its input and output.
    """
    order = sorted(range(first, len(influence)), key=lambda block: (influence[block], -block))
    return tuple(sorted(order[:count]))


def most_alike_in_a_row(distances: Sequence[float], count: int, first: int) -> tuple[int, ...]:
    """Return the blocks in a row whose input and output are most alike.

    `distances`: last block of ``count`` in a row -> one minus the mean cosine between the input of
    the first and its output; those that there is no such row for are not looked at.
    """
    ends = range(first + count - 1, len(distances))
    last = min(ends, key=lambda block: (distances[block], -block))
    return tuple(range(last + 1 - count, last + 1))
