"""Which of several equally voted weights to prune: by magnitude, by index or at random.

Only tied weights are looked at, so that the cost is that of finding them.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.votes import Words

Indices = NDArray[np.int32 | np.int64]
Keys = NDArray[np.uint32]
Flags = NDArray[np.bool_]

_BYTES = 1 << 17  # bytes searched for set bits at a time
_DENSE = 1 / 16  # share of tied weights from which they are looked at in place
_CHUNK = 1 << 14  # words of the groups whose ties are sorted together: 2**20 weights


class RandomKeys:
    """A stream of random numbers that depends on the seed alone.

    It takes the bit generator's raw output, which NumPy keeps the same over releases and machines.

    Parameters
    ----------
    seed : int
        Non-negative.
    """

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def draw(self, count: int) -> Keys:
        """Return the next `count` numbers."""
        return (self._stream.random_raw(count) >> np.uint64(32)).astype(np.uint32)


class MatrixKeys:
    """Sorting keys of the members of comparison groups: the bit patterns of |W|, which sort as it.

    Parameters
    ----------
    magnitude : NDArray[np.float32]
        |W|, flat, row-major, without NaN.
    shape : tuple of int
        (d_out, d_in).
    group : str
        'layer', 'row' or 'column'.
    """

    def __init__(self, magnitude: NDArray[np.float32], shape: tuple[int, int], group: str) -> None:
        codes: Keys = magnitude.view(np.uint32)
        matrix = codes.reshape((1, -1) if group == "layer" else shape)
        self._groups: Keys = matrix.T if group == "column" else matrix

    def at(self, groups: Indices, members: Indices) -> Keys:
        """Return the keys of members of groups."""
        alone = len(self._groups) == 1
        keys: Keys = self._groups[0, members] if alone else self._groups[groups, members]
        return keys

    def of(self, groups: Indices) -> Keys:
        """Return the keys of all members of groups, shape (groups, size)."""
        keys: Keys = self._groups[groups]
        return keys


Order = MatrixKeys | RandomKeys | None


def drop_tied(tied: Words, prune: Indices, keys: Order) -> None:
    """Clear `prune` bits of each row: those of the lowest key, of equals the first.

    Parameters
    ----------
    tied : Words
        Shape (groups, words), changed in place.
    prune : NDArray[np.int64]
        Bits to clear in each row, at most as many as are set, shape (groups,).
    keys : MatrixKeys or RandomKeys or None
        What to sort by; None: the first bits are cleared.
    """
    rows = max(_CHUNK // tied.shape[1], 1)
    for first in range(0, tied.shape[0], rows):
        part, quota = tied[first : first + rows], prune[first : first + rows]
        busy = np.flatnonzero(quota)
        if not busy.size:
            continue
        chosen = part if busy.size == len(part) else part[busy]
        ties = int(np.bitwise_count(chosen).sum(dtype=np.int64))
        drop = _drop_many if ties > _DENSE * 64 * chosen.size else _drop_few
        drop(chosen, quota[busy], keys, busy + first)
        if chosen is not part:
            part[busy] = chosen


def _drop_few(tied: Words, quota: Indices, keys: Order, groups: Indices) -> None:
    """Clear `quota` bits of each row, one of which each has to lose, bit by bit."""
    places = _set_bits(tied)
    rows, members = np.divmod(places, tied.shape[1] * 64)
    if isinstance(keys, MatrixKeys):
        drop = _lowest(rows, keys.at(groups[rows], members), quota)
    elif isinstance(keys, RandomKeys):
        drop = _lowest(rows, keys.draw(places.size), quota)
    else:
        drop = _first(rows, quota)
    # Subtracting a bit that is set clears it.
    places = places[drop]
    bits = np.uint8(1) << (places % 8).astype(np.uint8)
    np.subtract.at(tied.reshape(-1).view(np.uint8), places // 8, bits)


def _drop_many(tied: Words, quota: Indices, keys: Order, groups: Indices) -> None:
    """Clear the same bits as `_drop_few`, all bits at once."""
    flags = np.unpackbits(tied.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
    codes = _codes(flags, keys, groups)
    if keys is None:
        limits = np.zeros(quota.size, dtype=np.uint32)
    elif quota.size == 1:
        limits = np.array([_at_rank(codes[0, np.flatnonzero(flags)], int(quota[0]) - 1)])
    else:
        ranks = (quota - 1).tolist()
        limits = np.array(
            [np.partition(row, rank)[rank] for row, rank in zip(codes, ranks, strict=True)]
        )
    drop = codes < limits[:, np.newaxis]
    left = quota - np.count_nonzero(drop, axis=1)
    rows, members = np.nonzero(flags & (codes == limits[:, np.newaxis]))
    first = _first(rows, left)
    drop[rows[first], members[first]] = True
    flags ^= drop
    tied[:] = np.packbits(flags, axis=1, bitorder="little").view(np.uint64)


def _codes(flags: Flags, keys: Order, groups: Indices) -> Keys:
    """Return what tied weights are sorted by; all others have the highest code."""
    # 0 where a bit is set, else all bits: one byte each, widened with its sign.
    others = (flags.view(np.uint8) - np.uint8(1)).view(np.int8)
    codes: Keys = others.astype(np.int32).view(np.uint32)
    if isinstance(keys, MatrixKeys):
        of = keys.of(groups)
        codes[:, : of.shape[1]] |= of
    elif isinstance(keys, RandomKeys):
        codes[flags] = keys.draw(int(np.count_nonzero(flags)))
    return codes


def _at_rank(keys: Keys, rank: int) -> np.uint32:
    """Return the key at a rank, from 0, of any number of keys: counted by their upper halves."""
    upper = (keys >> np.uint32(16)).astype(np.uint16)
    ends = np.bincount(upper, minlength=1 << 16).cumsum()
    digit = int(np.searchsorted(ends, rank, side="right"))
    rank -= int(ends[digit - 1]) if digit else 0
    key: np.uint32 = np.partition(keys[np.flatnonzero(upper == digit)], rank)[rank]
    return key


def _lowest(rows: Indices, keys: Keys, quota: Indices) -> Flags:
    """Return flags of each row's `quota` lowest keys, of equals the first."""
    if quota.size == 1:
        limit = _at_rank(keys, int(quota[0]) - 1)
        lowest: Flags = keys < limit
        equal = np.flatnonzero(keys == limit)
        lowest[equal[: quota[0] - np.count_nonzero(lowest)]] = True
        return lowest
    ends = np.bincount(rows, minlength=quota.size).cumsum()
    starts = np.concatenate(([0], ends[:-1]))
    ordered = rows.astype(np.uint64) << np.uint64(32) | keys
    limits = np.sort(ordered)[starts + quota - 1].astype(np.uint32)[rows]
    lowest = keys < limits
    equal = np.flatnonzero(keys == limits)
    left = quota - np.bincount(rows[lowest], minlength=quota.size)
    lowest[equal[_first(rows[equal], left)]] = True
    return lowest


def _first(rows: Indices, quota: Indices) -> Flags:
    """Return flags of the first `quota` entries of each row; `rows` ascend."""
    counts = np.bincount(rows, minlength=quota.size)
    starts = counts.cumsum() - counts
    flags: Flags = np.arange(rows.size) < (starts + quota)[rows]
    return flags


def _set_bits(words: Words) -> Indices:
    """Return the ascending places of the set bits, rows one after the other.

    Few are expected, so empty words and bytes are skipped.
    """
    flat = words.reshape(-1)
    dtype = np.int32 if flat.size * 64 <= np.iinfo(np.int32).max else np.int64
    step = _BYTES // 8
    parts: list[Indices] = []
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        filled = np.flatnonzero(part)
        found = part[filled].view(np.uint8)
        places = np.flatnonzero(found != 0)
        flags = np.unpackbits(found[places], bitorder="little").view(np.bool_)
        bits = np.flatnonzero(flags)
        places = places[bits // 8]
        bits = (filled[places // 8] * 8 + places % 8) * 8 + bits % 8 + start * 64
        parts.append(bits.astype(dtype))
    return np.concatenate(parts)
